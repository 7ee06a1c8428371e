"""What held-out conditions look like: every method's prediction beside baselines and ceiling."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyro_fcr import evaluate
from pyro_fcr.benchmark.tasks.base import Task
from pyro_fcr.benchmark.tasks.intervals import conformal_rows, group_names, mean_rows, model_rows
from pyro_fcr.benchmark.tasks.scene import Scene
from pyro_fcr.errors import BenchmarkError, CategoryError, sentence

if TYPE_CHECKING:
    import numpy as np

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
        scene = Scene(problem, self.max_controls, seed)
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

    def _corrected(self, problem: Problem, model: Any, scene: Scene, *, seed: int) -> Rows:
        """Score the means of conditions that residuals of the training conditions correct."""
        train = problem.adata[~problem.mask("test")].copy()
        found = model.condition_means(train, draws=self.draws, seed=seed)
        joint = group_names(model.design)
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
        scene = Scene(problem, self.max_controls, seed)
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


def _sums(scene: Scene, separator: str | None) -> dict[tuple[str, str], np.ndarray]:
    known = dict(zip(scene.train.index, scene.train.to_numpy(), strict=True))
    found = {}
    for t, x in scene.conditions:
        parts, own = t.split(separator) if separator else [t], known[scene.control, x]
        if len(parts) > 1 and all((part, x) in known for part in parts):
            found[t, x] = own + sum(known[part, x] - own for part in parts)
    return found
