"""Changes of cells as they would be, and how uncertain they are: measured ones tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_fcr.analysis.expression import expected_under

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pyro_fcr.analysis.contract import Intervened
    from pyro_fcr.data import Cells

__all__ = ["counterfactual_changes", "draw_unmeasured", "extrapolated", "interaction_errors"]

CONDITIONS = 60
"""Measured conditions that tell how far counterfactuals are off, at most."""

CELLS = 300
"""Control cells that these start from, at most."""


def extrapolated(
    model: Intervened, cells: Cells, group: int, covariate: int, *, seed: int
) -> NDArray[np.float64]:
    """Return the log2 share of each gene of the covariate's control cells, were they treated."""
    start = cells.subset(_controls(cells, covariate))
    return _share(model, start, cells.design.setting(group), seed=seed)


def counterfactual_changes(
    model: Intervened,
    cells: Cells,
    measured: NDArray[np.bool_],
    covariates: NDArray[np.integer[Any]],
    *,
    seed: int,
) -> NDArray[np.float64]:
    """Return the log2 fold changes of control cells, were they treated, where they were measured.

    Parameters
    ----------
    model, cells
        As for :func:`~pyro_fcr.analysis.changes.estimate_effects`.
    measured
        Shape (T, X): conditions to tell; of very many a random part is told.
    covariates
        Shape (X,): codes of the covariate groups.
    seed
        Governs all draws.

    Returns
    -------
    NDArray
        Shape (T, X, G); nan where it is not told.
    """
    rng = np.random.default_rng(seed)
    out = np.full((*measured.shape, cells.design.n_genes), np.nan)
    told = np.zeros_like(measured)
    told[tuple(rng.permutation(np.argwhere(measured))[:CONDITIONS].T)] = True
    for x in np.flatnonzero(told.any(0)):
        controls = rng.permutation(_controls(cells, int(covariates[x])))[:CELLS]
        start = cells.subset(np.sort(controls))
        as_is = _share(model, start, {}, seed=seed)
        for t in np.flatnonzero(told[:, x]):
            do = cells.design.setting(int(t) + 1)
            out[t, x] = _share(model, start, do, seed=seed) - as_is
    return out


def _controls(cells: Cells, covariate: int) -> NDArray[np.integer[Any]]:
    return np.flatnonzero((cells.covariate_id == covariate) & (cells.treatment_id == 0))


def _share(
    model: Intervened, cells: Cells, do: Mapping[str, Any], *, seed: int
) -> NDArray[np.float64]:
    found = expected_under(model, cells, do, draws=8, seed=seed)
    return np.asarray(np.log2((found.mean.sum(0) + 0.5) / cells.library.sum()))


def interaction_errors(effects: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far each measured condition lies from what the others' main effects say.

    Least squares over (T, X, G), missing conditions left out and each of the others in turn; the
    conditions that their own row or column cannot predict are not among the (C, G) returned. Where
    that is all of them, the deviations from the mean of the others.
    """
    n_t, n_x, _ = effects.shape
    t, x = np.nonzero(np.asarray(np.isfinite(effects).any(-1)))
    design = np.zeros((len(t), n_t + n_x))
    design[np.arange(len(t)), t] = 1
    design[np.arange(len(t)), n_t + x] = 1
    y = effects[t, x]
    for basis in (design, np.ones((len(t), 1))):
        hat = basis @ np.linalg.pinv(basis)
        left = 1 - np.diag(hat)
        told = left > 1e-9
        if told.any():
            return np.asarray((y - hat @ y)[told] / left[told, None])
    return np.zeros((1, effects.shape[2]))


def draw_unmeasured(
    centre: NDArray[np.float64], errors: NDArray[np.float64], draws: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw changes (D, C, G) around (C, G) with errors of the size found elsewhere.

    Genes have their own spread, and conditions theirs: some interact strongly in all genes. A
    draw's condition is as far off as one of the measured ones, any of them.
    """
    spread = np.sqrt((errors**2).mean(0))
    size = np.sqrt(((errors / np.maximum(spread, 1e-12)) ** 2).mean(1))
    picked = rng.choice(size, (draws, len(centre), 1))
    return centre + picked * spread * rng.standard_normal((draws, *centre.shape))
