"""Kernel ridge between two halves of cells, each predicted by what was fitted on the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.linalg import eigh
from scipy.spatial.distance import cdist, pdist

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]
    Rows = NDArray[np.integer[Any]]

__all__ = ["cross_fitted_r2", "kernel_ridge"]

GAMMAS = (0.25, 1.0, 4.0)

RIDGES = (0.01, 0.1, 1.0)


def cross_fitted_r2(xs: tuple[Floats, ...], ys: tuple[Floats, ...], owners: Rows) -> Floats:
    """R^2 per group of target columns: fitted on one half, scored on the other, both ways."""
    residual = np.zeros(owners.max() + 1)
    total = np.zeros(owners.max() + 1)
    for fit, score in ((0, 1), (1, 0)):
        center = ys[fit].mean(0)
        predicted = kernel_ridge(xs[fit], ys[fit] - center, xs[score], owners) + center
        np.add.at(residual, owners, ((ys[score] - predicted) ** 2).sum(0))
        np.add.at(total, owners, ((ys[score] - ys[score].mean(0)) ** 2).sum(0))
    return np.where(total > 1e-12, 1 - residual / np.maximum(total, 1e-12), 0.0)


def kernel_ridge(x: Floats, y: Floats, x_new: Floats, owners: Rows) -> Floats:
    """RBF kernel ridge; width and ridge chosen per group of targets by leave-one-out error.

    One eigendecomposition per width serves every ridge, every target and the leave-one-out
    residuals (y - Hy) / (1 - diag H).
    """
    spread = x.std(0)
    live = spread > 1e-8
    if not live.any():
        return np.zeros((len(x_new), y.shape[1]))
    center = x[:, live].mean(0)
    x, x_new = ((a[:, live] - center) / spread[live] for a in (x, x_new))
    median = float(np.median(pdist(x)))
    distance, distance_new = cdist(x, x, "sqeuclidean"), cdist(x_new, x, "sqeuclidean")
    groups = owners.max() + 1
    best = np.full(groups, np.inf)
    out = np.zeros((len(x_new), y.shape[1]))
    for gamma in GAMMAS:
        # One-hot codes can have a median distance of 0 when one condition dominates.
        width = gamma / max(median, 1e-6) ** 2
        values, vectors = eigh(np.exp(-width * distance), driver="evd", check_finite=False)
        projected = vectors.T @ y
        kernel_new = np.exp(-width * distance_new) @ vectors
        for ridge in RIDGES:
            shrink = 1 / (np.maximum(values, 0.0) + ridge)
            # y - Hy = ridge * alpha and 1 - diag H = ridge * diag (K + ridge)^-1.
            alpha = vectors @ (shrink[:, None] * projected)
            loo = alpha / ((vectors**2) @ shrink)[:, None]
            error = np.bincount(owners, (loo**2).sum(0), minlength=groups)
            better = error < best
            best = np.where(better, error, best)
            columns = better[owners]
            out[:, columns] = kernel_new @ (shrink[:, None] * projected[:, columns])
    return out
