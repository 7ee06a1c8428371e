"""Draws on disk are those in memory, whatever their number."""

from __future__ import annotations

import sys
import tracemalloc

import numpy as np
import pytest
import torch
import xarray as xr
from tiny import SIZES, fit, tiny_adata, tiny_fcr

import pyro_fcr as pf
from pyro_fcr import io
from pyro_fcr.errors import DesignError

VERBS = ("posterior", "posterior_predictive", "prior_predictive")


@pytest.fixture(scope="module")
def fitted():
    fcr = tiny_fcr(tiny_adata(), priors={"z_t": pf.priors.SparseShift()})
    fit(fcr)
    return fcr


@pytest.mark.parametrize("verb", VERBS)
def test_a_streamed_tree_is_the_one_in_memory(fitted, tmp_path, monkeypatch, verb) -> None:
    pytest.importorskip("zarr")
    monkeypatch.setattr("pyro_fcr.fitted.CHUNK", 50)
    # Three cells' worth at a time: blocks of draws that do not divide their number.
    monkeypatch.setattr("pyro_fcr.analysis.posterior.HELD_VALUES", 50 * 20 * 3)
    options = {"draws": 7, "seed": 4}
    for _ in range(2):  # the second replaces the first
        found = getattr(fitted, verb)(out=tmp_path / "d.zarr", **options)
    expected = getattr(fitted, verb)(**options)
    assert set(found.children) == set(expected.children)
    for name, node in expected.children.items():
        stored = found[name].to_dataset()
        assert not any(array._in_memory for array in stored.data_vars.values())
        xr.testing.assert_equal(stored.load(), node.to_dataset())
    assert [p.name for p in tmp_path.iterdir()] == ["d.zarr"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_draws(fitted, tmp_path, monkeypatch) -> None:
    pytest.importorskip("zarr")
    monkeypatch.setattr("pyro_fcr.fitted.CHUNK", 50)
    monkeypatch.setattr("pyro_fcr.analysis.posterior.HELD_VALUES", 50 * 20 * 3)
    fitted.posterior_predictive(draws=1, out=tmp_path / "warm.zarr")
    peaks = []
    for draws in (5, 60):
        tracemalloc.start()
        fitted.posterior_predictive(draws=draws, out=tmp_path / f"{draws}.zarr")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    size = 4 * 60 * fitted.cells.batch().counts.numel()
    assert peaks[1] - peaks[0] < size / 3


def test_the_prior_is_the_conditional_one_and_reads_no_counts(fitted) -> None:
    adata = tiny_adata()
    tree = fitted.prior_predictive(draws=60, seed=1)
    assert set(tree.children) == {"prior", "prior_predictive", "observed_data"}
    z = tree["prior"]["z_x"]
    assert z.sizes == {"chain": 1, "draw": 60, "cell": adata.n_obs, "z_x_dim": SIZES["z_x"]}
    with torch.no_grad():
        prior = fitted.model.priors["z_x"](fitted.cells.batch())
    np.testing.assert_allclose(
        z.mean(["chain", "draw"]), prior.mean, atol=5 * prior.stddev.max() / np.sqrt(60)
    )
    other = adata.copy()
    other.X[:] = other.X[:, ::-1]
    again = fitted.prior_predictive(other, draws=60, seed=1)
    xr.testing.assert_equal(again["prior"]["z_x"], z)
    counts = tree["prior_predictive"]["counts"]
    assert list(counts.gene.values) == list(adata.var_names)
    total = counts.sum("gene").mean(["chain", "draw"])
    np.testing.assert_allclose(total.mean(), fitted.cells.library.mean(), rtol=0.1)


def test_globals_of_the_prior_are_its_own(fitted) -> None:
    prior = fitted.prior_predictive(draws=3)["prior"].to_dataset()
    shared = [name for name in prior.data_vars if "cell" not in prior[name].dims]
    assert shared
    for name in shared:
        assert prior[name].sizes["draw"] == 3
        assert np.ptp(prior[name].values, axis=1).max() > 0


def test_what_breaks_off_leaves_no_store(tmp_path) -> None:
    pytest.importorskip("zarr")
    with pytest.raises(ZeroDivisionError), io.tree(tmp_path / "a.zarr") as store:
        store.group(f"{1 / 0}", {})
    assert not list(tmp_path.iterdir())
    with pytest.raises(DesignError, match="unknown kind of store"), io.tree(tmp_path / "a.nc"):
        pass


def test_without_zarr_it_is_told(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(DesignError, match="zarr is not installed"), io.tree(tmp_path / "a.zarr"):
        pass
