"""What held-out conditions look like: every method's prediction beside baselines and ceiling."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from pyro_fcr import evaluate
from pyro_fcr.benchmark.tasks.base import Task
from pyro_fcr.benchmark.tasks.intervals import (
    Measured,
    conformal_rows,
    mean_rows,
    measure,
    model_rows,
)
from pyro_fcr.errors import BenchmarkError, CategoryError, DesignError, sentence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyro_fcr.benchmark.problem import Problem
    from pyro_fcr.benchmark.tasks.base import Rows

__all__ = ["CEILING", "DUPLICATE", "REPLICATE", "SEEN", "SINGLES", "Prediction"]

REPLICATE = "other half (replicate)"
"""The mean of the test cells that are not scored: as noisy as the truth, so no upper bound."""

CEILING = "noise ceiling"
"""The root of the halves' correlation: what the truth's noise leaves to a correlation."""

DUPLICATE = "interpolated duplicate"
"""The positive control of the metrics: :func:`~pyro_fcr.evaluate.interpolated_duplicate`."""

SINGLES = "sum of singles"
"""The control and the changes of a combination's parts, each given alone to the same cells."""

SEEN = "training cells of the condition"
"""Where it has any."""

TOP = 100
TOPS = {"": slice(None), " top 20": slice(20), " top 100": slice(TOP)}
DRAWS = 1000
MIN_FRESH = 4


@dataclass(frozen=True, kw_only=True)
class Prediction(Task):
    """Predict the mean profile of every treated test condition.

    The test cells of a condition are halved. One half is what all are scored on; the other chooses
    the differential genes, and is itself scored as a replicate. A prediction starts from the
    training control cells of the same covariates, and its change is measured from their profile.
    The true change is measured from test controls where the split has any (``controls`` in its
    recipe): else the noise of one control would stand in both changes, and a prediction that
    merely pulls it towards the mean would correlate with a truth without effect. Profiles are
    log1p of counts per 10,000 of summed counts, or means where values are no counts.

    A model is scored on the profile it expects; (``form`` "as change") on the control's profile
    moved by the difference of what it expects under treatment and control; and (``form``
    "corrected") on its ``condition_means``, which move the profile by the residuals of the
    training conditions and have a control of their own, from which their change is measured.

    One row per method and condition: ``pearson change`` over all genes and the top 20 and 100,
    ``pearson vs treated`` (the change from the mean of all treated training profiles of these
    covariates), ``R2`` of the profile over the top 100, ``DE precision`` (average precision of the
    genes called at a false discovery rate of .05, by predicted change; chance is their ``DE
    share``), ``gain`` (share of the squared length of the true change that the prediction removes;
    below 0 it is worse than no effect), ``size`` (length of the predicted change by the true
    one's), ``centroid accuracy`` (share of other treatments' profiles that are farther), and
    ``energy distance`` of the shifted control cells. One more row per method holds two scores over
    all conditions, each with a 95 % bootstrap interval over them (``low``, ``high``) and corrected
    for noise by halves of treated and control cells: ``effect R2`` of the changes, and
    ``interaction R2`` of what is left of them beside the additive rule, which scores 0.

    ``change coverage 90%`` and ``change width 90%`` judge intervals of the measured changes of
    profiles: those of ``condition_means`` with the noise of the measurement added, and two
    conformal ones around the additive rule, calibrated on its errors in the training conditions.
    Where values are counts, ``coverage 90%`` and ``width 90%`` do the same for log2 fold changes
    and a model's ``effects``.

    Parameters
    ----------
    draws
        Posterior draws per predicted cell.
    max_controls
        Control cells a prediction starts from, at most.
    """

    draws: int = 20
    max_controls: int = 1000

    quick_options = {"draws": 2, "max_controls": 20}

    def judge(self, problem: Problem, model: Any, *, seed: int) -> Rows:
        """Score a model's counterfactuals of the control cells, as they are and as changes."""
        scene = _Scene(problem, self.max_controls, seed)
        if not hasattr(model, "counterfactual"):
            raise BenchmarkError(
                sentence("the method cannot predict", where=type(model).__name__,
                         expected="counterfactual()", got="latents alone",
                         hint="leave it out of this benchmark")
            )  # fmt: skip

        def expected(t: str, x: str) -> np.ndarray:
            start = problem.adata[scene.controls[x]].copy()
            found = model.counterfactual(start, do={"treatment": t}, draws=self.draws, seed=seed)
            return problem.profile(found.X)

        whole = {key: expected(*key) for key in scene.conditions}
        groups = {x for _, x in scene.conditions}
        untreated = {x: expected(scene.control, x) for x in groups}
        change = {(t, x): scene.reference[x] + whole[t, x] - untreated[x] for t, x in whole}
        rows = scene.rows(whole)
        if problem.counts and hasattr(model, "effects"):
            told = model_rows(problem, model, scene.measured(seed), seed=seed)
            for row in rows:
                row |= told.get((row["treatment"], row["covariate"]), {})
        rows += [{**row, "form": "as change"} for row in scene.rows(change)]
        if hasattr(model, "condition_means"):
            corrected = self._corrected(problem, model, scene, seed=seed)
            rows += [{**row, "form": "corrected"} for row in corrected]
        return rows

    def _corrected(self, problem: Problem, model: Any, scene: _Scene, *, seed: int) -> Rows:
        """Score the means of conditions that residuals of the training conditions correct."""
        train = problem.adata[~problem.mask("test")].copy()
        found = model.condition_means(train, draws=self.draws, seed=seed)
        joint = {"|".join(level): " | ".join(level) for level in model.design.covariate_levels}
        at = {
            (t, x): (found.treatments.index(t), found.covariates.index(joint[x]))
            for t, x in scene.conditions
            if t in found.treatments and joint.get(x) in found.covariates
        }
        changes = {key: found.change[where] for key, where in at.items()}
        rows = scene.rows({key: found.mean[where] for key, where in at.items()}, changes)
        told = mean_rows(scene.sampled(), changes, {k: found.change_sd[v] for k, v in at.items()})
        for row in rows:
            row |= told.get((row["treatment"], row["covariate"]), {})
        return rows

    def references(self, problem: Problem, *, seed: int) -> Rows:
        """Score the baselines, the ceiling and the interpolated duplicate."""
        scene = _Scene(problem, self.max_controls, seed)
        makers: dict[str, evaluate.Baseline] = {
            name: cls().fit(scene.training) for name, cls in evaluate.BASELINES.items()
        }
        predictions: dict[str, dict[tuple[str, str], np.ndarray]] = {name: {} for name in makers}
        for key in scene.conditions:
            for name, baseline in makers.items():
                with suppress(CategoryError):
                    predictions[name][key] = baseline.predict(*key).to_numpy()
        predictions[SINGLES] = _sums(scene, problem.schema.separator)
        two, one = scene.halves
        if len(one) > 2:
            mixed = evaluate.interpolated_duplicate(one, two)
            predictions[DUPLICATE] = dict(zip(mixed.index, mixed.to_numpy(), strict=True))
        trained = dict(zip(scene.train.index, scene.train.to_numpy(), strict=True))
        seen = {key: trained[key] for key in scene.conditions if key in trained}
        predictions |= {REPLICATE: scene.other, SEEN: seen}
        rows = [
            {"method": name, **row}
            for name, predicted in predictions.items()
            if predicted
            for row in scene.rows(predicted)
        ]
        intervals = conformal_rows(problem, scene.sampled(), share=False)
        if problem.counts:
            shares = conformal_rows(problem, scene.measured(seed), share=True)
            intervals = [{**one, **two} for one, two in zip(intervals, shares, strict=True)]
        rows += intervals
        return [*rows, *({"method": CEILING, **row} for row in scene.ceiling())]


class _Scene:
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

    def measured(self, seed: int) -> dict[tuple[str, str], Measured]:
        """Measure the change of every condition, by all its test cells, with its noise."""
        found = {}
        for (t, x), halves in self._halves.items():
            fresh = self._fresh[x]
            untreated = self.controls[x] if fresh is None else fresh
            treated, control = (
                self.problem.values(np.sort(rows)) for rows in (np.concatenate(halves), untreated)
            )
            found[t, x] = measure(treated, control, seed=seed)
        return found

    def sampled(self) -> dict[tuple[str, str], Measured]:
        """Measure the change of every condition's profile, with its sampling variance."""
        sides: list[tuple[np.ndarray, np.ndarray]] = []
        sizes: list[int] = []
        for (_, x), halves in self._halves.items():
            fresh = self._fresh[x]
            for rows in (np.concatenate(halves), self.controls[x] if fresh is None else fresh):
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
            fresh = self._fresh[x]
            untreated = self.controls[x] if fresh is None else fresh
            treated, control = self.problem.values(chosen), self.problem.values(untreated)
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


def _sums(scene: _Scene, separator: str | None) -> dict[tuple[str, str], np.ndarray]:
    known = dict(zip(scene.train.index, scene.train.to_numpy(), strict=True))
    found = {}
    for t, x in scene.conditions:
        parts, own = t.split(separator) if separator else [t], known[scene.control, x]
        if len(parts) > 1 and all((part, x) in known for part in parts):
            found[t, x] = own + sum(known[part, x] - own for part in parts)
    return found
