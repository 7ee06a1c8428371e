"""A conditional Gaussian prior from latents, and how noisy it is, by resampling cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_fcr.errors import DesignError, sentence

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.floating[Any]]

__all__ = ["PriorReplicates", "bootstrap_prior"]


@dataclass(frozen=True, kw_only=True)
class PriorReplicates:
    """Conditional means and scales of a block with bootstrap replicates of both.

    Attributes
    ----------
    loc, scale
        (T, X, n), nan where a condition has too few cells. The control comes first.
    loc_replicates, scale_replicates
        (R, T, X, n).
    treatments, covariates
        Names of the first two axes.
    """

    loc: Floats
    scale: Floats
    loc_replicates: Floats
    scale_replicates: Floats
    treatments: tuple[str, ...]
    covariates: tuple[str, ...]


def bootstrap_prior(
    z: ArrayLike,
    treatment: ArrayLike,
    covariate: ArrayLike,
    *,
    control: str,
    variance: ArrayLike | None = None,
    n_boot: int = 100,
    min_cells: int = 5,
    seed: int = 0,
) -> PriorReplicates:
    """Fit a Gaussian per condition to latents, with replicates by resampling cells.

    The aggregate posterior of a trained model matches its prior, so these moments stand for the
    learned prior and their spread for its sampling noise.

    Parameters
    ----------
    z
        Latents (cells, n): true ones, or posterior means.
    treatment, covariate
        Labels, one a cell.
    control
        The label of the control; it becomes the first treatment.
    variance
        Posterior variances (cells, n), added to the variance of the means (law of total variance).
    n_boot
        Replicates.
    min_cells
        Conditions with fewer cells are nan.
    seed
        Seed of the resampling.

    Returns
    -------
    replicates
        Ready for `rank_certificate`.
    """
    z_nd = np.asarray(z, float)
    v_nd = np.zeros_like(z_nd) if variance is None else np.asarray(variance, float)
    t, x = np.asarray(treatment).astype(str), np.asarray(covariate).astype(str)
    if not (len(z_nd) == len(t) == len(x)) or control not in t:
        raise DesignError(
            sentence(
                "labels do not describe these latents",
                where="treatment, covariate, control",
                expected=f"{len(z_nd)} labels each, {control!r} among the treatments",
                got=f"{len(t)} and {len(x)}, treatments {sorted(set(t))[:5]}",
                hint="pass one label a cell and the control's own name",
            )
        )
    treatments = (control, *sorted(set(t) - {control}))
    covariates = tuple(sorted(set(x)))
    shape = (len(treatments), len(covariates), z_nd.shape[1])
    loc, scale = np.full(shape, np.nan), np.full(shape, np.nan)
    locs, scales = np.full((n_boot, *shape), np.nan), np.full((n_boot, *shape), np.nan)
    rng = np.random.default_rng(seed)
    for i, a in enumerate(treatments):
        for j, b in enumerate(covariates):
            rows = np.flatnonzero((t == a) & (x == b))
            n = len(rows)
            if n < min_cells:
                continue
            weights = rng.multinomial(n, np.full(n, 1 / n), size=n_boot) / n
            # Centred first: the moments are then free of cancellation.
            center = z_nd[rows].mean(0)
            d, v = z_nd[rows] - center, v_nd[rows]
            loc[i, j] = center
            scale[i, j] = np.sqrt(((d**2).sum(0) / (n - 1)) + v.mean(0))
            m = weights @ d
            locs[:, i, j] = center + m
            # A replicate has seen about 1 - 1/e of the cells, yet has n draws: n - 1 still holds.
            spread = (weights @ d**2 - m**2) * n / (n - 1) + weights @ v
            scales[:, i, j] = np.sqrt(np.maximum(spread, 1e-12))
    return PriorReplicates(
        loc=loc,
        scale=scale,
        loc_replicates=locs,
        scale_replicates=scales,
        treatments=treatments,
        covariates=covariates,
    )
