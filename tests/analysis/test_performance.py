"""Predictions of test conditions, scored on cells whose labels are known."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from tiny import tiny_cells

from pyro_fcr.analysis.conditions import condition_cells, condition_labels
from pyro_fcr.analysis.performance import DUPLICATE, RECONSTRUCTION, SPLIT_HALF, performance
from pyro_fcr.evaluate import BASELINES


def test_labels_of_unknown_groups_are_empty():
    cells = condition_cells(tiny_cells().design).subset([0, 5, 8])
    cells = dataclasses.replace(
        cells, treatment_id=np.array([0, -1, 2]), covariate_id=np.array([-1, 2, 2])
    )
    treatments, covariates = condition_labels(cells)
    assert treatments.tolist() == ["ctrl", "", "B"]
    assert covariates.tolist() == ["", "w", "w"]


@pytest.mark.parametrize("code", ["treatment_id", "covariate_id"])
@pytest.mark.parametrize("group", [0, 2])
def test_cells_of_unknown_groups_change_nothing(code, group):
    cells = tiny_cells()
    rng = np.random.default_rng(0)
    test = rng.random(len(cells)) < 0.5
    odd = (cells.treatment_id == group) & (rng.random(len(cells)) < 0.3)
    counts = cells.counts.copy()
    counts[odd] = counts[odd][:, ::-1]
    codes = np.where(odd, -1, getattr(cells, code))
    unknown = dataclasses.replace(cells, counts=counts, **{code: codes})

    def scores(cells, keep):
        return performance(
            lambda factual, group: factual.counts,
            lambda factual: factual.counts,
            cells.subset(keep),
            ~test[keep],
            test[keep],
            name="unchanged",
            by_condition=True,
        )

    everything = np.ones(len(cells), bool)
    pd.testing.assert_frame_equal(scores(unknown, everything), scores(unknown, ~odd))


def intensities(seed=0):
    """Cells whose values are no counts, some below zero, with an effect that is additive."""
    cells = tiny_cells()
    rng = np.random.default_rng(seed)
    genes = cells.counts.shape[1]
    of_t, of_x = rng.normal(size=(9, genes)), 2 * rng.normal(size=(9, genes))
    of_t[0] = 0
    values = of_t[cells.treatment_id] + of_x[cells.covariate_id]
    noisy = values + 0.1 * rng.normal(size=values.shape)
    return dataclasses.replace(cells, counts=noisy.astype(np.float32)), of_t


def judge(cells, of_t, *, by_condition=False):
    test = np.zeros(len(cells), bool)
    test[::2] = True

    def move(factual, group):
        return factual.counts + of_t[group] - of_t[factual.treatment_id]

    return performance(
        move,
        lambda factual: factual.counts,
        cells,
        ~test,
        test,
        name="truth",
        by_condition=by_condition,
        sample=move,
        counts=False,
    )


def test_intensities_below_zero_are_judged_as_they_are():
    cells, of_t = intensities()
    assert cells.counts.min() < 0
    table = judge(cells, of_t)
    # The mean of so few cells is noisy by about 0.1 / sqrt(cells) against effects of size 1.
    assert table.loc["truth", "r2"] > 0.98
    assert table.loc["truth", "pearson_change"] > 0.98
    assert table.loc["additive", "r2"] > 0.98
    assert table.loc["control mean", "r2"] < table.loc["truth", "r2"]
    assert table.loc["additive", "interaction_r2"] == pytest.approx(0, abs=1e-9) or np.isnan(
        table.loc["additive", "interaction_r2"]
    )


def test_predicted_cells_are_judged_where_they_can_be_drawn():
    cells, of_t = intensities()
    table = judge(cells, of_t)
    found = table["energy_distance_cells"]
    assert np.isfinite(found["truth"])
    assert found.drop("truth").isna().all()
    # Cells of the true law: no farther than the controls moved by the true change.
    assert found["truth"] < table.loc["control mean", "energy_distance"] / 4


def test_what_is_made_of_a_half_is_not_corrected_by_it():
    # Its interaction against itself and the other half would be 1 whatever the noise.
    table = judge(*intensities())
    assert {SPLIT_HALF, DUPLICATE} <= set(table.index)
    assert table.loc[[SPLIT_HALF, DUPLICATE], "interaction_r2"].isna().all()
    assert np.isfinite(table.loc["truth", "interaction_r2"])


def test_noise_ceiling_and_positive_control_are_in_the_table():
    table = judge(*intensities(), by_condition=True)
    methods = set(table.index.get_level_values("method"))
    assert {SPLIT_HALF, DUPLICATE, RECONSTRUCTION} <= methods
    assert set(BASELINES) <= methods
    by_method = table.groupby("method")["r2"].mean()
    assert by_method[SPLIT_HALF] > 0.98
    assert by_method["noise"] < by_method[SPLIT_HALF]
