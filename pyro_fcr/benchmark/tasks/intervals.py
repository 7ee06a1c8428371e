"""Intervals of the changes in held-out conditions: a model's, and those that need no model."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_fcr import arguments, evaluate
from pyro_fcr.errors import DesignError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pyro_fcr.benchmark.problem import Problem
    from pyro_fcr.benchmark.tasks.base import Rows
    from pyro_fcr.data import Design

    Floats = NDArray[np.floating[Any]]
    Condition = tuple[str, str]

__all__ = [
    "CONFORMAL",
    "Measured",
    "conformal_rows",
    "group_names",
    "mean_rows",
    "measure",
    "model_rows",
]

LEVEL = 0.9

CONFORMAL = {False: "additive, conformal", True: "additive, conformal, genes pooled"}
"""By whether genes share their errors; see :func:`~pyro_fcr.evaluate.conformal_additive`."""

DRAWS = 200


@dataclass(frozen=True)
class Measured:
    """A measured change, and the sampling variance of every gene's."""

    change: Floats
    variance: Floats


def measure(treated: Any, control: Any, *, seed: int) -> Measured:
    """Measure a change of shares between two sets of cells, with its noise by a bootstrap.

    Parameters
    ----------
    treated, control
        Counts (cells, G).
    seed
        Of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    sides = []
    for counts in (treated, control):
        n = counts.shape[0]
        weights = rng.exponential(size=(100, n))
        drawn = _log_shares(weights / weights.mean(1, keepdims=True) @ counts)
        sides.append((_log_shares(np.ones((1, n)) @ counts)[0], drawn.var(0, ddof=1)))
    (one, of_one), (two, of_two) = sides
    return Measured(one - two, of_one + of_two)


def group_names(design: Design) -> dict[str, str]:
    """Return what a design calls the covariate groups, by what a problem calls them."""
    levels = map("|".join, design.covariate_levels)
    return dict(zip(levels, design.covariate_groups, strict=True))


def model_rows(
    problem: Problem, model: Any, truth: Mapping[Condition, Measured], *, seed: int
) -> dict[Condition, dict[str, float]]:
    """Score a model's intervals of the measured changes: its effects and the measurement's noise.

    Parameters
    ----------
    problem
        The data; the model's effects are estimated from its training cells.
    model
        With ``effects``.
    truth
        Changes by condition.
    seed
        Governs the draws.

    Returns
    -------
    dict
        ``coverage 90%`` and ``width 90%`` (mean over genes, log2 units) by condition.
    """
    train = problem.adata[~problem.mask("test")].copy()
    effects = model.effects(train, draws=DRAWS, seed=seed)
    joint = group_names(model.design)
    rng, found = np.random.default_rng(seed), {}
    for (t, x), measured in truth.items():
        if t not in effects.treatments or joint.get(x) not in effects.covariates:
            continue
        at = effects.treatments.index(t), effects.covariates.index(joint[x])
        drawn = effects.draws[:, at[0], at[1]]
        drawn = drawn + np.sqrt(measured.variance) * rng.standard_normal(drawn.shape)
        low, high = np.quantile(drawn, arguments.tails(LEVEL), axis=0)
        found[t, x] = _scores(low, high, measured.change)
    return found


def mean_rows(
    truth: Mapping[Condition, Measured],
    change: Mapping[Condition, Floats],
    sd: Mapping[Condition, Floats],
) -> dict[Condition, dict[str, float]]:
    """Score normal intervals of changes of profiles, the measurement's noise added.

    Parameters
    ----------
    truth
        Changes by condition.
    change, sd
        Predicted changes with their standard deviations.

    Returns
    -------
    dict
        ``change coverage 90%`` and ``change width 90%`` (mean over genes) by condition.
    """
    wide = NormalDist().inv_cdf(arguments.tails(LEVEL)[1])
    found = {}
    for key, centre in change.items():
        half = wide * np.sqrt(sd[key] ** 2 + truth[key].variance)
        scores = _scores(centre - half, centre + half, truth[key].change)
        found[key] = {f"change {name}": value for name, value in scores.items()}
    return found


def conformal_rows(problem: Problem, truth: Mapping[Condition, Measured], *, share: bool) -> Rows:
    """Score conformal intervals around the additive rule, for conditions without training cells.

    Parameters
    ----------
    problem
        The data.
    truth
        Changes by condition.
    share
        Whether they are log2 fold changes of shares; else changes of profiles.
    """
    prefix = "" if share else "change "
    train, control = ~problem.mask("test"), str(problem.schema.control)
    treatments = sorted(set(problem.treatment) - {control})
    groups = sorted(set(problem.covariate))
    logs: dict[Condition, Floats] = {}
    for t in (control, *treatments):
        for x in groups:
            cells = np.flatnonzero(train & (problem.treatment == t) & (problem.covariate == x))
            if len(cells) >= problem.min_cells:
                values = problem.values(cells)
                logs[t, x] = (
                    _log_shares(np.ones((1, len(cells))) @ values)[0]
                    if share
                    else problem.profile(values)
                )
    changes = np.full((len(treatments), len(groups), problem.adata.n_vars), np.nan)
    for i, t in enumerate(treatments):
        for j, x in enumerate(groups):
            if (t, x) in logs and (control, x) in logs:
                changes[i, j] = logs[t, x] - logs[control, x]
    rows: Rows = []
    for pooled, name in CONFORMAL.items():
        try:
            low, high = evaluate.conformal_additive(changes, level=LEVEL, pooled=pooled)
        except DesignError:
            return []
        for (t, x), measured in truth.items():
            at = treatments.index(t), groups.index(x)
            if np.isfinite(low[at]).all():
                scores = _scores(low[at], high[at], measured.change)
                told = {f"{prefix}{key}": value for key, value in scores.items()}
                rows.append({"method": name, "treatment": t, "covariate": x, **told})
    return rows


def _log_shares(sums: Any) -> Floats:
    """Return log2 shares (D, G) of summed counts; half a count keeps the logarithm finite."""
    sums = np.asarray(sums, float)
    return np.log2((sums + 0.5) / sums.sum(1, keepdims=True))


def _scores(low: Floats, high: Floats, truth: Floats) -> dict[str, float]:
    inside = (low <= truth) & (truth <= high)
    return {"coverage 90%": float(inside.mean()), "width 90%": float((high - low).mean())}
