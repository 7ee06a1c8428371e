"""Predictions of test conditions, scored on cells whose labels are known."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from tiny import tiny_cells

from pyro_fcr.analysis.conditions import condition_cells, condition_labels
from pyro_fcr.analysis.performance import performance


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
