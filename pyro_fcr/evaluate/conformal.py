"""Intervals without a model: the additive rule, and how far it was off where that can be seen.

A model's intervals are worth their assumptions only where they are narrower than these at the
same coverage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_fcr.errors import DesignError, sentence

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.floating[Any]]

__all__ = ["conformal_additive"]


def conformal_additive(
    changes: ArrayLike, *, level: float = 0.9, pooled: bool = False
) -> tuple[Floats, Floats]:
    r"""Intervals of the changes in unmeasured conditions, around the additive rule.

    The rule gives a treatment's mean change over the groups where it was measured. Every measured
    condition i is left out in turn, which gives the rule's prediction without it and its error
    :math:`R_i`; the interval runs from the lower quantile of :math:`\hat y_{-i} - R_i` to the
    upper one of :math:`\hat y_{-i} + R_i` (jackknife+, Barber et al. 2021, arXiv 1905.02928).
    If conditions are exchangeable it covers with a probability of at least 2 ``level`` - 1, and of
    about ``level`` as a rule. Leaving i out moves the prediction of i's own treatment alone.

    Parameters
    ----------
    changes
        (T, X, G): change of every gene under every treatment in every group against the group's
        control; nan where a condition was not measured.
    level
        Of the intervals.
    pooled
        Whether genes share their errors, each in units of the gene's root mean square error over
        the other conditions. Needed where a gene has fewer than ``level`` / (1 - ``level``)
        conditions; genes of a condition err together, so nothing is then guaranteed.

    Returns
    -------
    low, high
        (T, X, G) each: nan but for unmeasured conditions of treatments measured in some group;
        infinite where too few conditions are there to tell.

    Raises
    ------
    DesignError
        Not three axes, or no treatment was measured in two groups.

    Examples
    --------
    >>> changes = np.zeros((1, 20, 1))
    >>> changes[0, :, 0] = np.arange(20) % 2
    >>> changes[0, 0] = np.nan
    >>> low, high = conformal_additive(changes)
    >>> low[0, 0].round(2).tolist(), high[0, 0].round(2).tolist()
    ([0.0], [1.11])
    """
    y = np.asarray(changes, float)
    seen = np.isfinite(y).all(-1) if y.ndim == 3 else np.zeros((1, 1), bool)
    told = seen.sum(1)
    if y.ndim != 3 or not (told > 1).any():
        raise DesignError(
            sentence(
                "no errors to learn intervals from",
                where="changes",
                expected="(treatments, groups, genes), a treatment measured in two groups",
                got=f"shape {y.shape}",
                hint="hold out fewer conditions",
            )
        )
    filled = np.where(seen[..., None], y, 0.0)
    total = filled.sum(1)
    t, x = np.nonzero(seen & (told > 1)[:, None])
    without = (total[t] - y[t, x]) / (told[t] - 1)[:, None]
    error = np.abs(y[t, x] - without)
    low, high = (np.full(y.shape, np.nan) for _ in range(2))
    for a in np.flatnonzero(told > 0):
        # One row per left-out condition: what the rule then says of this treatment.
        centre = np.where((t == a)[:, None], without, total[a] / told[a])
        if pooled:
            bounds = _pooled(centre, error, level)
        else:
            bounds = _order(centre - error, 1 - level), -_order(-(centre + error), 1 - level)
        missing = ~seen[a]
        low[a, missing], high[a, missing] = bounds
    return low, high


def _order(values: Floats, alpha: float) -> Floats:
    """Return the floor(alpha (n + 1))-th smallest of each column, -inf if that is the 0th."""
    rank = int(np.floor(alpha * (len(values) + 1) + 1e-9))
    if rank < 1:
        return np.full(values.shape[1], -np.inf)
    return np.sort(values, axis=0)[rank - 1]


def _pooled(centre: Floats, error: Floats, level: float) -> tuple[Floats, Floats]:
    n = len(error)
    if n < 2:
        return tuple(np.full(error.shape[1], sign * np.inf) for sign in (-1, 1))  # type: ignore[return-value]
    square = (error**2).sum(0)
    others = np.sqrt((square - error**2) / (n - 1))
    tiny = 1e-6 * (np.sqrt(square / n).mean() + 1e-12)
    score = error / np.maximum(others, tiny)
    half = np.quantile(score, level) * np.sqrt(square / n)
    middle = centre.mean(0)
    return middle - half, middle + half
