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
    energy_distance,
    log_normalised,
    pearson_change,
    principal_components,
    profile,
    profiles,
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
"""The mean of the condition's own training cells, where it has any: what sampling noise allows."""

RECONSTRUCTION = "reconstruction (reads the test cells)"

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
) -> pd.DataFrame:
    """Score a model's predictions of the treated test conditions, and the baselines'.

    A condition is predicted from training control cells of its covariates (test controls where
    training has none). Profiles are log1p of counts per 10,000 of summed counts; changes are
    against the control the prediction started from; DE genes come from test cells alone wherever
    there are enough test controls. Cells of unknown treatment or covariates (code -1) are left
    out.

    The energy distance is between the test cells and the control cells, each shifted by the
    predicted change of the mean profile (in log1p, not below zero). It judges where a prediction
    puts the cells; their spread is the controls', whatever the model says of it.

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

    Returns
    -------
    pandas.DataFrame
        Columns ``r2``, ``r2_top100`` (of the mean profile, over all and over the top-100 DE
        genes), ``pearson_change``, ``pearson_change_top20``, ``pearson_change_top100``,
        ``energy_distance`` (on 50 principal components of the training cells; lower is better)
        and ``conditions``, the number of conditions scored: a baseline that needs conditions
        training does not have leaves some out. A reconstruction has read the test cells: it is
        an upper reference, not a prediction.

    Raises
    ------
    DesignError
        If no treated test condition has enough cells.
    """
    known = (cells.treatment_id >= 0) & (cells.covariate_id >= 0)
    seen = cells.subset(train & known)
    table = profiles(seen.counts, *condition_labels(seen))
    control = cells.design.treatment_levels[0]
    baselines = {key: cls().fit(table, control=control) for key, cls in BASELINES.items()}
    components = principal_components(seen.counts, 50)
    rows = []
    for condition in _conditions(cells, train, test):
        reference, truth = profile(condition.control.counts), profile(condition.truth.counts)
        expected = predict(condition.control, condition.group)
        reconstructed = reconstruct(condition.truth)
        predictions = {name: profile(expected)}
        key = (condition.treatment, condition.covariate)
        for baseline in baselines.values():
            with suppress(CategoryError):
                predictions[baseline.name] = baseline.predict(*key).to_numpy()
        if key in table.index:
            predictions[CEILING] = table.loc[[key]].to_numpy()[0]
        predictions[RECONSTRUCTION] = profile(reconstructed)
        de = top_de_genes(condition.truth.counts, _de_control(condition, cells, test).counts, 100)
        start = log_normalised(condition.control.counts)
        cloud = components.transform(condition.truth.counts)
        for method, predicted in predictions.items():
            moved = np.clip(start + (predicted - reference), 0, None)
            rows.append(
                {
                    "method": method,
                    "treatment": condition.treatment,
                    "covariate": condition.covariate,
                    "r2": r2(predicted, truth),
                    "r2_top100": r2(predicted, truth, de),
                    "pearson_change": pearson_change(predicted, truth, reference),
                    "pearson_change_top20": pearson_change(predicted, truth, reference, de[:20]),
                    "pearson_change_top100": pearson_change(predicted, truth, reference, de),
                    "energy_distance": energy_distance(_scores(components, moved), cloud),
                }
            )
    if not rows:
        raise DesignError(
            sentence(
                "nothing to evaluate",
                where="split",
                expected=f"a treated condition with at least {MIN_CELLS} test cells and controls",
                got="none",
                hint="hold out more cells",
            )
        )
    long = pd.DataFrame(rows)
    if by_condition:
        return long.set_index(["treatment", "covariate", "method"])
    grouped = long.drop(columns=["treatment", "covariate"]).groupby("method", sort=False)
    return grouped.mean().assign(conditions=grouped.size())


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
