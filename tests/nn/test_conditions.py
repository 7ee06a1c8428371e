"""Condition tables, worked by hand."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from tiny import levels_design, tiny_adata, tiny_cells

from pyro_fcr.analysis.conditions import condition_cells
from pyro_fcr.data import Design, Schema
from pyro_fcr.nn import ConditionTable
from pyro_fcr.nn.conditions import GAIN


def filled(cells, parents):
    table = ConditionTable(cells.design, parents, torch.ones(2))
    for parameter in table.parameters():
        torch.nn.init.normal_(parameter)
    return table


def one(cells, **do):
    """The batch of a single cell under the given labels."""
    return cells.design.do(cells.subset([0]), do).batch()


@pytest.fixture
def cells():
    return tiny_cells(tiny_adata(combo=True, per_condition=8))


def test_effects_by_hand(cells):
    table = filled(cells, ["treatment", "covariates"])
    eta, a, b, c = table.intercept, table.covariates, table.treatment, table.interaction
    assert cells.design.treatments == ("A", "B")
    for x, name in enumerate("uvw"):
        expected = {
            "ctrl": eta + a[x],
            "A": eta + a[x] + b[0] + c[0, x],
            "A+B": eta + a[x] + b[0] + b[1] + c[0, x] + c[1, x],
        }
        for treatment, value in expected.items():
            out = table(one(cells, treatment=treatment, type=name))
            torch.testing.assert_close(out[0], GAIN * value)


def test_a_control_has_no_treatment_term(cells):
    table = filled(cells, ["treatment", "covariates"])
    covariates_only = filled(cells, ["covariates"])
    covariates_only.intercept.data = table.intercept.data
    covariates_only.covariates.data = table.covariates.data
    control = cells.batch(cells.treatment_id == 0)
    torch.testing.assert_close(table(control), covariates_only(control))


def test_doses_weigh_the_effects():
    adata = tiny_adata(per_condition=8)
    adata.obs["dose"] = np.where(adata.obs["drug"] == "ctrl", 0.0, 2.0)
    cells = tiny_cells(adata, dose="dose")
    table = filled(cells, ["treatment"])
    # In units of the dose that training used.
    out = table(one(cells, treatment="B", dose=0.5))
    torch.testing.assert_close(out[0], GAIN * (table.intercept + 0.25 * table.treatment[1]))


def test_the_unit_of_the_dose_does_not_matter():
    outputs, found = [], []
    for unit in (1.0, 1e4):
        adata = tiny_adata(per_condition=8)
        rows = np.arange(adata.n_obs) % 2
        adata.obs["dose"] = np.where(adata.obs["drug"] == "ctrl", 0.0, 0.5 + rows) * unit
        cells = tiny_cells(adata, dose="dose")
        torch.manual_seed(0)
        table = ConditionTable(cells.design, ["treatment", "covariates"], torch.ones(2))
        torch.nn.init.normal_(table.treatment)
        torch.nn.init.normal_(table.interaction)
        batch = cells.batch()
        assert batch.treatment.max() == 1.5 * unit
        outputs.append(table(batch))
        table.refit(batch, outputs[0].detach())
        found.append(table(batch))
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(found[0], outputs[0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found[1], outputs[0], atol=1e-3, rtol=1e-3)
    assert not any("unit" in name for name in table.state_dict())


def test_batch_and_unread_parents(cells):
    lanes = tiny_cells(batch="lane")
    table = filled(lanes, ["batch"])
    batch = lanes.batch(slice(0, 20))
    torch.testing.assert_close(table(batch), GAIN * (table.intercept + table.batch[batch.batch]))
    changed = batch.replace(treatment=batch.treatment + 1, covariates=batch.covariates * 0)
    torch.testing.assert_close(table(batch), table(changed))


def two_covariates():
    """Donor and type jointly; the pair (d1, v) is never seen."""
    rows = [(t, x, d) for t in ("c", "A") for x, d in [("u", "d0"), ("u", "d1"), ("v", "d0")]]
    rows = [row for row in rows for _ in range(6)]
    obs = pd.DataFrame(rows, columns=["drug", "type", "donor"], dtype=str)
    obs.index = [f"n{i}" for i in range(len(rows))]
    counts = np.random.default_rng(0).poisson(5.0, (len(rows), 4)).astype("float32")
    adata = ad.AnnData(counts, obs=obs)
    schema = Schema(treatment="drug", control="c", covariates=["type", "donor"])
    return Design.fit(adata, schema).encode(adata)


def test_unseen_joint_covariates_fall_back_on_their_main_effects():
    cells = two_covariates()
    assert cells.design.n_covariate_levels == 3
    table = filled(cells, ["treatment", "covariates"])
    assert table.covariates.shape == (2 + 2 + 3, 2)
    seen = one(cells, treatment="A", type="v", donor="d0")
    joint = 4 + int(seen.covariate_id)
    a, b, c = table.covariates, table.treatment[0], table.interaction[0]
    torch.testing.assert_close(
        table(seen)[0],
        GAIN * (table.intercept + a[1] + a[2] + a[joint] + b + c[1] + c[2] + c[joint]),
    )
    unseen = one(cells, treatment="A", type="v", donor="d1")
    assert int(unseen.covariate_id) == -1
    torch.testing.assert_close(
        table(unseen)[0], GAIN * (table.intercept + a[1] + a[3] + b + c[1] + c[3])
    )


def test_interactions_and_joint_effects_start_at_zero():
    cells = two_covariates()
    table = ConditionTable(cells.design, ["treatment", "covariates"], torch.ones(2))
    assert table.interaction.abs().sum() == 0
    assert table.covariates[4:].abs().sum() == 0
    assert table.covariates[:4].abs().min() > 0


def test_rows_without_training_conditions_are_zeroed():
    cells = tiny_cells(tiny_adata(combo=True, per_condition=8))
    table = filled(cells, ["treatment", "covariates"])
    before = {name: value.clone() for name, value in table.named_parameters()}
    few = one(cells, treatment="B", type="u"), one(cells, treatment="ctrl", type="w")
    batch = few[0].replace(
        **{
            name: torch.cat([getattr(cell, name) for cell in few])
            for name in ("treatment", "covariates")
        }
    )
    table.zero_unseen(batch)
    assert not table.treatment[0].any()
    assert not table.covariates[1].any()
    torch.testing.assert_close(table.treatment[1], before["treatment"][1])
    torch.testing.assert_close(table.covariates[[0, 2]], before["covariates"][[0, 2]])
    for name in ("intercept", "interaction"):
        torch.testing.assert_close(getattr(table, name), before[name])
    # A table that reads neither has nothing to lose.
    ConditionTable(cells.design, [], torch.ones(2)).zero_unseen(batch)


def test_joint_rows_outlive_zeroing_of_their_levels():
    cells = two_covariates()
    table = filled(cells, ["covariates"])
    before = table.covariates.clone()
    table.zero_unseen(one(cells, type="u", donor="d1"))
    assert not table.covariates[[1, 2]].any()
    torch.testing.assert_close(table.covariates[[0, 3, 4, 5, 6]], before[[0, 3, 4, 5, 6]])


def test_unseen_pairs_take_their_levels_usual_interaction_shrunk():
    design = levels_design(4, 3)
    table = ConditionTable(design, ["treatment", "covariates"], torch.ones(1))
    by_hand = torch.tensor([[2.0, -1.0, 1.0], [4.0, 1.0, 3.0], [6.0, 0.0, 0.0]])
    table.interaction.data = by_hand[..., None].clone()
    everything = condition_cells(design)
    seen = ~((everything.treatment_id == 3) & (everything.covariate_id == 2))
    batch = everything.subset(seen).batch()
    table.complete(batch)
    # Means 4, 0, 2 of 3, 3, 2 seen pairs; within (8 + 2 + 2) / 5; between 20/3 - 2.8/3.
    within, between = 2.4, 20 / 3 - 2.8 / 3
    expected = by_hand.clone()
    expected[2, 2] = 2 * between / (between + within / 2)
    torch.testing.assert_close(table.interaction[..., 0], expected)
    table.complete(batch)
    torch.testing.assert_close(table.interaction[..., 0], expected)


def test_levels_that_agree_on_nothing_lend_nothing():
    design = levels_design(4, 3)
    table = ConditionTable(design, ["treatment", "covariates"], torch.ones(1))
    # Every level's mean is smaller than its noise.
    table.interaction.data = torch.tensor([[3.0, -3.0, 3.0], [-3.0, 3.0, -3.0], [0.1, 0.0, 9.0]])[
        ..., None
    ]
    everything = condition_cells(design)
    seen = ~((everything.treatment_id == 3) & (everything.covariate_id == 2))
    table.complete(everything.subset(seen).batch())
    assert table.interaction[2, 2, 0] == 0
    # A single treatment leaves no way to tell noise from habit.
    alone = ConditionTable(levels_design(2, 3), ["treatment", "covariates"], torch.ones(1))
    before = alone.interaction.clone()
    alone.complete(condition_cells(levels_design(2, 3)).batch())
    torch.testing.assert_close(alone.interaction, before)
