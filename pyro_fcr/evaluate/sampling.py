"""How far a mean profile may lie from that of endless cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_fcr.evaluate.prediction import log_normalised

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.floating[Any]]

__all__ = ["pooled_variances", "sampled_profile"]

POOLED = 10.0
"""Degrees of freedom that a gene's spread over all conditions has in that of each."""


def sampled_profile(
    blocks: Iterable[ArrayLike], *, log_normalise: bool = True
) -> tuple[Floats, Floats]:
    """Return the mean profile of cells and its sampling variance, both of shape (G,).

    Parameters
    ----------
    blocks
        Dense values (cells, G), piece by piece.
    log_normalise
        Whether the profile is log1p of counts per 10,000 of summed counts: its variance is then
        that of a ratio of sums over cells, to first order, and at least that of so many molecules
        as were counted. Else the profile is the cells' mean. The variance is nan for one cell.

    Examples
    --------
    >>> mean, variance = sampled_profile([[[1.0], [3.0]]], log_normalise=False)
    >>> mean.tolist(), variance.tolist()
    ([2.0], [1.0])
    """
    n, depths = 0, 0.0
    sums = squares = crossed = np.zeros(1)
    for block in blocks:
        values = np.asarray(block, float)
        depth = values.sum(1)
        n += len(values)
        sums = sums + values.sum(0)
        squares = squares + (values**2).sum(0)
        crossed = crossed + depth @ values
        depths += float(depth @ depth)
    enough = n / (n - 1) if n > 1 else np.nan
    if not log_normalise:
        return sums / n, enough * np.maximum(squares / n - (sums / n) ** 2, 0.0) / n
    total = sums.sum()
    share = sums / total
    spread = enough * (squares - 2 * share * crossed + share**2 * depths)
    spread = np.maximum(spread, (sums + 0.5) * (1 - share)) / total**2
    return log_normalised(sums)[0], (1e4 / (1 + 1e4 * share)) ** 2 * spread


def pooled_variances(variance: ArrayLike, n_cells: ArrayLike) -> Floats:
    """Return variances of means of few cells, a cell's spread drawn to what all conditions have.

    Parameters
    ----------
    variance
        Shape (..., G): sampling variances of conditions' means; nan where nothing tells one.
    n_cells
        Shape (...): cells behind each.
    """
    given, n = np.asarray(variance, float), np.asarray(n_cells)[..., None]
    freedom = np.where(np.isfinite(given), np.maximum(n - 1, 0), 0.0)
    n = np.maximum(n, 1)
    square = np.where(freedom > 0, given, 0.0) * n * freedom
    every = tuple(range(given.ndim - 1))
    pooled = square.sum(every) / np.maximum(freedom.sum(every), 1e-12)
    return (square + POOLED * pooled) / (freedom + POOLED) / n
