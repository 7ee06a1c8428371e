"""Other people's methods, where their packages are installed."""

import numpy as np
import pytest

import pyro_fcr as pf
from pyro_fcr.benchmark import Problem
from pyro_fcr.benchmark.methods import fitted


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch", [None, "batch"])
def test_scvi_with_and_without_a_batch(batch, tmp_path, monkeypatch):
    pytest.importorskip("scvi")
    monkeypatch.setattr("pyro_fcr.benchmark.methods.gettempdir", lambda: str(tmp_path))
    adata = pf.simulate.environments(n_cells=120, n_genes=30, seed=0)
    schema = pf.Schema(covariates="biology", batch=batch)
    problem = Problem(adata, schema, pf.splits.random(adata, test=0.3, valid=0, seed=0))
    method = {"external": "scVI", "options": {"max_epochs": 2}}
    latents = fitted(method, problem, seed=0).latents()
    assert {z.shape[0] for z in latents.values()} == {120}
    assert all(np.isfinite(z.to_numpy()).all() for z in latents.values())
