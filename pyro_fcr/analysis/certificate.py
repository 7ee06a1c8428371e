"""Whether the interaction block of a fitted model is identified."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyro_fcr.evaluate import Certificate, bootstrap_prior, rank_certificate

if TYPE_CHECKING:
    from pyro_fcr.data import Cells

__all__ = ["interaction_certificate"]


def interaction_certificate(
    mean: np.ndarray, sd: np.ndarray, cells: Cells, *, replicates: int, seed: int
) -> Certificate:
    """Certify the rank of a block's interaction contrasts.

    The natural parameters of each condition are those of the aggregate posterior over its cells,
    which a trained model's prior matches; resampling cells gives their interval.

    Parameters
    ----------
    mean, sd
        Shape (N, n): posterior means and standard deviations of the block.
    cells
        The same cells, for their conditions.
    replicates
        Number of bootstrap replicates.
    seed
        Governs the resampling.
    """
    design = cells.design
    treatments = np.asarray(design.treatment_levels, dtype=str)
    covariates = np.asarray([" | ".join(level) for level in design.covariate_levels], dtype=str)
    prior = bootstrap_prior(
        mean,
        treatments[cells.treatment_id],
        covariates[cells.covariate_id],
        control=treatments[0],
        variance=sd**2,
        n_boot=replicates,
        seed=seed,
    )
    return rank_certificate(prior.loc, prior.scale, prior.loc_replicates, prior.scale_replicates)
