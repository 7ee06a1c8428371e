"""Cells of several batches: whether held-out ones are named right, and what shows of the batch."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
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
    """Name the held-out cells by the schema's first covariate, and read the batch from blocks.

    One row per method and block. ``macro F1``, ``balanced`` and ``accuracy``: labels of the test
    cells by their nearest training cells; a method's own classifier, where it has one, is the
    block ``classifier``. ``batch``: balanced accuracy of fresh classifiers that read the batch
    within a label, with its ``excess`` over chance: of the test cells where these come from
    several batches, of all cells where a batch was left out. In the first case there are also
    ``label excess``, the label read within a batch, and, where scib-metrics is installed, its
    scores of the test cells as ``scib NAME`` (Luecken et al. 2022).

    Parameters
    ----------
    neighbours
        Training cells that vote.
    min_cells
        Labels with fewer training or test cells are left out of the scores.
    """

    neighbours: int = 15
    min_cells: int = 10

    quick_options = {"min_cells": 3, "neighbours": 3}

    def judge(self, problem: Problem, model: Any, *, seed: int) -> Rows:
        """Score every block of a model, and its classifier."""
        found = {name: frame.to_numpy() for name, frame in model.latents(problem.adata).items()}
        rows = [self._row(problem, name, z, seed) for name, z in found.items()]
        head = f"{problem.schema.covariates[0]}_head"
        if head in getattr(model, "heads", ()):
            held = problem.adata[problem.mask("test")].copy()
            named = model.predict_labels(held, head, seed=seed)
            rows.append({"block": "classifier", **self._named(problem, named.to_numpy())})
        return rows

    def references(self, problem: Problem, *, seed: int) -> Rows:
        """Score principal components of the training cells."""
        z = problem.components(30).transform(problem.adata.X)
        return [{"method": "PCA", **self._row(problem, "PCA", z, seed)}]

    def _row(self, problem: Problem, block: str, z: np.ndarray, seed: int) -> dict[str, Any]:
        # Imported here: scikit-learn changes environment variables when it is imported.
        from sklearn.neighbors import KNeighborsClassifier

        test = problem.mask("test")
        label, batch = _labels(problem)
        near = KNeighborsClassifier(self.neighbours, weights="distance")
        named = near.fit(z[~test], label[~test]).predict(z[test])
        apart = len(set(batch[test])) > 1
        cells = test if apart else np.ones_like(test)
        z, label, batch = z[cells], label[cells], batch[cells]
        most = 2000 if apart else 500
        read = evaluate.separability(z, batch, label, max_cells=most, seed=seed)
        row = {"block": block, **self._named(problem, named), "batch": read.score,
               "excess": read.excess}  # fmt: skip
        if not apart:
            return row
        told = evaluate.separability(z, label, batch, seed=seed)
        return {**row, "label excess": told.excess, **self._scib(z, label, batch)}

    def _scib(self, z: np.ndarray, label: np.ndarray, batch: np.ndarray) -> dict[str, float]:
        if find_spec("scib_metrics") is None:
            return {}
        from anndata import AnnData
        from threadpoolctl import threadpool_limits

        # Labels of a handful of cells have no neighbourhoods to be scored.
        names, code, size = np.unique(label, return_inverse=True, return_counts=True)
        kept = size[code] >= self.min_cells
        adata = AnnData(np.zeros((int(kept.sum()), 1), "float32"), obsm={"z": z[kept]})
        adata.obs["label"], adata.obs["batch"] = names[code[kept]], batch[kept]
        # Merely imported, scib-metrics gives OpenMP a thread a core, and leaves it so.
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from scib_metrics.benchmark import BatchCorrection, Benchmarker, BioConservation

            bench = Benchmarker(
                adata,
                batch_key="batch",
                label_key="label",
                embedding_obsm_keys=["z"],
                bio_conservation_metrics=BioConservation(),
                batch_correction_metrics=BatchCorrection(pcr_comparison=False),
                pre_integrated_embedding_obsm_key="z",
                progress_bar=False,
            )
            bench.benchmark()
            scores = bench.get_results(min_max_scale=False).loc["z"]
        return {f"scib {name}": float(value) for name, value in scores.items()}

    def _named(self, problem: Problem, named: np.ndarray) -> Mapping[str, float]:
        from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

        label, test = _labels(problem)[0], problem.mask("test")
        truth = label[test]
        seen = {name: (label[~test] == name).sum() for name in set(truth)}
        kept = [
            name for name, n in sorted(seen.items())
            if min(n, (truth == name).sum()) >= self.min_cells
        ]  # fmt: skip
        scored = np.isin(truth, kept)
        with warnings.catch_warnings():
            # A label that is predicted but not there lowers no other's recall.
            warnings.filterwarnings("ignore", "y_pred contains classes not in y_true")
            balanced = balanced_accuracy_score(truth[scored], named[scored])
        return {
            "macro F1": f1_score(truth[scored], named[scored], labels=kept, average="macro"),
            "balanced": balanced,
            "accuracy": accuracy_score(truth[scored], named[scored]),
        }


def _labels(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    obs, schema = problem.adata.obs, problem.schema
    return tuple(obs[name].astype(str).to_numpy() for name in (schema.covariates[0], schema.batch))
