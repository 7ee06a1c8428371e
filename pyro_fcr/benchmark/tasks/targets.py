"""Sparse effects: are the latents found, and which of them each treatment moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_fcr import evaluate
from pyro_fcr.benchmark.tasks.base import Task
from pyro_fcr.errors import DesignError

if TYPE_CHECKING:
    from pyro_fcr.benchmark.problem import Problem
    from pyro_fcr.benchmark.tasks.base import Rows

__all__ = ["Targets"]


@dataclass(frozen=True, kw_only=True)
class Targets(Task):
    """Match a block's latents to the true ones, and score the targets of trained treatments.

    The latents are matched by absolute correlation over the training cells (``MCC``); ``MCC held
    out`` is that of the test cells in the same order. Where a method knows ``targets()``: ``F1``
    of the entries more probable than not, ``F1 chosen``, ``FDR`` and ``power`` of those chosen at
    a level, ``AUPRC``. One row a method.

    Parameters
    ----------
    block
        The block; of the methods and in ``obsm``.
    level
        False discovery rate at which targets are chosen.
    """

    block: str = "z"
    level: float = 0.10

    def judge(self, problem: Problem, model: Any, *, seed: int) -> Rows:
        """Score a model's block and, where it has them, its targets."""
        found = model.latents(problem.adata)[self.block]
        row, order = self._matched(problem, found.to_numpy())
        try:
            # By name: a table unstacked has z_10 before z_2.
            table = model.targets(self.block)["inclusion"].unstack()[list(found.columns)]
        except (AttributeError, DesignError):
            return [row]
        simulation = problem.adata.uns["simulation"]
        trained = set(problem.treatment[problem.mask("train")])
        kept = [str(name) in trained for name in simulation["treatments"]]
        names = [str(name) for name in simulation["treatments"][kept]]
        probability = table.loc[names].to_numpy()[:, order]
        truth = np.asarray(simulation["mask"], bool)[kept]
        scores = evaluate.score_targets(probability, truth, level=self.level)
        named = {"F1": "f1", "F1 chosen": "f1_chosen", "FDR": "fdr", "power": "power",
                 "AUPRC": "auprc"}  # fmt: skip
        return [{**row, **{name: scores[key] for name, key in named.items()}}]

    def references(self, problem: Problem, *, seed: int) -> Rows:
        """Match principal components, and noise."""
        truth = np.asarray(problem.adata.obsm[self.block])
        blocks = {
            "PCA": problem.components(truth.shape[1]).transform(problem.adata.X),
            "noise": np.random.default_rng(seed).standard_normal(truth.shape),
        }
        return [{"method": name, **self._matched(problem, z)[0]} for name, z in blocks.items()]

    def _matched(self, problem: Problem, found: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
        truth, test = np.asarray(problem.adata.obsm[self.block], float), problem.mask("test")
        order, correlation = evaluate.match_latents(found[~test], truth[~test])
        held = [abs(np.corrcoef(found[test, i], truth[test, j])[0, 1])
                for j, i in enumerate(order)]  # fmt: skip
        return {
            "MCC": float(correlation.mean()),
            "MCC held out": float(np.nan_to_num(held).mean()),
        }, order
