"""A batch that training never saw: whether its cells are named right, and what shows of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_fcr import evaluate
from pyro_fcr.benchmark.tasks.base import Task

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyro_fcr.benchmark.problem import Problem
    from pyro_fcr.benchmark.tasks.base import Rows

__all__ = ["Integration"]


@dataclass(frozen=True, kw_only=True)
class Integration(Task):
    """Name the cells of the batch that was left out, and read the batch from every block.

    One row per method and block: ``macro F1`` and ``accuracy`` of the labels of the left-out cells
    by the nearest training cells; ``batch``, the balanced accuracy of fresh classifiers that read
    the batch of all cells within a label, with its ``excess`` over chance. A method's own
    classifier, where it has one, is the block ``classifier``.

    Parameters
    ----------
    label
        Column of ``obs``.
    neighbours
        Training cells that vote.
    min_cells
        Labels with fewer training or test cells are left out of the scores.
    """

    label: str
    neighbours: int = 15
    min_cells: int = 10

    quick_options = {"min_cells": 3, "neighbours": 3}

    def judge(self, problem: Problem, model: Any, *, seed: int) -> Rows:
        """Score every block of a model, and its classifier."""
        found = {name: frame.to_numpy() for name, frame in model.latents(problem.adata).items()}
        rows = [self._row(problem, name, z, seed) for name, z in found.items()]
        if self.label in {name.removesuffix("_head") for name in getattr(model, "heads", ())}:
            held = problem.adata[problem.mask("test")].copy()
            named = model.predict_labels(held, f"{self.label}_head", seed=seed)
            rows.append({"block": "classifier", **self._named(problem, named.to_numpy())})
        return rows

    def references(self, problem: Problem, *, seed: int) -> Rows:
        """Score principal components of the training cells."""
        z = problem.components(30).transform(problem.adata.X)
        return [{"method": "PCA", **self._row(problem, "PCA", z, seed)}]

    def _row(self, problem: Problem, block: str, z: np.ndarray, seed: int) -> dict[str, Any]:
        # Imported here: scikit-learn changes environment variables when it is imported.
        from sklearn.neighbors import KNeighborsClassifier

        obs, test = problem.adata.obs, problem.mask("test")
        label = obs[self.label].astype(str).to_numpy()
        batch = obs[problem.schema.batch].astype(str).to_numpy()
        z = (z - z[~test].mean(0)) / np.maximum(z[~test].std(0), 1e-8)
        near = KNeighborsClassifier(self.neighbours, weights="distance")
        named = near.fit(z[~test], label[~test]).predict(z[test])
        read = evaluate.separability(z, batch, label, max_cells=500, seed=seed)
        return {"block": block, **self._named(problem, named), "batch": read.score,
                "excess": read.excess}  # fmt: skip

    def _named(self, problem: Problem, named: np.ndarray) -> Mapping[str, float]:
        from sklearn.metrics import accuracy_score, f1_score

        label, test = problem.adata.obs[self.label].astype(str).to_numpy(), problem.mask("test")
        truth = label[test]
        seen = {name: (label[~test] == name).sum() for name in set(truth)}
        kept = [
            name for name, n in sorted(seen.items())
            if min(n, (truth == name).sum()) >= self.min_cells
        ]  # fmt: skip
        scored = np.isin(truth, kept)
        return {
            "macro F1": f1_score(truth[scored], named[scored], labels=kept, average="macro"),
            "accuracy": accuracy_score(truth[scored], named[scored]),
        }
