"""What predictions are scored against: held-out profiles, controls, metrics."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from pyro_fcr import evaluate
from pyro_fcr.benchmark.tasks.intervals import Measured, measure
from pyro_fcr.errors import CategoryError, DesignError, sentence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyro_fcr.benchmark.problem import Problem
    from pyro_fcr.benchmark.tasks.base import Rows

__all__ = ["Scene"]

TOP = 100
TOPS = {"": slice(None), " top 20": slice(20), " top 100": slice(TOP)}
DRAWS = 1000
MIN_FRESH = 4


class Scene:
    """What predictions are scored against; the same for every method of a job's data and seed."""

    def __init__(self, problem: Problem, max_controls: int, seed: int) -> None:
        self.problem = problem
        train, test = ~problem.mask("test"), problem.mask("test")
        control, rng = problem.schema.control, np.random.default_rng(seed)
        self.control = str(control)
        self.training = problem.training(train)
        self.train = self.training.profiles
        self.controls: dict[str, np.ndarray] = {}
        self._fresh: dict[str, np.ndarray | None] = {}
        halves: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
        for x in sorted(set(problem.covariate)):
            of_x = problem.covariate == x
            start = np.flatnonzero(of_x & train & (problem.treatment == self.control))
            if len(start) < 2:
                continue
            self.controls[x] = np.sort(rng.permutation(start)[:max_controls])
            for t in sorted(set(problem.treatment[of_x & test]) - {self.control}):
                cells = rng.permutation(np.flatnonzero(of_x & test & (problem.treatment == t)))
                if len(cells) >= problem.min_cells:
                    halves[t, x] = (cells[::2], cells[1::2])
            fresh = np.flatnonzero(of_x & test & (problem.treatment == self.control))
            self._fresh[x] = rng.permutation(fresh) if len(fresh) >= MIN_FRESH else None
        if not halves:
            raise DesignError(
                sentence(
                    "nothing to predict",
                    where="split",
                    expected=f"a treated condition with {problem.min_cells} test cells and "
                    "training controls",
                    got="none",
                    hint="hold out more cells, or lower min_cells",
                )
            )
        self.conditions = list(halves)
        self._halves = halves
        index = pd.MultiIndex.from_tuples(self.conditions, names=["treatment", "covariate"])
        self.halves = tuple(
            pd.DataFrame(
                [problem.profile(problem.values(halves[key][i])) for key in self.conditions],
                index=index,
                columns=self.train.columns,
            )  # fmt: skip
            for i in (0, 1)
        )
        self._truth, self.other = (
            dict(zip(self.conditions, half.to_numpy(), strict=True)) for half in self.halves
        )

        def measured(rows: np.ndarray) -> np.ndarray:
            return problem.profile(problem.values(rows))

        # Of the cells that predictions start from, not of all controls.
        self.reference = {x: measured(rows) for x, rows in self.controls.items()}
        self._measured = {
            x: (self.reference[x],) * 3
            if fresh is None
            else (measured(fresh), measured(fresh[::2]), measured(fresh[1::2]))
            for x, fresh in self._fresh.items()
        }
        """Profile of the controls that changes are measured from, and of two halves of them."""

    def _untreated(self, x: str) -> np.ndarray:
        """Return the test controls of a covariate group, or the training ones if they are few."""
        fresh = self._fresh[x]
        return self.controls[x] if fresh is None else fresh

    def measured(self, seed: int) -> dict[tuple[str, str], Measured]:
        """Measure the change of every condition, by all its test cells, with its noise."""
        found = {}
        for (t, x), halves in self._halves.items():
            sides = np.concatenate(halves), self._untreated(x)
            treated, control = (self.problem.values(np.sort(rows)) for rows in sides)
            found[t, x] = measure(treated, control, seed=seed)
        return found

    def sampled(self) -> dict[tuple[str, str], Measured]:
        """Measure the change of every condition's profile, with its sampling variance."""
        sides: list[tuple[np.ndarray, np.ndarray]] = []
        sizes: list[int] = []
        for (_, x), halves in self._halves.items():
            for rows in (np.concatenate(halves), self._untreated(x)):
                values = self.problem.values(np.sort(rows))
                dense = values.toarray() if sp.issparse(values) else np.asarray(values)
                sides.append(evaluate.sampled_profile([dense], log_normalise=self.problem.counts))
                sizes.append(len(rows))
        means = np.stack([mean for mean, _ in sides])
        noise = evaluate.pooled_variances(np.stack([variance for _, variance in sides]), sizes)
        return {
            key: Measured(means[2 * i] - means[2 * i + 1], noise[2 * i] + noise[2 * i + 1])
            for i, key in enumerate(self.conditions)
        }

    @cached_property
    def _de(self) -> dict[tuple[str, str], pd.DataFrame]:
        """Genes by falling absolute Welch t of the half that is not scored, or of both."""
        found = {}
        for (t, x), (_, chosen) in self._halves.items():
            if len(chosen) < 2:
                chosen = np.concatenate(self._halves[t, x])
            treated, control = map(self.problem.values, (chosen, self._untreated(x)))
            table = evaluate.de_genes(treated, control, log_normalise=self.problem.counts)
            found[t, x] = table.sort_values("t", key=np.abs, ascending=False, kind="stable")
        return found

    def _start(self, x: str) -> np.ndarray:
        return self.problem.transform(self.problem.values(self.controls[x]))

    @cached_property
    def _components(self) -> evaluate.PrincipalComponents:
        return self.problem.components()

    def rows(
        self,
        predicted: Mapping[tuple[str, str], np.ndarray],
        changes: Mapping[tuple[str, str], np.ndarray] | None = None,
    ) -> Rows:
        """Score profiles, and the changes predicted with them; else those from the controls."""
        if changes is None:
            changes = {key: value - self.reference[key[1]] for key, value in predicted.items()}
        centroid = self._centroid(predicted)
        rows = [
            {**self._row(key, value, changes[key]), "centroid accuracy": centroid.get(key)}
            for key, value in predicted.items()
        ]
        whole = {**self._effect(changes), **self._interaction(changes)}
        return [*rows, {"treatment": "*", "covariate": "*", **whole}] if whole else rows

    def _row(
        self, key: tuple[str, str], predicted: np.ndarray, change: np.ndarray
    ) -> dict[str, Any]:
        t, x = key
        truth = self._truth[key]
        wanted = truth - self._measured[x][0]
        table = self._de[key]
        de = table.index.to_numpy()[:TOP]
        row: dict[str, Any] = {"treatment": t, "covariate": x, "cells": len(self._halves[key][0])}
        nothing = np.zeros(len(change))
        for name, genes in TOPS.items():
            row[f"pearson change{name}"] = evaluate.pearson_change(
                change, wanted, nothing, de[genes] if name else None
            )
        if x in self._treated:
            row["pearson vs treated"] = evaluate.pearson_change(predicted, truth, self._treated[x])
        row["R2 top 100"] = evaluate.r2(predicted, truth, de)
        called = table["called"].sort_index().to_numpy()
        row["DE precision"] = evaluate.de_pr_auc(change, called)
        row["DE share"] = float(called.mean())
        apart = float((wanted**2).sum())
        row["gain"] = 1 - float(((change - wanted) ** 2).sum()) / apart
        row["size"] = float(np.sqrt((change**2).sum() / apart))
        moved = self._start(x) + change
        if self.problem.counts:
            moved = np.clip(moved, 0, None)
        part = self._components
        cloud = part.transform(self.problem.values(self._halves[key][0]))
        if len(cloud) > 1:
            row["energy distance"] = evaluate.energy_distance(
                (moved - part.center_g) @ part.components_kg.T, cloud
            )
        return row

    @cached_property
    def _treated(self) -> dict[str, np.ndarray]:
        """Mean treated training profile of every covariate group, or of all where it has none."""
        treated = self.train[self.train.index.get_level_values(0) != self.control]
        if treated.empty:
            return {}
        by_x = treated.groupby(level=1).mean()
        everywhere = treated.to_numpy().mean(0)
        return {x: by_x.loc[x].to_numpy() if x in by_x.index else everywhere
                for x in self.controls}  # fmt: skip

    @cached_property
    def _observed(self) -> pd.DataFrame:
        """Every treated profile that predictions are told apart by: test ones before training."""
        whole = pd.concat(
            [self.halves[0], self.train.drop(index=self.conditions, errors="ignore")]
        )
        return whole[whole.index.get_level_values(0) != self.control]

    def _centroid(self, predicted: Mapping[tuple[str, str], np.ndarray]) -> dict[Any, float]:
        several = self._observed.groupby(level=1).size()
        keys = [key for key in predicted if several[key[1]] > 1]
        if not keys:
            return {}
        index = pd.MultiIndex.from_tuples(keys)
        frame = pd.DataFrame([predicted[key] for key in keys], index, self.train.columns)
        return evaluate.centroid_accuracy(frame, self._observed)["accuracy"].to_dict()

    @cached_property
    def _additive(self) -> dict[tuple[str, str], np.ndarray]:
        """The additive rule's prediction of every condition it can predict."""
        rule, found = evaluate.Additive().fit(self.training), {}
        for key in self.conditions:
            with suppress(CategoryError):
                found[key] = rule.predict(*key).to_numpy()
        return found

    def ceiling(self) -> Rows:
        """Correlations alone: of a truth without noise with the noisy half, in expectation."""
        rows = []
        for t, x in self.conditions:
            _, first, second = self._measured[x]
            one, two = self._truth[t, x] - first, self.other[t, x] - second
            row: dict[str, Any] = {"treatment": t, "covariate": x}
            de = self._de[t, x].index.to_numpy()
            for name, genes in TOPS.items():
                kept = de[genes] if name else None
                row[f"pearson change{name}"] = _root(one, two, np.zeros(len(one)), kept)
            if x in self._treated:
                row["pearson vs treated"] = _root(
                    self._truth[t, x], self.other[t, x], self._treated[x], None
                )
            rows.append(row)
        return rows

    def _effect(self, changes: Mapping[tuple[str, str], np.ndarray]) -> dict[str, float]:
        nothing = np.zeros(self.train.shape[1])
        return self._explained("effect", changes, dict.fromkeys(changes, nothing))

    def _interaction(self, changes: Mapping[tuple[str, str], np.ndarray]) -> dict[str, float]:
        """Score the interactions of the conditions whose treatment trained elsewhere."""
        rule = {key: value - self.reference[key[1]] for key, value in self._additive.items()}
        return self._explained("interaction", changes, rule)

    def _explained(
        self,
        name: str,
        changes: Mapping[tuple[str, str], np.ndarray],
        base: Mapping[tuple[str, str], np.ndarray],
    ) -> dict[str, float]:
        """Score what is left of the changes beside a base, as evaluate.interaction_r2 does."""
        keys = [key for key in changes if key in base]
        if len(keys) < 2:
            return {}
        left = np.stack([base[key] for key in keys])
        one = np.stack([self._truth[t, x] - self._measured[x][1] for t, x in keys]) - left
        two = np.stack([self.other[t, x] - self._measured[x][2] for t, x in keys]) - left
        hat = np.stack([changes[key] for key in keys]) - left
        # Sums per condition, so that a bootstrap over them is cheap.
        missed, shared = ((one - hat) * (two - hat)).sum(1), (one * two).sum(1)
        drawn = np.random.default_rng(0).integers(len(keys), size=(DRAWS, len(keys)))
        with np.errstate(invalid="ignore", divide="ignore"):
            scores = 1 - missed[drawn].sum(1) / shared[drawn].sum(1)
        low, high = np.nanquantile(scores, [0.025, 0.975])
        r = float((one * two).sum() / np.sqrt((one**2).sum() * (two**2).sum()))
        known = shared.sum() > 0
        return {
            f"{name} R2": 1 - missed.sum() / shared.sum() if known else float("nan"),
            f"{name} low": low,
            f"{name} high": high,
            f"{name} reliability": 2 * r / (1 + r) if r > -1 else float("nan"),
            f"{name} conditions": len(keys),
        }


def _root(
    one: np.ndarray, two: np.ndarray, reference: np.ndarray, genes: np.ndarray | None
) -> float:
    return float(np.sqrt(max(evaluate.pearson_change(one, two, reference, genes), 0.0)))
