"""Predictions of held-out conditions, judged beside the baselines they must beat."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from pyro_fcr.analysis.conditions import condition_labels
from pyro_fcr.errors import CategoryError, DesignError, sentence
from pyro_fcr.evaluate import (
    BASELINES,
    Training,
    cell_values,
    centroid_accuracy,
    de_genes,
    de_pr_auc,
    energy_distance,
    halve,
    interaction_r2,
    interpolated_duplicate,
    pearson_change,
    principal_components,
    profile,
    r2,
    top_de_genes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyro_fcr.data import Cells
    from pyro_fcr.evaluate import PrincipalComponents

    Expectation = Callable[[Cells, int], np.ndarray]

__all__ = ["performance"]

CEILING = "training cells of the condition (ceiling)"
"""The mean of the condition's own training cells, where it has any: with noise of their own."""

RECONSTRUCTION = "reconstruction (reads the test cells)"

SPLIT_HALF = "half of the test cells (noise ceiling)"
"""One half of the test cells as a prediction; it and the next are scored on the other half."""

DUPLICATE = "interpolated half (positive control)"

HALVES = (SPLIT_HALF, DUPLICATE)

MIN_CELLS = 5
"""A condition with fewer test cells, or a covariate with fewer controls, is not scored."""


class _Condition(NamedTuple):
    treatment: str
    covariate: str
    group: int
    truth: Cells
    control: Cells


def performance(
    predict: Expectation,
    reconstruct: Callable[[Cells], np.ndarray],
    cells: Cells,
    train: np.ndarray,
    test: np.ndarray,
    *,
    name: str,
    by_condition: bool,
    sample: Expectation | None = None,
    counts: bool = True,
) -> pd.DataFrame:
    """Score a model's predictions of the treated test conditions, and the baselines'.

    A condition is predicted from training control cells of its covariates (test controls where
    training has none). Profiles are log1p of counts per 10,000 of summed counts; changes are
    against the control the prediction started from, whose noise stands in the true and in the
    predicted change alike: where effects are small, the benchmarks' held-out controls are fairer.
    DE genes come from test cells alone wherever there are enough test controls. Cells of unknown
    treatment or covariates (code -1) are left out.

    ``energy_distance`` is between the test cells and the control cells, each shifted by the
    predicted change of the mean profile (in log1p, not below zero). It judges where a prediction
    puts the cells; their spread is the controls', whatever the model says of it.
    ``energy_distance_cells`` judges predicted cells themselves, one per control cell; a mean has
    none.

    Parameters
    ----------
    predict
        Expected counts (N, G) of cells under a treatment group's number.
    reconstruct
        Expected counts (N, G) of cells as they are.
    cells
        All cells, N.
    train, test
        Boolean masks, shape (N,).
    name
        What to call the model.
    by_condition
        One row per method and condition, instead of one per method.
    sample
        Drawn counts (N, G) of cells under a treatment group's number; without it predicted cells
        are not judged.
    counts
        Whether observations are counts; if not, profiles are means and nothing is cut at zero.

    Returns
    -------
    pandas.DataFrame
        Columns ``r2``, ``r2_top100`` (of the mean profile, over all and over the top-100 DE
        genes), ``pearson_change``, ``pearson_change_top20``, ``pearson_change_top100``,
        ``pearson_change_treated`` (change against the mean of all treated training profiles of the
        covariate), ``de_pr_auc`` (genes called at FDR 0.05 ranked by predicted change),
        ``centroid_accuracy`` (share of the covariate's other test treatments that lie farther),
        ``energy_distance``, ``energy_distance_cells`` (on 50 principal components of the training
        cells; lower is better), ``interaction_r2`` (corrected for noise by halves of the test
        cells, so missing for what is made of one of them; over all conditions at once in the table
        of methods) and ``conditions``, the number of conditions scored: a baseline that needs
        conditions training does not have leaves some out. A reconstruction has read the test
        cells: it is an upper reference, not a prediction. So are the noise ceiling and the
        positive control, from half of the test cells: as noisy as what they are scored on, so
        that where cells are few a good model passes them.

    Raises
    ------
    DesignError
        If no treated test condition has enough cells.
    """
    known = (cells.treatment_id >= 0) & (cells.covariate_id >= 0)
    seen = cells.subset(train & known)
    control = cells.design.treatment_levels[0]
    labels = condition_labels(seen)
    training = Training(seen.counts, *labels, control=control, log_normalise=counts)
    baselines = [baseline().fit(training) for baseline in BASELINES.values()]
    components = principal_components(seen.counts, 50, log_normalise=counts)
    conditions = list(_conditions(cells, train, test))
    if not conditions:
        raise DesignError(
            sentence(
                "nothing to evaluate",
                where="split",
                expected=f"a treated condition with at least {MIN_CELLS} test cells and controls",
                got="none",
                hint="hold out more cells",
            )
        )
    truth, *halves = _measured(conditions, counts)
    positive = interpolated_duplicate(*halves) if len(conditions) > 2 else None
    predicted: dict[str, dict[tuple[str, str], np.ndarray]] = {}
    rows = []
    for condition in conditions:
        key = (condition.treatment, condition.covariate)
        reference = profile(condition.control.counts, log_normalise=counts)
        predictions = {
            name: profile(predict(condition.control, condition.group), log_normalise=counts)
        }
        for baseline in baselines:
            with suppress(CategoryError):
                predictions[baseline.name] = baseline.predict(*key).to_numpy()
        if key in training.profiles.index:
            predictions[CEILING] = training.profiles.loc[[key]].to_numpy()[0]
        predictions[RECONSTRUCTION] = profile(reconstruct(condition.truth), log_normalise=counts)
        predictions[SPLIT_HALF] = halves[0].loc[[key]].to_numpy()[0]
        if positive is not None:
            predictions[DUPLICATE] = positive.loc[[key]].to_numpy()[0]
        fresh = _de_control(condition, cells, test)
        compared = (condition.truth.counts, fresh.counts)
        de = top_de_genes(*compared, 100, log_normalise=counts)
        called = de_genes(*compared, log_normalise=counts)["called"]
        treated = _treated_mean(training, condition)
        start = cell_values(condition.control.counts, log_normalise=counts)
        cloud = components.transform(condition.truth.counts)
        for method, y in predictions.items():
            predicted.setdefault(method, {})[key] = y
            own_half = method in HALVES
            observed = (halves[1] if own_half else truth).loc[[key]].to_numpy()[0]
            moved = start + (y - reference)
            moved = np.clip(moved, 0, None) if counts else moved
            drawn = sample if method == name else None
            rows.append(
                {
                    "method": method,
                    "treatment": condition.treatment,
                    "covariate": condition.covariate,
                    "r2": r2(y, observed),
                    "r2_top100": r2(y, observed, de),
                    "pearson_change": pearson_change(y, observed, reference),
                    "pearson_change_top20": pearson_change(y, observed, reference, de[:20]),
                    "pearson_change_top100": pearson_change(y, observed, reference, de),
                    "pearson_change_treated": pearson_change(y, observed, treated)
                    if treated is not None
                    else np.nan,
                    "de_pr_auc": de_pr_auc(y - reference, called),
                    "centroid_accuracy": _nearer(y, key, halves[1] if own_half else truth),
                    "energy_distance": energy_distance(_scores(components, moved), cloud),
                    "energy_distance_cells": energy_distance(
                        components.transform(drawn(condition.control, condition.group)), cloud
                    )
                    if drawn
                    else np.nan,
                }
            )
    long = pd.DataFrame(rows)
    if by_condition:
        long["interaction_r2"] = [
            _interaction(m, {(t, x): predicted[m][t, x]}, halves, training)
            for m, t, x in long[["method", "treatment", "covariate"]].itertuples(index=False)
        ]
        return long.set_index(["treatment", "covariate", "method"])
    grouped = long.drop(columns=["treatment", "covariate"]).groupby("method", sort=False)
    shared = {m: _interaction(m, found, halves, training) for m, found in predicted.items()}
    return grouped.mean().assign(interaction_r2=pd.Series(shared), conditions=grouped.size())


def _measured(
    conditions: list[_Condition], counts: bool
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Profiles of the test cells of every condition: of all, and of each half."""
    index = pd.MultiIndex.from_tuples([(c.treatment, c.covariate) for c in conditions])
    values: list[list[np.ndarray]] = [[], [], []]
    for c in conditions:
        first = halve(len(c.truth))
        for found, part in zip(
            values, (c.truth, c.truth.subset(first), c.truth.subset(~first)), strict=True
        ):
            found.append(profile(part.counts, log_normalise=counts))
    one, two, three = (pd.DataFrame(np.stack(found), index=index) for found in values)
    return one, two, three


def _treated_mean(training: Training, condition: _Condition) -> np.ndarray | None:
    """Mean profile of the other treatments in the condition's covariate, where there are any."""
    t, x = (training.profiles.index.get_level_values(i) for i in (0, 1))
    others = (x == condition.covariate) & ~t.isin([training.control, condition.treatment])
    return training.profiles.to_numpy()[others].mean(0) if others.any() else None


def _nearer(y: np.ndarray, key: tuple[str, str], observed: pd.DataFrame) -> float:
    """Share of the covariate's other test treatments that lie farther than the predicted one."""
    if (observed.index.get_level_values(1) == key[1]).sum() < 2:
        return float("nan")
    asked = pd.DataFrame([y], index=pd.MultiIndex.from_tuples([key]))
    return float(centroid_accuracy(asked, observed)["accuracy"].iloc[0])


def _interaction(
    method: str,
    found: dict[tuple[str, str], np.ndarray],
    halves: list[pd.DataFrame],
    training: Training,
) -> float:
    """Interaction R^2 over the conditions whose row and column were trained; nan without any."""
    trained = set(training.profiles.index)
    held = [
        (t, x)
        for t, x in found
        # A half's own noise would be corrected by itself, to a score of 1.
        if method not in HALVES
        and (training.control, x) in trained
        and any(a == t and b != x and (training.control, b) in trained for a, b in trained)
    ]
    if not held:
        return float("nan")
    predicted = pd.DataFrame([found[key] for key in held], index=pd.MultiIndex.from_tuples(held))
    score = interaction_r2(
        predicted, (halves[0], halves[1]), training.profiles, control=training.control
    )
    return score.r2


def _conditions(cells: Cells, train: np.ndarray, test: np.ndarray) -> Iterator[_Condition]:
    treatments, covariates = condition_labels(cells)
    for x in sorted(set(cells.covariate_id) - {-1}):
        is_x = cells.covariate_id == x
        is_control = is_x & (cells.treatment_id == 0)
        for controls in (is_control & train, is_control & test):
            if controls.sum() >= MIN_CELLS:
                break
        else:
            continue
        for group in sorted(set(cells.treatment_id[is_x & test]) - {0, -1}):
            truth = is_x & test & (cells.treatment_id == group)
            if truth.sum() >= MIN_CELLS:
                first = truth.argmax()
                yield _Condition(
                    treatments[first],
                    covariates[first],
                    group,
                    cells.subset(truth),
                    cells.subset(controls),
                )


def _de_control(condition: _Condition, cells: Cells, test: np.ndarray) -> Cells:
    of_x = cells.covariate_id == condition.truth.covariate_id[0]
    fresh = test & of_x & (cells.treatment_id == 0)
    return cells.subset(fresh) if fresh.sum() >= MIN_CELLS else condition.control


def _scores(components: PrincipalComponents, log_profiles: np.ndarray) -> np.ndarray:
    return (log_profiles - components.center_g) @ components.components_kg.T
