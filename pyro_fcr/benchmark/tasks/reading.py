"""What fresh classifiers and clusterings read from the blocks of real and simulated data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pyro_fcr import evaluate
from pyro_fcr.benchmark.tasks.base import Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyro_fcr.benchmark.problem import Problem
    from pyro_fcr.benchmark.tasks.base import Rows

__all__ = ["Clustering", "Factors", "Independence"]


@dataclass(frozen=True, kw_only=True)
class Independence(Task):
    """Read treatment within covariates, and covariates within treatment, from every block.

    On the test cells, by classifiers that had no part in training. One row per method, block and
    label: the mean ``score`` over strata, its ``excess`` over chance with ``low`` and ``high``,
    and ``p`` of a permutation test of the conditional HSIC. By the graph, treatment must not be
    read from z_x, nor covariates from z_t; they should be read from the other two. Several
    covariates are read one by one, by their names; treatment within their combinations.

    Parameters
    ----------
    metric
        ``"balanced_accuracy"`` or ``"auc"``.
    max_cells
        Of a stratum, for the classifiers.
    permutations
        Of the HSIC test.
    """

    metric: Literal["balanced_accuracy", "auc"] = "balanced_accuracy"
    max_cells: int = 2000
    permutations: int = 199

    quick_options = {"permutations": 19, "max_cells": 30}

    def judge(self, problem: Problem, model: Any, *, seed: int) -> Rows:
        """Probe every block of a model."""
        held = problem.adata[problem.mask("test")].copy()
        blocks = {name: frame.to_numpy() for name, frame in model.latents(held).items()}
        return self._rows(problem, blocks, seed)

    def references(self, problem: Problem, *, seed: int) -> Rows:
        """Probe principal components."""
        test = problem.mask("test")
        scores = problem.components(16).transform(problem.values(test))
        return [{"method": "PCA", **row} for row in self._rows(problem, {"PCA": scores}, seed)]

    def _rows(self, problem: Problem, blocks: Mapping[str, np.ndarray], seed: int) -> Rows:
        test = problem.mask("test")
        t, x = problem.treatment[test], problem.covariate[test]
        probes = [("treatment", t, x), ("covariate", x, t)]
        if len(names := problem.schema.covariates) > 1:
            obs = problem.adata.obs[test]
            probes[1:] = [(name, obs[name].astype(str).to_numpy(), t) for name in names]
        rows = []
        for name, z in blocks.items():
            for label, labels, given in probes:
                if len(set(labels)) < 2:
                    continue
                found = evaluate.separability(
                    z, labels, given, metric=self.metric, max_cells=self.max_cells, seed=seed
                )
                hsic = evaluate.hsic_test(
                    z, labels, given, n_permutations=self.permutations, seed=seed
                )
                rows.append(
                    {
                        "block": name,
                        "label": label,
                        "score": found.score,
                        "excess": found.excess,
                        "low": found.interval[0],
                        "high": found.interval[1],
                        "p": hsic.p_value,
                        "HSIC": hsic.normalised,
                    }  # fmt: skip
                )
        return rows


@dataclass(frozen=True, kw_only=True)
class Clustering(Task):
    """Agreement of k-means clusters of a block with labels: NMI and ARI, on the test cells.

    What the field's figures show. A representation that is told the label wins: beside each score
    stands that of the same latents with every cell at the mean of its condition (``label only``),
    and that of the residuals (``within``). One row per method, block and label.

    Parameters
    ----------
    labels
        Columns of ``obs``.
    """

    labels: Sequence[str]

    def judge(self, problem: Problem, model: Any, *, seed: int) -> Rows:
        """Cluster every block of a model, and all side by side."""
        held = problem.adata[problem.mask("test")].copy()
        blocks = {name: frame.to_numpy() for name, frame in model.latents(held).items()}
        if len(blocks) > 1:
            blocks["all"] = np.concatenate(list(blocks.values()), axis=1)
        return self._rows(problem, blocks, seed)

    def references(self, problem: Problem, *, seed: int) -> Rows:
        """Cluster principal components, and noise."""
        test, rng = problem.mask("test"), np.random.default_rng(seed)
        scores = problem.components(16).transform(problem.values(test))
        found = {"PCA": scores, "noise": rng.standard_normal(scores.shape)}
        return [
            {"method": name, **row}
            for name, z in found.items()
            for row in self._rows(problem, {name: z}, seed)
        ]

    def _rows(self, problem: Problem, blocks: Mapping[str, np.ndarray], seed: int) -> Rows:
        test = problem.mask("test")
        obs = problem.adata.obs[test]
        labels = {name: obs[name].astype(str).to_numpy() for name in self.labels}
        scores = evaluate.cluster_agreement(blocks, labels, problem.condition[test], seed=seed)
        wide = scores.pivot(index=["latent", "labels"], columns="metric")
        names = {"score": "", "within": " within", "label_only": " label only"}
        return [
            {"block": block, "label": label,
             **{f"{metric.upper()}{names[kind]}": value for (kind, metric), value in row.items()}}
            for (block, label), row in wide.iterrows()
        ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Factors(Task):
    """Known continuous factors of real cells: R2 of kernel ridge from every block, on test cells.

    One row per method, block and factor. ``R2`` is over all test cells; ``R2 within`` over the
    residuals within the other labels of ``within``, a column of ``obs``.

    Parameters
    ----------
    factors
        By name, the columns of ``obs`` that hold it.
    log
        Factors that are read as logarithms.
    within
        By factor, the column within whose levels it is read again.
    """

    factors: Mapping[str, Sequence[str]]
    log: Sequence[str] = ()
    within: Mapping[str, str] = field(default_factory=dict)

    def judge(self, problem: Problem, model: Any, *, seed: int) -> Rows:
        """Read the factors from every block of a model."""
        held = problem.adata[problem.mask("test")].copy()
        blocks = {name: frame.to_numpy() for name, frame in model.latents(held).items()}
        return self._rows(problem, blocks, seed)

    def references(self, problem: Problem, *, seed: int) -> Rows:
        """Read the factors from principal components, depth and noise."""
        test, rng = problem.mask("test"), np.random.default_rng(seed)
        values = problem.values(test)
        total = np.log(np.asarray(values.sum(axis=1), float).reshape(-1, 1))
        found = {
            "PCA": problem.components(16).transform(values),
            "depth": total,
            "noise": rng.standard_normal((test.sum(), 8)),
        }
        return [{"method": name, **row} for name, z in found.items()
                for row in self._rows(problem, {"": z}, seed)]  # fmt: skip

    def _rows(self, problem: Problem, blocks: Mapping[str, np.ndarray], seed: int) -> Rows:
        obs = problem.adata.obs[problem.mask("test")]
        rows = []
        for name, z in blocks.items():
            for factor, columns in self.factors.items():
                y = obs[list(columns)].to_numpy(float)
                y = np.log(y) if factor in self.log else y
                row = {"block": name, "factor": factor,
                       "R2": evaluate.kernel_r2(z, y, seed=seed)}  # fmt: skip
                if factor in self.within:
                    strata = obs[self.within[factor]].astype(str).to_numpy()
                    row["R2 within"] = evaluate.kernel_r2(z, y, strata, seed=seed)
                rows.append(row)
        return rows
