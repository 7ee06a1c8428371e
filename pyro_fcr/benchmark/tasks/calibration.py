"""Whether the uncertainty of the latents and of the counts is what it claims."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from pyro_fcr import evaluate
from pyro_fcr.benchmark.tasks.base import Task

if TYPE_CHECKING:
    from pyro_fcr.benchmark.problem import Problem
    from pyro_fcr.benchmark.tasks.base import Rows

__all__ = ["Calibration"]

LEVELS = (0.5, 0.9, 0.95)


@dataclass(frozen=True, kw_only=True)
class Calibration(Task):
    """Coverage of true latents by posterior intervals, and the PIT of held-out counts.

    A latent of a block is known up to its order, sign and scale: components of ``block`` are
    matched to the true ones by their correlation within condition, and their draws are brought to
    the true component's mean and standard deviation over all test cells. One row a method:
    ``coverage 50%``, ``90%``, ``95%`` where the data have true latents, ``matched`` (the mean
    correlation behind it), and ``PIT``, the share of genes whose randomised PIT passes a
    Kolmogorov-Smirnov test at a false discovery rate of .05. The draws are decoded from latents
    that were read from the same counts: a test of the likelihood, not of a prediction.

    Parameters
    ----------
    block
        The block whose components are identified.
    draws
        Of the posterior.
    max_cells
        Test cells, at most.
    """

    block: str = "z_tx"
    draws: int = 200
    max_cells: int = 300

    quick_options = {"draws": 40, "max_cells": 100}

    def judge(self, problem: Problem, model: Any, *, seed: int) -> Rows:
        """Draw from a model's posterior and posterior predictive."""
        test = np.flatnonzero(problem.mask("test"))
        rows = np.sort(np.random.default_rng(seed).permutation(test)[: self.max_cells])
        held = problem.adata[rows].copy()
        row: dict[str, Any] = {}
        if self.block in problem.adata.obsm:
            found = model.posterior(held, draws=self.draws, seed=seed)["posterior"][self.block]
            row |= self._coverage(found.to_numpy()[0], np.asarray(held.obsm[self.block], float),
                                  problem.condition[rows])  # fmt: skip
        tree = model.posterior_predictive(held, draws=self.draws, seed=seed)
        drawn = tree["posterior_predictive"]["counts"].to_numpy()[0]
        observed = tree["observed_data"]["counts"].to_numpy()
        u = evaluate.randomised_pit(drawn, observed, seed=seed)
        row["PIT"] = float(evaluate.pit_by_gene(u)["passes"].mean())
        return [row]

    def references(self, problem: Problem, *, seed: int) -> Rows:
        """Score Gaussians with the moments of each condition's training cells."""
        if self.block not in problem.adata.obsm:
            return []
        rng, test = np.random.default_rng(seed), np.flatnonzero(problem.mask("test"))
        rows = np.sort(rng.permutation(test)[: self.max_cells])
        truth = np.asarray(problem.adata.obsm[self.block], float)
        train = problem.mask("train")
        drawn = np.empty((self.draws, len(rows), truth.shape[1]))
        for i, row in enumerate(rows):
            like = truth[train & (problem.condition == problem.condition[row])]
            drawn[:, i] = rng.normal(like.mean(0), like.std(0), (self.draws, truth.shape[1]))
        table = evaluate.coverage(drawn, truth[rows], LEVELS)["coverage"]
        return [{"method": "true conditional prior", **_named(table)}]

    def _coverage(
        self, drawn: np.ndarray, truth: np.ndarray, condition: np.ndarray
    ) -> dict[str, Any]:
        mean = evaluate.within_condition(drawn.mean(0), condition)
        target = evaluate.within_condition(truth, condition)
        d = mean.shape[1]
        with np.errstate(invalid="ignore", divide="ignore"):
            correlation = np.nan_to_num(np.corrcoef(mean.T, target.T)[:d, d:])
        ours, theirs = linear_sum_assignment(-np.abs(correlation))
        sign = np.sign(correlation[ours, theirs])
        z = drawn[:, :, ours] * sign
        flat = z.reshape(-1, z.shape[2])
        scaled = (z - flat.mean(0)) / np.maximum(flat.std(0), 1e-8)
        y = truth[:, theirs]
        table = evaluate.coverage(scaled * y.std(0) + y.mean(0), y, LEVELS)["coverage"]
        return {**_named(table), "matched": float(np.abs(correlation[ours, theirs]).mean())}


def _named(table: Any) -> dict[str, float]:
    return {f"coverage {level:.0%}": float(value) for level, value in table.items()}
