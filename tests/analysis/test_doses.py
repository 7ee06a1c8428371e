"""Dose–response curves, beside the counterfactuals they summarise."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import fit, tiny_adata, tiny_fcr, tiny_schema

from pyro_fcr.analysis.doses import dose_response
from pyro_fcr.errors import ArgumentError, DesignError


@pytest.fixture(scope="module")
def fitted():
    adata = tiny_adata(per_condition=30)
    rng = np.random.default_rng(0)
    treated = (adata.obs["drug"] != "ctrl").to_numpy()
    dose = np.where(treated, rng.choice([0.5, 1.0, 2.0], adata.n_obs), 0.0)
    adata.obs["dose"] = dose
    model = tiny_fcr(adata, schema=tiny_schema(dose="dose"))
    fit(model, max_epochs=10)
    return model, adata


def test_a_curve_is_made_of_counterfactuals(fitted):
    model, adata = fitted
    table = model.dose_response(treatment="A", doses=[0.5, 2.0], genes=["g3", "g5"], cells=1000)
    control = adata[(adata.obs["drug"] == "ctrl") & (adata.obs["type"] == "u")]
    shares = [
        np.log2((model.counterfactual(control, do=do, draws=50).X.sum(0) + 0.5) / control.X.sum())
        for do in ({"treatment": "A", "dose": 2.0}, {"treatment": "ctrl"})
    ]
    row = table.query("covariate == 'u' and dose == 2.0").set_index("gene")
    np.testing.assert_allclose(row["lfc"], (shares[0] - shares[1])[[3, 5]], atol=0.15)
    assert (row["low"] <= row["lfc"]).all()
    assert (row["lfc"] <= row["high"]).all()
    assert len(table) == 3 * 2 * 2


def test_curves_start_at_the_control_and_move(fitted):
    """A vanishing dose is no treatment: the same cells, weights and noise, so no change at all."""
    model, _ = fitted
    table = model.dose_response(treatment="A", doses=[0, 1e-7, 2.0])
    assert (table.query("dose == 0")[["lfc", "low", "high"]] == 0).all(axis=None)
    assert table.query("dose < 1")[["lfc", "low", "high"]].abs().max().max() < 1e-3
    assert table.query("dose == 2")["lfc"].abs().max() > 0.01


def test_what_cannot_be_drawn_is_refused(fitted):
    model, _ = fitted
    with pytest.raises(DesignError, match="no gene is called 'nothing'"):
        model.dose_response(treatment="A", doses=[1.0], genes=["nothing"])
    for asked in ({"level": 2}, {"draws": 1}, {"cells": 0}):
        with pytest.raises(ArgumentError, match=rf"{next(iter(asked))}="):
            dose_response(model, treatment="A", doses=[1.0], **asked)
    plain = tiny_fcr()
    fit(plain)
    with pytest.raises(DesignError, match="no doses to vary"):
        plain.dose_response(treatment="A", doses=[1.0])
