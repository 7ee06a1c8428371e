"""Known latents: how much of each block is recovered, and how much of it leaks into others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_fcr import evaluate, simulate
from pyro_fcr.benchmark.tasks.base import Task
from pyro_fcr.errors import DesignError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from pyro_fcr.benchmark.problem import Problem
    from pyro_fcr.benchmark.tasks.base import Rows

__all__ = ["Recovery"]

MIN_CELLS = 4
"""Test cells of a condition that is scored, at least."""

LEAST = 0.25
"""Interactions up to this size, in log2 units, count as none."""


@dataclass(frozen=True, kw_only=True)
class Recovery(Task):
    """Recovery within condition on the test cells, one row a method.

    Columns: ``R2 z`` (kernel ridge from a block to the true one of its name), ``pooled R2 z`` and
    ``label R2 z`` (the same not within condition, and from the label alone), ``MCC z`` and
    ``MCC-nl z``, ``leakage`` (the largest R2 between different blocks) with ``leaks`` (which), and
    ``flagged`` (1 where the certificate does not say "identified") with its ``verdict`` and
    ``reason``. With ``interactions`` also ``interactions`` (number of interactions of a gene with
    a condition that the effects select at a false discovery rate of .05) and ``false
    interactions`` (the share of them whose true size is not above the least that counts).

    Parameters
    ----------
    interactions
        Whether to estimate effects; the data must be a simulation of counts.
    max_cells
        See :func:`~pyro_fcr.evaluate.recovery`.
    epochs
        At most, for the supervised network that is the ceiling.
    """

    interactions: bool = False
    max_cells: int = 1500
    epochs: int = 200

    quick_options = {"max_cells": 200, "epochs": 3}

    def judge(self, problem: Problem, model: Any, *, seed: int) -> Rows:
        """Score a model's blocks; see the class."""
        held = problem.adata[_scored(problem)].copy()
        found = {name: frame.to_numpy() for name, frame in model.latents(held).items()}
        row = _wide(self._scores(problem, found, seed))
        if self.interactions:
            train = problem.adata[problem.mask("train")].copy()
            row |= _called(model.effects(train, seed=seed), simulate.true_changes(problem.adata),
                           problem.adata.uns["simulation"])  # fmt: skip
        try:
            certificate = model.certificate()
        except (AttributeError, DesignError):
            return [row]
        told = {"verdict": certificate.verdict, "reason": certificate.reason}
        return [{**row, **told, "flagged": float(not certificate.identified)}]

    def references(self, problem: Problem, *, seed: int) -> Rows:
        """Score a supervised network (ceiling), noise, the label alone and PCA."""
        scored, truth = _scored(problem), _truth(problem)
        # Test cells that are not scored stay unread by the network as well.
        cells = ~problem.mask("test") | scored
        best = evaluate.ceiling(
            problem.values(cells), {k: z[cells] for k, z in truth.items()},
            problem.condition[cells], test=scored[cells], max_epochs=self.epochs,
            max_cells=self.max_cells, log_normalise=problem.counts, seed=seed,
        )  # fmt: skip
        rows = [{"method": "ceiling", **_wide(best)}]
        nulls = evaluate.null_latents(
            problem.values(scored), {k: z[scored] for k, z in truth.items()},
            problem.condition[scored],
            log_normalise=problem.counts, seed=seed,
        )  # fmt: skip
        for name, latents in nulls.items():
            scores = _wide(self._scores(problem, latents, seed))
            rows.append({"method": name.replace("_", " "), **scores})
        return rows

    def _scores(self, problem: Problem, found: dict[str, np.ndarray], seed: int) -> pd.DataFrame:
        scored = _scored(problem)
        truth = {name: z[scored] for name, z in _truth(problem).items()}
        condition = problem.condition[scored]
        return evaluate.recovery(found, truth, condition, max_cells=self.max_cells, seed=seed)


def _scored(problem: Problem) -> np.ndarray:
    """Test cells whose condition has enough of them to be halved."""
    test = problem.mask("test")
    names, code = np.unique(problem.condition, return_inverse=True)
    of_test = np.bincount(code[test], minlength=len(names))
    return test & (of_test[code] >= MIN_CELLS)


def _truth(problem: Problem) -> dict[str, np.ndarray]:
    return {k: np.asarray(z) for k, z in problem.adata.obsm.items() if k.startswith("z")}


def _called(effects: Any, change: np.ndarray, truth: Mapping[str, Any]) -> dict[str, float]:
    """Count the interactions that are called, and the share that is none."""
    specific = np.abs(change - change.mean(1, keepdims=True))
    table = effects.interaction_genes(least=LEAST)
    chosen = table[table["selected"]]
    t, x = (
        [list(truth[axis]).index(name) for name in chosen[column]]
        for axis, column in (("treatments", "treatment"), ("covariates", "covariate"))
    )
    g = [effects.genes.index(name) for name in chosen["gene"]]
    false = specific[np.array(t, int) - 1, x, g] <= LEAST
    return {
        "interactions": float(len(chosen)),
        "false interactions": float(false.mean()) if len(chosen) else 0.0,
    }


def _wide(scores: pd.DataFrame) -> dict[str, Any]:
    row: dict[str, Any] = {}
    names = {"r2": "R2", "mcc": "MCC", "mcc_nl": "MCC-nl"}
    own = scores["latent"] == scores["truth"]
    for score in scores[own].itertuples():
        row[f"{names[score.metric]} {score.truth}"] = score.within
        if score.metric == "r2":
            row[f"pooled R2 {score.truth}"] = score.pooled
            row[f"label R2 {score.truth}"] = score.label_only
    others = scores[~own & (scores["metric"] == "r2") & scores["latent"].isin(scores["truth"])]
    if len(others):
        worst = others.loc[others["within"].idxmax()]
        row["leakage"], row["leaks"] = worst["within"], f"{worst['latent']} > {worst['truth']}"
    return row
