"""From cells to draws of what treatments change: measured, modelled, and both together."""

from __future__ import annotations

from itertools import compress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pyro_fcr import arguments
from pyro_fcr.analysis.draws import draw_observations
from pyro_fcr.analysis.effects import Effects
from pyro_fcr.analysis.model_error import CounterfactualError, ModelError, joint_errors
from pyro_fcr.analysis.shrinkage import shrink_effects
from pyro_fcr.analysis.strengths import Squares
from pyro_fcr.analysis.unmeasured import (
    counterfactual_changes,
    draw_unmeasured,
    extrapolated,
    interaction_errors,
)
from pyro_fcr.errors import DesignError, sentence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pyro_fcr.analysis.contract import Intervened
    from pyro_fcr.data import Cells

__all__ = [
    "MIN_CELLS",
    "Shares",
    "estimate_effects",
    "group_shares",
    "joint_changes",
]

MIN_CELLS = 10
"""Conditions with fewer cells count as not measured."""


def estimate_effects(
    model: Intervened,
    cells: Cells,
    *,
    draws: int = 200,
    replicates: NDArray[Any] | None = None,
    level: float = 0.9,
    seed: int = 0,
) -> Effects:
    """Estimate the log2 fold change of every gene under every treatment, by covariate group.

    Parameters
    ----------
    model
        A fitted model whose schema names treatment and covariates.
    cells
        The cells.
    draws
        Posterior draws.
    replicates
        Shape (N,): labels that tell donors or wells apart, where there are some: they, instead
        of cells, are then what is resampled.
    level
        Probability of the intervals.
    seed
        Governs all draws.

    Raises
    ------
    DesignError
        If no covariate group has enough control cells.
    """
    arguments.tails(level)
    arguments.whole(draws, "draws=", least=2)
    design = cells.design
    rng = np.random.default_rng(seed)
    shape = (draws, design.n_treatment_levels, design.n_covariate_levels, design.n_genes)
    modelled, residual = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    middle, gap, least = (np.full(shape[1:], np.nan) for _ in range(3))
    units = np.ones(shape[1:3])
    for t in range(design.n_treatment_levels):
        for x in range(design.n_covariate_levels):
            rows = np.flatnonzero((cells.treatment_id == t) & (cells.covariate_id == x))
            if len(rows) < MIN_CELLS:
                continue
            labels = None if replicates is None else replicates[rows]
            found = group_shares(model, cells.subset(rows), labels, draws, rng, seed=seed)
            middle[t, x], gap[t, x], least[t, x] = found.middle, found.gap, found.least
            modelled[:, t, x], residual[:, t, x] = found.modelled, found.residual
            units[t, x] = len(rows) if labels is None else len(np.unique(labels))
    told = np.isfinite(middle[0]).any(-1)
    if not told.any():
        raise DesignError(
            sentence(
                "no effect can be estimated",
                where="effects",
                expected=f"a covariate group with at least {MIN_CELLS} control cells",
                got="none",
                hint="pass the data the model was trained on",
            )
        )
    middle, gap, least = middle[:, told], gap[:, told], least[:, told]
    modelled, residual = modelled[:, :, told], residual[:, :, told]
    counted = _errors_of_counts(modelled + residual, least, units[:, told], rng.spawn(1)[0])
    drawn, m, off, error = joint_changes(middle, gap, modelled, residual, least, rng)
    measured = m + off
    unseen = np.isnan(m[..., 0])
    if unseen.any():
        x_codes = np.flatnonzero(told)
        for t, x in zip(*np.nonzero(unseen), strict=True):
            m[t, x] = extrapolated(model, cells, t + 1, x_codes[x], seed=seed) - middle[0, x]
        errors = interaction_errors(np.where(unseen[..., None], np.nan, m))
        drawn[:, unseen] = draw_unmeasured(m[unseen], errors, draws, rng)
    lost = counted[:, 1:] - counted[:, :1]
    lost[:, unseen] = drawn[:, unseen] - drawn[:, unseen].mean(0)
    expected = np.where(unseen[..., None], drawn.mean(0), measured)
    squares = Squares.estimate(expected, lost, drawn, ~unseen)
    as_if = counterfactual_changes(model, cells, ~unseen, np.flatnonzero(told), seed=seed)
    return Effects(
        draws=drawn,
        predicted=m,
        measured=measured,
        squares=squares,
        treatments=design.treatment_levels[1:],
        covariates=tuple(compress(design.covariate_groups, told)),
        genes=design.genes,
        error=error,
        counterfactual=CounterfactualError.estimate(measured - as_if, as_if, lost.var(0)),
        level=level,
    )


class Shares(NamedTuple):
    """Log2 shares of G genes in the counts of one group of cells.

    Parameters
    ----------
    middle, gap
        Shape (G,): modelled ones, and measured minus modelled ones.
    modelled, residual
        Shape (D, G): bootstrap draws of both.
    least
        Shape (G,): variance of a measured one that molecules alone make.
    """

    middle: NDArray[np.float64]
    gap: NDArray[np.float64]
    modelled: NDArray[np.float64]
    residual: NDArray[np.float64]
    least: NDArray[np.float64]


def group_shares(
    model: Intervened,
    cells: Cells,
    replicates: NDArray[Any] | None,
    draws: int,
    rng: np.random.Generator,
    *,
    do: Mapping[str, Any] | None = None,
    seed: int,
) -> Shares:
    """Bootstrap the modelled and the measured profile of one group of cells.

    Parameters
    ----------
    model
        A fitted model.
    cells
        N cells.
    replicates
        Shape (N,): as for :func:`estimate_effects`.
    draws, rng
        How many bootstrap draws, and what draws them.
    do
        What is done to the cells that the model speaks of, if anything.
    seed
        Governs the draws of latents.
    """
    equal = np.ones(len(cells))
    weights = np.vstack([equal, _bootstrap(len(cells), replicates, draws, rng)])
    modelled, measured, total = _profiles(model, cells, weights, do=do, seed=seed)
    gap = measured - modelled
    return Shares(modelled[0], gap[0], modelled[1:], gap[1:], _least_variance(total))


def joint_changes(
    middle: NDArray[np.float64],
    gap: NDArray[np.float64],
    modelled: NDArray[np.float32],
    residual: NDArray[np.float32],
    least: NDArray[np.float64],
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64], ModelError]:
    """Join what the model says of changes against the first level with what was measured.

    Parameters
    ----------
    middle, gap
        Shape (T, X, G): modelled log2 shares, and measured minus modelled ones.
    modelled, residual
        Shape (D, T, X, G): bootstrap draws of both. The first is used up.
    least
        Shape (T, X, G): least sampling variance of a measured log2 share.
    rng
        Draws.

    Returns
    -------
    tuple
        Draws of changes (D, T - 1, X, G), the model's changes and how far measured ones lie off
        them (T - 1, X, G), and the model's error.
    """
    noise = np.maximum(residual.var(0, ddof=1), least)
    m, off = middle[1:] - middle[:1], gap[1:] - gap[:1]
    error = ModelError.estimate(off, m, noise[1:] + noise[:1])
    # What the networks absorbed of a group's noise is independent of what they left.
    modelled += np.sqrt(error.absorbed * noise) * rng.standard_normal(modelled.shape)
    left = (1 - error.absorbed) * noise
    drawn = modelled[:, 1:] - modelled[:, :1]
    variance = error.variance(np.nan_to_num(m))
    drawn += joint_errors(off, left[1:], left[0], variance, draws=len(drawn), rng=rng)
    shrink_effects(drawn, np.asarray(np.isfinite(m + off).any(-1)), rng)
    return drawn, m, off, error


def _least_variance(total: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the variance of a log2 share that molecules alone make, from their number."""
    return np.asarray(1 / (total + 0.5) / np.log(2) ** 2)


def _bootstrap(
    n: int, labels: NDArray[Any] | None, draws: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return Bayesian bootstrap weights (draws, n), one weight per replicate or per cell."""
    codes = np.arange(n) if labels is None else np.unique(labels, return_inverse=True)[1]
    return rng.exponential(size=(draws, codes.max() + 1))[:, codes]


def _errors_of_counts(
    drawn: NDArray[np.float32],
    least: NDArray[np.float64],
    units: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Turn bootstrap draws (D, T, X, G) into draws of the measured shares' errors, mean zero.

    Weights of n units, shape (T, X), spread by (n - 1) / (n + 1) too little; and no gene's
    variance is below that of its molecules, ``least``, shape (T, X, G).
    """
    errors = drawn - drawn.mean(0)
    errors *= np.sqrt((units + 1) / np.maximum(units - 1, 1))[..., None].astype(np.float32)
    missing = np.sqrt(np.maximum(least - errors.var(0), 0)).astype(np.float32)
    return errors + missing * rng.standard_normal(errors.shape, dtype=np.float32)


def _profiles(
    model: Intervened,
    cells: Cells,
    weights: NDArray[np.float64],
    *,
    do: Mapping[str, Any] | None = None,
    seed: int,
    rounds: int = 4,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the modelled and the measured log2 share of each gene, and its total count.

    Shapes (D, G), (D, G) and (G,) for weights (D, N). With ``do``, what is modelled are the cells
    under it.
    """
    intervened = cells if do is None else cells.design.do(cells, do)
    redraw = () if do is None else model.descendants(do)
    depth = weights @ cells.library
    modelled = np.zeros((len(weights), cells.design.n_genes))
    measured = np.zeros_like(modelled)
    total = np.zeros(cells.design.n_genes)
    drawn = draw_observations(
        model.model, model.guide, cells, intervened,
        redraw=redraw, draws=rounds, seed=seed, device=model.device,
    )  # fmt: skip
    for rows, batch, observations in drawn:
        expected = sum(o.mean.double().cpu().numpy() for o in observations) / rounds
        counts = batch.counts.double().cpu().numpy()
        modelled += weights[:, rows] @ expected
        measured += weights[:, rows] @ counts
        total += counts.sum(0)
    # Half a count keeps the logarithm of a gene that no cell showed finite.
    half = 0.5 * weights.mean(1, keepdims=True)
    shares = (np.log2((sums + half) / depth[:, None]) for sums in (modelled, measured))
    return *shares, total
