"""Data with known latents: AnnData out, the truth in ``obsm`` and ``uns["simulation"]``."""

from pyro_fcr.simulate.environments import environments
from pyro_fcr.simulate.factorised import VARIANTS, factorised
from pyro_fcr.simulate.semisynthetic import from_data
from pyro_fcr.simulate.sparse import sparse_shifts
from pyro_fcr.simulate.truth import (
    counterfactual_truth,
    expected_counts,
    true_changes,
    true_shares,
)

__all__ = [
    "VARIANTS",
    "counterfactual_truth",
    "environments",
    "expected_counts",
    "factorised",
    "from_data",
    "sparse_shifts",
    "true_changes",
    "true_shares",
]
