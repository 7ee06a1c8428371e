"""Whether a posterior's uncertainty is what it claims: ranks, coverage, PIT, inclusion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from pyro_fcr.errors import DesignError, sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.floating[Any]]

__all__ = [
    "coverage",
    "inclusion_calibration",
    "pit_by_gene",
    "randomised_pit",
    "sbc_ranks",
    "sbc_uniformity",
]


def sbc_ranks(draws: ArrayLike, truth: ArrayLike, *, seed: int = 0) -> NDArray[np.integer[Any]]:
    """Rank of the truth among posterior draws, for simulation-based calibration.

    Talts et al. 2018, arXiv 1804.06788: ranks are uniform on 0..S for every quantity if truths
    come from the prior and draws from the exact posterior. Ties are broken at random.

    Parameters
    ----------
    draws
        (S, ...), independent; thin a chain first.
    truth
        (...), the values that generated the data.
    seed
        Seed of the ties.

    Returns
    -------
    ranks
        (...), integers from 0 to S.
    """
    d, y = _paired(draws, truth)
    below, equal = (d < y).sum(0), (d == y).sum(0)
    return below + np.random.default_rng(seed).integers(0, equal + 1)


def sbc_uniformity(ranks: ArrayLike, n_draws: int, *, bins: int = 20) -> float:
    """p-value of a chi-square test that ranks are uniform on 0..S.

    Parameters
    ----------
    ranks
        Ranks of independent replicates, of one quantity.
    n_draws
        S.
    bins
        Bins of near-equal numbers of ranks; fewer where a bin would expect under five.
    """
    r = np.asarray(ranks).ravel()
    bins = max(2, min(bins, n_draws + 1, len(r) // 5))
    edges = np.linspace(0, n_draws + 1, bins + 1).round()
    expected = np.diff(edges) / (n_draws + 1) * len(r)
    return float(stats.chisquare(np.histogram(r, edges - 0.5)[0], expected).pvalue)


def coverage(
    draws: ArrayLike, truth: ArrayLike, levels: Sequence[float] = (0.5, 0.9, 0.95)
) -> pd.DataFrame:
    """Share of truths inside central credible intervals.

    Parameters
    ----------
    draws
        (S, ...); with few draws the quantiles are those of a uniform law's order statistics, so
        that S draws of the exact posterior cover exactly.
    truth
        (...), latents of cells, or effects of held-out conditions.
    levels
        Nominal coverages.

    Returns
    -------
    table
        A row per level: ``coverage``, ``low`` and ``high`` (95 % Wilson interval, for independent
        truths), ``width`` (mean of the intervals).
    """
    d, y = _paired(draws, truth)
    s = len(d)
    rows = []
    for level in levels:
        # F of the k-th of S draws is k / (S + 1) on average (Weibull's plotting position).
        low, high = np.quantile(d, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")
        inside = (y >= low) & (y <= high)
        share, n = float(inside.mean()), inside.size
        interval = stats.binomtest(int(inside.sum()), n).proportion_ci(method="wilson")
        rows.append(
            {
                "level": level,
                "coverage": share,
                "low": interval.low,
                "high": interval.high,
                "width": float((high - low).mean()),
            }
        )
    # Rounding of 1 - level must not ask for one draw more.
    fewest = int(np.ceil(2 / (1 - max(levels)) - 1 - 1e-9))
    if s < fewest:
        raise DesignError(
            sentence(
                "too few draws for an interval",
                where="draws, levels",
                expected=f"at least {fewest} for {max(levels)}",
                got=str(s),
                hint="draw more, or ask for lower levels",
            )
        )
    return pd.DataFrame(rows).set_index("level")


def randomised_pit(draws: ArrayLike, observed: ArrayLike, *, seed: int = 0) -> Floats:
    r"""Randomised probability integral transform of counts by posterior predictive draws.

    :math:`u = (\#\{d < y\} + v (\#\{d = y\} + 1)) / (S + 1)` with v uniform on (0, 1): uniform,
    exactly and for any S, if the observation is exchangeable with the draws (Czado, Gneiting and
    Held 2009 for the randomised form).

    Parameters
    ----------
    draws
        (S, cells, genes) or (S, ...), drawn without the observation.
    observed
        (cells, genes) or (...), held-out.
    seed
        Seed of v.

    Returns
    -------
    u
        In the shape of ``observed``.
    """
    d, y = _paired(draws, observed)
    v = np.random.default_rng(seed).random(y.shape)
    return ((d < y).sum(0) + v * ((d == y).sum(0) + 1)) / (len(d) + 1)


def pit_by_gene(
    u: ArrayLike, *, fdr: float = 0.05, max_cells: int = 5000, seed: int = 0
) -> pd.DataFrame:
    """Test each gene's PIT for uniformity (Kolmogorov-Smirnov) with the false discovery rate held.

    Parameters
    ----------
    u
        PIT values (cells, genes). Cells must be independent given the model: draws that share
        globals make them only nearly so.
    fdr
        Rate at which genes are called miscalibrated (Benjamini and Hochberg 1995).
    max_cells
        Cells drawn at random, where there are more: any model fails with enough cells, so state
        how many were used.
    seed
        Seed of the subsample.

    Returns
    -------
    table
        A row per gene: ``statistic``, ``p``, ``q`` and ``passes``.
    """
    values = np.asarray(u, float)
    rows = np.random.default_rng(seed).permutation(len(values))[:max_cells]
    ordered = np.sort(values[rows], axis=0)
    n = len(ordered)
    grid = np.arange(n)[:, None]
    statistic = np.maximum((grid + 1) / n - ordered, ordered - grid / n).max(0)
    p = stats.kstwo.sf(statistic, n)
    q = stats.false_discovery_control(np.clip(p, 0, 1))
    return pd.DataFrame({"statistic": statistic, "p": p, "q": q, "passes": q > fdr})


def inclusion_calibration(
    probability: ArrayLike, truth: ArrayLike, *, threshold: float = 0.5, bins: int = 10
) -> dict[str, float]:
    """Score inclusion probabilities, say of a sparse mask, against the truth.

    Parameters
    ----------
    probability
        Probability that each entry is in, any shape.
    truth
        Whether it is, same shape.
    threshold
        Entries above it are called.
    bins
        Bins of equal width of the calibration error.

    Returns
    -------
    scores
        ``fdr`` (false among called; 0 if none), ``expected_fdr`` (what the probabilities claim),
        ``power``, ``f1`` and ``calibration_error`` (mean over entries of the gap between a bin's
        mean probability and its share of true entries).
    """
    p, y = np.asarray(probability, float).ravel(), np.asarray(truth, bool).ravel()
    called = p > threshold
    hits = float((called & y).sum())
    fdr = 1 - hits / called.sum() if called.any() else 0.0
    power = hits / y.sum() if y.any() else float("nan")
    index = np.minimum((p * bins).astype(int), bins - 1)
    gap = np.bincount(index, p - y, minlength=bins)
    return {
        "fdr": float(fdr),
        "expected_fdr": float((1 - p[called]).mean()) if called.any() else 0.0,
        "power": float(power),
        "f1": 2 * hits / max(1.0, float(called.sum() + y.sum())),
        "calibration_error": float(np.abs(gap).sum() / max(1, len(p))),
    }


def _paired(draws: ArrayLike, truth: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    d, y = np.asarray(draws), np.asarray(truth)
    if d.ndim != y.ndim + 1 or d.shape[1:] != y.shape or not len(d):
        raise DesignError(
            sentence(
                "draws do not match the truth",
                where="draws, truth",
                expected="shapes (S, ...) and (...)",
                got=f"{d.shape} and {y.shape}",
                hint="put the draws first",
            )
        )
    return d, y
