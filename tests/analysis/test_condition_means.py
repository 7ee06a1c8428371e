"""Condition means: what a fitted model answers, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import fit, tiny_adata, tiny_fcr, tiny_schema

import pyro_fcr as pf
from pyro_fcr.analysis import condition_means as module
from pyro_fcr.errors import ArgumentError, CategoryError, DesignError
from pyro_fcr.evaluate import profile


@pytest.fixture(scope="module")
def held():
    """Cells, and a model that has seen B in none of the cells of type w."""
    adata = tiny_adata(per_condition=40)
    split = pf.splits.hold_out(adata, {"drug": ["B"], "type": ["w"]}, valid=0.0, seed=0)
    model = pf.FCR(adata, tiny_schema(), sizes={"z_x": 3, "z_t": 2, "z_tx": 2}, hidden=(16,))
    model.fit(split=split, max_epochs=30, batch_size=64, seed=0, device="cpu", progress=False)
    return adata, split, model


def test_means_are_read_in_pieces(held, monkeypatch):
    adata, split, model = held
    whole = model.condition_means(draws=2)
    monkeypatch.setattr(module, "CHUNK", 7)
    pieces = model.condition_means(draws=2)
    np.testing.assert_allclose(pieces.measured, whole.measured)
    np.testing.assert_allclose(pieces.sd, whole.sd, rtol=1e-4)
    counts = adata[(adata.obs["drug"] == "A") & (adata.obs["type"] == "v")].X
    np.testing.assert_allclose(whole.measured[1, 1], profile(counts), rtol=1e-5)


def test_a_condition_without_cells_is_predicted_with_a_wider_interval(held):
    adata, _, model = held
    found = model.condition_means(draws=4)
    assert found.treatments == ("ctrl", "A", "B")
    assert found.covariates == ("u", "v", "w")
    assert found.mean.shape == (3, 3, 20)
    assert np.isnan(found.measured[2, 2]).all()
    assert np.isfinite(found.measured[:2]).all()
    assert (found.sd[2, 2] > found.sd[:2].max((0, 1))).all()
    np.testing.assert_allclose(found.change[0], 0)
    np.testing.assert_allclose(found.change_sd[0], 0)
    table = found.of("B", "w")
    assert list(table.columns) == [
        "mean", "low", "high", "change", "change_low", "change_high", "model", "measured",
    ]  # fmt: skip
    np.testing.assert_allclose(table["change"], found.mean[2, 2] - found.mean[0, 2])
    np.testing.assert_allclose(table["high"] - table["mean"], 1.6448536 * found.sd[2, 2])
    np.testing.assert_allclose(table["mean"] - table["low"], 1.6448536 * found.sd[2, 2])
    np.testing.assert_allclose(table["mean"], found.mean[2, 2])
    half = found.of("B", "w", level=0.5)
    width = half["change_high"] - half["change_low"]
    np.testing.assert_allclose(width, 2 * 0.6744898 * found.change_sd[2, 2])
    assert (found.table(level=0.5)["high"] < found.table()["high"]).all()
    assert len(found.table()) == 9 * 20
    # Between the model's own expectation and the measurement, where there is one.
    seen = found.of("A", "v")
    gap = (seen["measured"] - seen["model"]).abs()
    assert ((seen["mean"] - seen["measured"]).abs() <= gap + 0.3).all()
    with pytest.raises(CategoryError, match="no covariate group is called 'blood'"):
        found.of("B", "blood")
    for level in (1.0, -0.5, np.nan):
        with pytest.raises(ArgumentError, match=r"level=.*a number between 0 and 1"):
            found.of("B", "w", level=level)


def test_the_model_speaks_of_the_groups_control_cells(held):
    adata, _, model = held
    found = model.condition_means(draws=4, seed=3)
    control = adata[(adata.obs["drug"] == "ctrl") & (adata.obs["type"] == "v")].copy()
    for t, drug in enumerate(("ctrl", "A", "B")):
        as_if = model.counterfactual(control, do={"drug": drug}, draws=400).X
        np.testing.assert_allclose(found.model[t, 1], profile(as_if), atol=0.25)


def test_expectations_start_from_control_cells_where_there_are_any(held, monkeypatch):
    adata, _, model = held
    began, expected = [], module.expected_under

    def noted(fitted, cells, do, **more):
        began.append((set(cells.treatment_id), set(cells.covariate_id), len(cells)))
        return expected(fitted, cells, do, **more)

    monkeypatch.setattr(module, "expected_under", noted)
    module.estimate_condition_means(model, model.encode(adata), draws=1, start=7)
    groups = range(len(adata.obs["type"].unique()))
    assert began == [({0}, {x}, 7) for x in groups for _ in range(3)]


def test_a_controls_noise_that_the_model_followed_stands_in_changes(held, monkeypatch):
    _, _, model = held
    left = 1.0

    def told(values, noise, *, absorbs=False):
        parts = (np.full(values.shape[-1], v) for v in (0.0, 0.0, 0.0))
        return module.Components(*parts, left)

    monkeypatch.setattr(module, "estimate_components", told)
    whole = model.condition_means(draws=2)
    left = 1e-9
    followed = model.condition_means(draws=2)
    # With no variance but the mean's, its error is the noise's: none is left of it.
    assert followed.sd.max() < 1e-3 < whole.sd.min()
    # What the model followed is the sampling variance of the control's own mean.
    np.testing.assert_allclose(followed.change_sd[1], followed.change_sd[2], rtol=1e-3)
    assert (followed.change_sd[1:] > 0.005).all()
    np.testing.assert_allclose(whole.change_sd[1:], 0, atol=1e-6)


def test_test_cells_are_not_read(held):
    """The split of the fit holds by itself, and as an argument for cells that are given."""
    adata, split, model = held
    own, given = model.condition_means(draws=2), model.condition_means(adata, split, draws=2)
    np.testing.assert_array_equal(own.mean, given.mean)
    trained = adata[~split.mask(adata, "test")].copy()
    np.testing.assert_array_equal(own.mean, model.condition_means(trained, draws=2).mean)
    assert np.isfinite(model.condition_means(adata, draws=2).measured).all()


def test_measurements_rule_a_model_that_says_nothing():
    """A model without epochs is corrected to the main effects of what was measured."""
    adata = tiny_adata(per_condition=200, n_genes=12)
    schema, keep = tiny_schema(), {"drug": ["B"], "type": ["w"]}
    split = pf.splits.hold_out(adata, keep, valid=0.0, seed=0)
    model = pf.FCR(adata, schema, sizes={"z_x": 2, "z_t": 2, "z_tx": 2}, hidden=(8,))
    model.fit(split=split, max_epochs=1, seed=0, device="cpu", progress=False)
    found = model.condition_means(draws=2)
    y = found.measured
    rule = y[0, 2] + (y[2, :2] - y[0, :2]).mean(0)
    own = np.abs(found.model[2, 2] - rule).mean()
    assert np.abs(found.mean[2, 2] - rule).mean() < 0.6 * own


def test_dose_levels_are_treatments():
    adata = tiny_adata(per_condition=40)
    treated = (adata.obs["drug"] != "ctrl").to_numpy()
    adata.obs["dose"] = np.where(treated, np.where(np.arange(len(adata)) % 2, 0.5, 2.0), 0.0)
    model = pf.FCR(adata, tiny_schema(dose="dose"), hidden=(8,))
    fit(model)
    found = model.condition_means(draws=2)
    assert found.treatments == ("ctrl", "A @ 0.5", "A @ 2", "B @ 0.5", "B @ 2")
    assert np.isfinite(found.mean).all()


def test_several_covariates_are_joint_groups():
    adata = tiny_adata(per_condition=40)
    model = pf.FCR(adata, tiny_schema(covariates=["type", "lane"]), hidden=(8,))
    fit(model)
    found = model.condition_means(draws=2)
    assert found.covariates[0] == "u | l0"
    assert found.mean.shape == (3, 6, 20)


@pytest.mark.parametrize("system", ["CPA", "ConditionalVAE", "SVAE"])
def test_any_system_answers(system):
    schema = tiny_schema(covariates=[]) if system == "SVAE" else tiny_schema()
    model = getattr(pf, system)(tiny_adata(), schema, hidden=(8,))
    fit(model)
    found = model.condition_means(draws=2)
    assert np.isfinite(found.mean).all()
    assert (found.change_sd[1:] > 0).all()


def test_what_cannot_be_told_is_refused():
    adata = tiny_adata()
    model = tiny_fcr(adata)
    fit(model)
    single = adata[~adata.obs.duplicated(["drug", "type"])].copy()
    with pytest.raises(DesignError, match="nothing tells the noise"):
        model.condition_means(single)
    del single.obs["type"]
    with pytest.raises(DesignError, match="a label that the cells do not have"):
        model.condition_means(single)
    bare = pf.InVAE(adata, pf.Schema(covariates=["type"], batch="lane"), hidden=(8,))
    fit(bare)
    with pytest.raises(DesignError, match="no treatments to predict"):
        bare.condition_means()
