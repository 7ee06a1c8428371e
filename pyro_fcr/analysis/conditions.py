"""The learned priors at every condition of a design."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyro_fcr.data import Cells

if TYPE_CHECKING:
    from pyro_fcr.data import Design

__all__ = ["condition_cells"]


def condition_cells(design: Design, *, repeats: int = 1) -> Cells:
    """Return an empty cell for every pair of treatment group and joint covariate.

    Parameters
    ----------
    design
        The experiment.
    repeats
        Cells per condition.

    Returns
    -------
    Cells
        Treatments vary slowest; counts are zero and libraries one.
    """
    levels = list(design.covariates.values())
    codes = np.asarray(
        [
            [names.index(v) for names, v in zip(levels, j, strict=True)]
            for j in design.covariate_levels
        ],
        dtype=np.int64,
    ).reshape(design.n_covariate_levels, design.n_covariates)
    n_t, n_x = design.n_treatment_levels, design.n_covariate_levels
    treatment = np.repeat(np.arange(n_t), n_x * repeats)
    covariate = np.tile(np.repeat(np.arange(n_x), repeats), n_t)
    n = len(treatment)
    return Cells(
        design=design,
        names=np.asarray([f"condition{i}" for i in range(n)], dtype=object),
        counts=np.zeros((n, design.n_genes), np.float32),
        library=np.ones(n, np.float32),
        treatment_rows=design.treatment_rows,
        treatment_row=treatment,
        treatment_id=treatment,
        covariates=codes[covariate],
        covariate_id=covariate,
        batch_id=np.zeros(n, np.int64),
    )
