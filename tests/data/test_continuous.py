"""Continuous covariates: read, standardised, set by do, written back, kept; parents by column."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from tiny import SIZES, fit, tiny_adata, tiny_fcr, tiny_schema

import pyro_fcr as pf
from pyro_fcr.data import Design
from pyro_fcr.errors import CategoryError, DesignError, DesignWarning, SchemaError, SlotError
from pyro_fcr.nn import ConditionTable
from pyro_fcr.nn.conditions import GAIN
from pyro_fcr.penalties.base import find_label


@pytest.fixture(scope="module")
def adata():
    found = tiny_adata(per_condition=8)
    found.obs["age"] = np.linspace(20.0, 60.0, found.n_obs)
    return found


@pytest.fixture(scope="module")
def schema():
    return tiny_schema(continuous="age", batch="lane")


@pytest.fixture(scope="module")
def design(adata, schema):
    return Design.fit(adata, schema)


def test_standardised_by_the_training_cells(adata, design):
    ages = adata.obs["age"].to_numpy()
    assert design.continuous == {"age": (pytest.approx(40.0), pytest.approx(ages.std()))}
    cells = design.encode(adata[:5])
    expected = (ages[:5, None] - 40.0) / ages.std()
    np.testing.assert_allclose(cells.continuous, expected, rtol=1e-5)
    np.testing.assert_allclose(cells.batch().continuous.numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(cells.subset([3]).continuous, expected[[3]], rtol=1e-5)
    np.testing.assert_allclose(cells.obs()["age"], ages[:5], rtol=1e-5)


def test_do_sets_a_number_in_its_own_unit(adata, design):
    cells = design.encode(adata[:3])
    changed = design.do(cells, {"age": 40})
    np.testing.assert_allclose(changed.continuous, 0.0, atol=1e-6)
    np.testing.assert_array_equal(changed.covariate_id, cells.covariate_id)
    with pytest.raises(DesignError, match=r"'age' is a continuous covariate.*'old'"):
        design.do(cells, {"age": "old"})
    assert design.causes({"age": 1}) == {"covariates", "age"}
    assert design.causes({"type": "u"}) == {"covariates", "type"}
    assert design.causes({"lane": "l0"}) == {"batch", "lane"}


def test_do_sets_one_number_of_several_and_a_dose_needs_its_treatment(adata):
    several = adata.copy()
    several.obs["bmi"] = np.linspace(30.0, 20.0, several.n_obs)
    several.obs["dose"] = np.where(several.obs["drug"] == "ctrl", 0.0, 2.0)
    design = Design.fit(several, tiny_schema(continuous=["age", "bmi"], dose="dose"))
    cells = design.encode(several[:4])
    older = design.do(cells, {"bmi": 25.0})
    np.testing.assert_array_equal(older.continuous[:, 0], cells.continuous[:, 0])
    np.testing.assert_allclose(older.continuous[:, 1], 0.0, atol=1e-6)
    bare = several[:4].copy()
    bare.obs = bare.obs.drop(columns=["drug", "dose"])
    with pytest.raises(DesignError, match="a dose for cells whose treatment is not known"):
        design.do(design.encode(bare, labels="optional"), {"dose": 1.0})


def test_absent_or_ignored_columns(adata, design):
    bare = ad.AnnData(adata.X, var=adata.var)
    for cells in (
        design.encode(bare, labels="optional"),
        design.encode(adata, labels="ignored"),
    ):
        assert cells.unknown == {"drug", "type", "age", "lane"}
        assert not cells.continuous.any()
        assert "age" not in cells.obs()
    assert "age" in adata.obs


@pytest.mark.parametrize("bad", [np.nan, np.inf, "old", None])
def test_what_is_no_number_is_refused(adata, schema, bad):
    broken = adata.copy()
    broken.obs["age"] = [bad, *adata.obs["age"].iloc[1:].astype(object)]
    with pytest.raises(SchemaError, match=r"unusable continuous covariates in column 'age'"):
        Design.fit(broken, schema)


def test_a_constant_is_warned_of(adata):
    same = adata.copy()
    same.obs["age"] = 3.0
    with pytest.warns(DesignWarning, match="covariate 'age' is constant.*3 in every cell"):
        design = Design.fit(same, tiny_schema(continuous="age"))
    assert design.continuous == {"age": (3.0, 1.0)}


def test_a_column_has_one_role():
    for clash in ({"continuous": "type"}, {"continuous": "drug"}, {"continuous": ["a", "a"]}):
        with pytest.raises(SchemaError, match="a column named twice"):
            tiny_schema(**clash)
    with pytest.raises(SchemaError, match="a column named twice"):
        tiny_schema(batch="lane", continuous="lane")


def test_json_round_trip(design):
    again = Design.from_dict(json.loads(json.dumps(design.to_dict())))
    assert again == design
    old = design.to_dict()
    del old["continuous"]
    del old["schema"]["continuous"]
    assert Design.from_dict(old).continuous == {}


def test_parent_of_a_column(design):
    names = {"drug": "treatment", "type": "type", "age": "age", "lane": "lane", "batch": "lane"}
    assert {name: design.parent(name) for name in names} == names
    with pytest.raises(CategoryError, match="'colour'"):
        design.parent("colour")


def test_roles_of_parents(design):
    assert design.roles({"type", "age"}) == {"covariates"}
    assert design.roles({"lane", "treatment"}) == {"batch", "treatment"}
    assert design.roles({"covariates", "type"}) == {"covariates"}
    assert design.roles(()) == frozenset()


@pytest.fixture(scope="module")
def crossed():
    obs = pd.DataFrame(
        [(x, s, d) for x in "uvw" for s in "pq" for d in "mn" for _ in range(6)],
        columns=["type", "site", "donor"],
    )
    obs["age"] = np.arange(len(obs), dtype=float)
    obs.index = obs.index.astype(str)
    adata = ad.AnnData(np.ones((len(obs), 2), "float32"), obs=obs)
    return Design.fit(
        adata, pf.Schema(covariates=["type", "site", "donor"], continuous="age")
    ), adata


def test_table_reads_the_columns_it_names_and_no_other(crossed):
    design, adata = crossed
    batch = design.encode(adata).batch()
    table = ConditionTable(design, {"type", "donor", "age"}, torch.full((2,), 0.5))
    with torch.no_grad():
        table.covariates.normal_()
        rows = table.covariates
        expected = GAIN * (
            table.intercept
            + rows[:3][batch.covariates[:, 0]]
            + rows[3:5][batch.covariates[:, 2]]
            + rows[5:11][2 * batch.covariates[:, 0] + batch.covariates[:, 2]]
            + rows[11] * batch.continuous
        )
    torch.testing.assert_close(table(batch), expected)
    assert rows.shape == (12, 2)
    with pytest.raises(SlotError, match="no label 'sight' to read"):
        ConditionTable(design, {"sight"}, torch.ones(2))


def test_all_covariates_include_the_numbers(crossed):
    design, adata = crossed
    table = ConditionTable(design, {"covariates"}, torch.full((2,), 0.5))
    # Three, two and two levels, twelve joint groups, one number.
    assert table.covariates.shape == (3 + 2 + 2 + 12 + 1, 2)
    assert not table.covariates[7:19].any()
    batch = design.encode(adata).batch(slice(0, 2))
    slope = (table(batch)[1] - table(batch)[0]) / (batch.continuous[1] - batch.continuous[0])
    torch.testing.assert_close(slope, GAIN * table.covariates[19])


def test_joint_label_of_chosen_columns(crossed):
    design, adata = crossed
    batch = design.encode(adata).batch()
    label = find_label(["donor", "type"], design, where="test")
    assert label.levels == ("m | u", "m | v", "m | w", "n | u", "n | v", "n | w")
    assert torch.equal(label.of(batch), 3 * batch.covariates[:, 2] + batch.covariates[:, 0])
    none = find_label((), design, where="test")
    assert none.n_groups == 1
    assert not none.of(batch).any()


def test_a_covariate_may_be_called_batch(crossed):
    _, adata = crossed
    renamed = adata.copy()
    renamed.obs = renamed.obs.rename(columns={"site": "batch"})
    design = Design.fit(renamed, pf.Schema(covariates=["type", "batch"]))
    batch = design.encode(renamed).batch()
    assert torch.equal(find_label("batch", design, where="").of(batch), batch.covariates[:, 1])
    table = ConditionTable(design, {"batch"}, torch.ones(1))
    assert table.covariates.shape == (2, 1)


def test_fcr_reads_a_number_and_comes_back(adata, schema, tmp_path):
    fcr = tiny_fcr(adata, schema=schema)
    fit(fcr)
    found = fcr.counterfactual(adata[:4], do={"age": 55.0}, draws=2)
    assert found.uns["counterfactual"]["redrawn"] == ["z_tx", "z_x"]
    np.testing.assert_allclose(found.obs["age"], 55.0, rtol=1e-5)
    again = pf.load(fcr.save(tmp_path / "m"))
    same = again.counterfactual(adata[:4], do={"age": 55.0}, draws=2)
    np.testing.assert_array_equal(found.X, same.X)
    assert set(again.latents(adata)) == set(SIZES)
