"""What a notebook shows of objects: what they are, how large, what to ask them next."""

from __future__ import annotations

import pytest
from tiny import fit, tiny_adata, tiny_fcr

import pyro_fcr as pf
from pyro_fcr.errors import ArgumentError


@pytest.fixture(scope="module")
def adata():
    return tiny_adata()


@pytest.fixture(scope="module")
def split(adata):
    return pf.splits.hold_out(adata, {"drug": "A", "type": ["u", "v"]}, seed=0)


@pytest.fixture(scope="module")
def fitted(adata, split):
    model = tiny_fcr(adata)
    fit(model, split=split)
    return model


@pytest.fixture(scope="module")
def loaded(fitted, tmp_path_factory):
    return pf.load(fitted.save(tmp_path_factory.mktemp("shown") / "model"))


def test_a_model_says_what_it_is_and_what_to_call(adata, fitted, loaded):
    new, old, again = (repr(model) for model in (tiny_fcr(adata), fitted, loaded))
    for shown in (new, old, again):
        assert shown.startswith("FCR(")
        assert len(shown.splitlines()) <= 3
        for word in ("20 genes", "'drug'", "'ctrl'", "'type'", "z_x 3, z_t 2, z_tx 2"):
            assert word in shown
    assert "216 cells" in new
    assert "not fitted" in new
    assert "fit()" in new
    assert f"fitted, {len(fitted.history)} epochs" in old
    assert "diagnose()" in old
    assert "loaded" in again
    assert "cells with each call" in again


def test_a_split_shows_its_parts(split):
    assert repr(split) == f"Split({split.describe()})"
    assert "test 48" in repr(split)
    assert len(repr(split)) < 300


def test_effects_say_what_they_hold(fitted):
    shown = repr(fitted.effects(draws=10))
    assert "2 treatments × 3 covariate groups × 20 genes" in shown
    assert "10 draws" in shown
    assert "90 % intervals" in shown
    assert "genes_of(treatment, covariate)" in shown
    assert len(shown.splitlines()) == 2


def test_condition_means_say_what_was_measured(fitted):
    shown = repr(fitted.condition_means())
    assert "3 treatments × 3 covariate groups × 20 genes" in shown
    assert "7 of 9 conditions measured" in shown
    assert "of(treatment, covariate)" in shown
    assert len(shown.splitlines()) == 2


def test_importance_says_how_good_the_weights_are(fitted, adata):
    found = fitted.importance(adata[:30], draws=20)
    shown = repr(found)
    assert "30 cells, 20 draws" in shown
    assert f"k-hat above 0.7 in {100 * (found.k_hat > 0.7).mean():.0f} % of cells" in shown
    assert f"{(found.bound - found.elbo).mean():.2f} nats above the ELBO" in shown
    assert len(shown.splitlines()) == 2


def test_a_loaded_model_is_diagnosed_with_its_split_or_says_what_it_took(
    adata, split, fitted, loaded
):
    own = fitted.diagnose().table.loc["identifiability", "words"]
    assert "2 interaction contrasts" in own
    assert loaded.diagnose(adata, split).table.loc["identifiability", "words"] == own
    blind = loaded.diagnose(adata).table.loc["identifiability"]
    assert "4 interaction contrasts" in blind["words"]
    assert "216 cells given were taken for training cells" in blind["words"]
    assert "split=" in blind["advice"]


def test_a_group_of_no_cells_is_no_group(fitted, adata):
    for groups in ((None, adata[:50]), (adata[:50], None)):
        name = "group" if groups[0] is None else "other"
        with pytest.raises(ArgumentError, match=rf"differential\({name}=\).*an AnnData.*None"):
            fitted.differential(*groups)
