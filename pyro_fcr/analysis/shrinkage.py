"""Effects drawn towards zero by as much as the population of effects says that most are small."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]

__all__ = ["SCALES", "mixture_weights", "posterior_moments", "shrink", "shrink_effects"]

SCALES = np.geomspace(0.1, 6.0, 12)
"""Standard deviations of the populations that effects may come from, in log2 units.

The smallest is no zero: no gene's change is exactly nothing, and an interval must not be a point.
"""

ROUNDS = 100
POOLED = 100.0
"""Effects' worth of weight that all groups together have in each group's mixture."""


def mixture_weights(
    mean: Floats,
    sd: Floats,
    *,
    start: Floats | None = None,
    held: float = 0.0,
    scales: Floats = SCALES,
) -> NDArray[np.float64]:
    r"""Estimate which share of effects comes from which population.

    .. math:: \hat\beta_i \sim N(\beta_i, s_i^2),\quad \beta_i \sim \sum_k w_k N(0, \sigma_k^2)

    by expectation and maximisation (adaptive shrinkage: Stephens 2017, Biostatistics 18:275-294).

    Parameters
    ----------
    mean, sd
        Estimates and their standard errors, shape (N,).
    start
        Weights to start from, and to be drawn to.
    held
        How many effects' worth of weight ``start`` has.
    scales
        Standard deviations of the populations, shape (K,).

    Returns
    -------
    numpy.ndarray
        Weights of the populations, shape (K,).
    """
    odds = np.exp(_log_density(mean, sd, scales))
    odds /= odds.max(1, keepdims=True)
    start = np.full(len(scales), 1 / len(scales)) if start is None else start
    weights = start
    for _ in range(ROUNDS):
        share = odds * weights
        share /= share.sum(1, keepdims=True)
        weights = (share.sum(0) + held * start) / (len(mean) + held)
    return np.asarray(weights, np.float64)


def posterior_moments(
    mean: Floats, sd: Floats, weights: Floats, *, scales: Floats = SCALES
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the posterior mean of each effect, and of its square, shapes (N,).

    Parameters
    ----------
    mean, sd
        Estimates and their standard errors, shape (N,).
    weights, scales
        Shares of the populations and their standard deviations, shape (K,).
    """
    odds = _odds(mean, sd, weights, scales)
    gain = _gain(sd, scales)
    centre = gain * np.asarray(mean, np.float64)[:, None]
    square = centre**2 + gain * np.asarray(sd, np.float64)[:, None] ** 2
    return (odds * centre).sum(1), (odds * square).sum(1)


def shrink(draws: Floats, weights: Floats, rng: np.random.Generator) -> Floats:
    """Turn draws of estimates into draws of the effects behind them.

    An estimate's draws have its mean and standard error. Each is moved to where the posterior
    under one population, drawn by its odds, has the same quantile; so effects whose errors are
    shared stay tied together.

    Parameters
    ----------
    draws
        Shape (D, N).
    weights
        Shares of the populations, shape (K,).
    rng
        Draws the populations.
    """
    mean = draws.mean(0)
    sd = _spread(draws)
    edges = np.cumsum(_odds(mean, sd, weights, SCALES), axis=1)
    uniform = rng.random(draws.shape)
    chosen = np.zeros(draws.shape, np.int8)
    for edge in edges.T[:-1]:
        chosen += uniform > edge
    picked = _gain(sd, SCALES)[np.arange(len(sd)), chosen]
    return picked * mean + np.sqrt(picked) * (draws - mean)


def shrink_effects(
    draws: NDArray[np.float32], seen: NDArray[np.bool_], rng: np.random.Generator
) -> None:
    """Shrink changes in place: what is common to all groups, and what is a group's own, apart.

    Each treatment's common part and each condition's own have a mixture of their own, drawn to
    that of all.

    Parameters
    ----------
    draws
        Shape (D, T, X, G): draws of log2 fold changes as estimated.
    seen
        Shape (T, X): conditions with cells. The others, which nothing was measured of, stay.
    rng
        Draws the populations.
    """
    common: dict[int, Floats] = {}
    own: dict[tuple[int, int], Floats] = {}
    for t, groups in enumerate(seen):
        if groups.any():
            estimated = draws[:, t, groups].astype(np.float64)
            common[t] = estimated.mean(1)
            if groups.sum() > 1:
                own |= {(t, x): estimated[:, k] - common[t]
                        for k, x in enumerate(np.flatnonzero(groups).tolist())}  # fmt: skip
    for t, values in zip(common, _shrunk(list(common.values()), rng), strict=True):
        draws[:, t, seen[t]] = values[:, None]
    for (t, x), values in zip(own, _shrunk(list(own.values()), rng), strict=True):
        draws[:, t, x] += values


def _shrunk(estimates: Sequence[Floats], rng: np.random.Generator) -> Iterator[Floats]:
    """Shrink draws (D, G) of several populations, each drawn to what all have in common."""
    if not estimates:
        return
    moments = [(values.mean(0), _spread(values)) for values in estimates]
    pooled = mixture_weights(*map(np.concatenate, zip(*moments, strict=True)))
    for values, moment in zip(estimates, moments, strict=True):
        yield shrink(values, mixture_weights(*moment, start=pooled, held=POOLED), rng)


def _spread(draws: Floats) -> NDArray[np.float64]:
    return np.maximum(draws.std(0, ddof=min(1, len(draws) - 1)), 1e-9)


def _odds(mean: Floats, sd: Floats, weights: Floats, scales: Floats) -> NDArray[np.float64]:
    """Return each effect's probability to come from each population, shape (N, K)."""
    odds = np.log(np.maximum(weights, 1e-300)) + _log_density(mean, sd, scales)
    odds = np.exp(odds - odds.max(1, keepdims=True))
    return np.asarray(odds / odds.sum(1, keepdims=True), np.float64)


def _gain(sd: Floats, scales: Floats) -> NDArray[np.float64]:
    return np.asarray(scales**2 / (scales**2 + np.asarray(sd, np.float64)[:, None] ** 2))


def _log_density(mean: Floats, sd: Floats, scales: Floats) -> NDArray[np.float64]:
    """Return log N(mean; 0, sd² + scale²), up to a constant, shape (N, K)."""
    variance = np.asarray(sd, np.float64)[:, None] ** 2 + scales**2
    return -0.5 * (np.asarray(mean, np.float64)[:, None] ** 2 / variance + np.log(variance))
