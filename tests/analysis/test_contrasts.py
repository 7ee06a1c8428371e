"""Any two groups of cells: against what effects say of the same ones, and against plain counts."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import fit, tiny_adata, tiny_fcr

from pyro_fcr.errors import ArgumentError, CategoryError, DesignError, FCRError


@pytest.fixture(scope="module")
def fitted():
    adata = tiny_adata(per_condition=60)
    model = tiny_fcr(adata)
    fit(model, max_epochs=20)
    return model, adata


def cells(adata, drug, kind):
    return adata[(adata.obs["drug"] == drug) & (adata.obs["type"] == kind)].copy()


def log_share(adata):
    return np.log2((adata.X.sum(0) + 0.5) / adata.X.sum())


def test_groups_that_no_treatment_tells_apart(fitted):
    """Two kinds of cell: the measured difference is that of their counts, by hand."""
    model, adata = fitted
    one, two = cells(adata, "ctrl", "u"), cells(adata, "ctrl", "v")
    table = model.differential(one, two, draws=400)
    by_hand = log_share(one) - log_share(two)
    np.testing.assert_allclose(table["measured"].loc[list(adata.var_names)], by_hand, atol=1e-3)
    assert (table["low"] <= table["lfc"]).all()
    assert (table["lfc"] <= table["high"]).all()
    swapped = model.differential(two, one, draws=400).loc[table.index]
    np.testing.assert_allclose(swapped["measured"], -table["measured"], atol=1e-9)
    np.testing.assert_allclose(swapped["lfc"], -table["lfc"], atol=0.15)


def test_a_treated_group_against_its_control_is_its_effect(fitted):
    """One contrast and the table of all effects share model and measurement."""
    model, adata = fitted
    table = model.differential(cells(adata, "A", "u"), cells(adata, "ctrl", "u"))
    told = model.effects().genes_of("A", "u").loc[table.index]
    np.testing.assert_allclose(table["measured"], told["measured"], atol=1e-6)
    np.testing.assert_allclose(table["model"], told["model"], atol=1e-6)


def test_the_same_cells_do_not_differ(fitted):
    model, adata = fitted
    one = cells(adata, "ctrl", "u")
    table = model.differential(one, one)
    np.testing.assert_allclose(table["measured"], 0, atol=1e-9)
    assert ((table["low"] <= 0) & (table["high"] >= 0)).all()
    assert not table["selected"].any()


def test_a_counterfactual_is_the_models_change_and_its_error(fitted):
    model, adata = fitted
    control = cells(adata, "ctrl", "u")
    effects = model.effects()
    table = model.differential(
        control, control, do={"drug": "A"}, effects=effects, draws=2000
    ).loc[list(adata.var_names)]
    as_if = model.counterfactual(control, do={"drug": "A"}, draws=200)
    as_is = model.reconstruct(control, draws=200)
    change = np.log2((as_if.X.sum(0) + 0.5) / (as_is.X.sum(0) + 0.5))
    np.testing.assert_allclose(table["model"], change, atol=0.1)
    assert table["measured"].isna().all()
    sd = (table["high"] - table["low"]) / (2 * 1.645)
    assert ((table["lfc"] - table["model"]).abs() < 5 * sd / np.sqrt(2000) + 0.05).all()
    # Of 90 % of a normal distribution that is at least as wide as counterfactuals are off.
    least = 2 * 1.645 * np.sqrt(effects.counterfactual.variance(table["model"].to_numpy()))
    assert (table["high"] - table["low"] > 0.9 * least).all()
    assert np.median(table["high"] - table["low"]) < 2.5 * np.median(least)
    # Of the untreated nothing is changed but what the prior does not know of the cells.
    nothing = model.differential(control, control, do={"drug": "ctrl"}, effects=effects)
    assert (nothing["model"] ** 2).mean() < 0.25 * (table["model"] ** 2).mean()


def test_counterfactuals_are_as_far_off_as_measured_conditions_tell(fitted):
    """The gaps between counterfactuals of the controls and what treated cells show, by hand."""
    model, adata = fitted
    told = model.effects().counterfactual
    found, gaps = [], []
    for kind in ("u", "v", "w"):
        control = cells(adata, "ctrl", kind)
        as_is = model.reconstruct(control, draws=50)
        for drug in ("A", "B"):
            as_if = model.counterfactual(control, do={"drug": drug}, draws=50)
            change = np.log2((as_if.X.sum(0) + 0.5) / (as_is.X.sum(0) + 0.5))
            found.append(told.variance(change))
            gaps.append(log_share(cells(adata, drug, kind)) - log_share(control) - change)
    assert np.mean(found) == pytest.approx(np.square(gaps).mean(), rel=0.4)


def test_what_cannot_be_compared_is_refused(fitted):
    model, adata = fitted
    control = cells(adata, "ctrl", "u")
    with pytest.raises(DesignError, match=r"too few cells to compare.*3 in the second"):
        model.differential(control, control[:3].copy())
    assert len(model.differential(control, control[:10].copy(), draws=2)) == adata.n_vars
    with pytest.raises(CategoryError):
        model.differential(control, control, do={"drug": "nobody knows"}, effects=model.effects())
    with pytest.raises(FCRError, match="what to set"):
        model.differential(control, control, do="A")
    with pytest.raises(DesignError, match="no column 'plate'"):
        model.differential(control, control, replicate="plate")


@pytest.mark.parametrize("asked", [{"level": 1.0}, {"draws": 1}, {"least": -1}, {"fdr": 2}])
def test_numbers_that_make_no_sense_are_refused(fitted, asked):
    model, adata = fitted
    one, two = cells(adata, "A", "u"), cells(adata, "ctrl", "u")
    with pytest.raises(ArgumentError, match=rf"{next(iter(asked))}="):
        model.differential(one, two, **asked)
