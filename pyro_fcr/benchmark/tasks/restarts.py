"""Fits that differ in nothing but their seed: whether they find the same factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_fcr import evaluate
from pyro_fcr.benchmark.tasks.base import Task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pyro_fcr.benchmark.problem import Problem
    from pyro_fcr.benchmark.tasks.base import Rows

__all__ = ["Restarts"]

APART = 1000
"""Between the seeds of a job's fits, so that the fits of two jobs never share one."""


@dataclass(frozen=True, kw_only=True)
class Restarts(Task):
    """Agreement within conditions of a method's latents between fits, on the test cells.

    All fits see the same data and split. One row per block and pair of fits: ``MCC`` of matched
    components, ``R2`` of the whole block (kernel ridge), each the mean over both directions; see
    :func:`~pyro_fcr.evaluate.restart_agreement`.

    Parameters
    ----------
    fits
        Two or more.
    max_cells
        That the probes see.
    """

    fits: int = 5
    max_cells: int = 2000

    quick_options = {"fits": 2, "max_cells": 100}

    def run(self, problem: Problem, fit: Callable[[int], Any], *, seed: int) -> Rows:
        """Fit several times and compare."""
        held = problem.adata[problem.mask("test")].copy()
        runs = []
        for k in range(self.fits):
            model = fit(seed + APART * k)
            runs.append({name: z.to_numpy() for name, z in model.latents(held).items()})
        return self._rows(problem, runs, seed)

    def judge(self, problem: Problem, model: Any, *, seed: int) -> Rows:
        """Return nothing: one fit agrees with itself."""
        return []

    def references(self, problem: Problem, *, seed: int) -> Rows:
        """Compare noise of four dimensions: what the matching alone gives."""
        rng, n = np.random.default_rng(seed), int(problem.mask("test").sum())
        runs = [{"noise": rng.standard_normal((n, 4))} for _ in range(self.fits)]
        return [{"method": "noise", **row} for row in self._rows(problem, runs, seed)]

    def _rows(self, problem: Problem, runs: Sequence[Mapping[str, np.ndarray]], seed: int) -> Rows:
        table = evaluate.restart_agreement(
            runs, problem.condition[problem.mask("test")], max_cells=self.max_cells, seed=seed
        )
        return [
            {"block": row.block, "first": row.first, "second": row.second, "MCC": row.mcc,
             "R2": row.r2}
            for row in table.itertuples()
        ]  # fmt: skip
