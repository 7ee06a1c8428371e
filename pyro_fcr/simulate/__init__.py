"""Data with known latents: AnnData out, the truth in ``obsm`` and ``uns["simulation"]``."""

from pyro_fcr.simulate.factorised import (
    VARIANTS,
    counterfactual_truth,
    expected_counts,
    factorised,
)

__all__ = ["VARIANTS", "counterfactual_truth", "expected_counts", "factorised"]
