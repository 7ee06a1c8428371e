"""A function as a prior."""

import pyro.distributions as dist
import pytest
import torch
from tiny import fit, tiny_adata, tiny_fcr

import pyro_fcr as pf
from pyro_fcr.errors import LoadError, SlotError


def wide(batch):
    return dist.Normal(batch.library.new_zeros(len(batch), 2), 2.0).to_event(1)


def test_it_is_the_function(tmp_path):
    adata = tiny_adata(per_condition=8)
    prior = pf.priors.LambdaPrior(wide)
    fcr = tiny_fcr(adata, priors={"z_t": prior})
    fit(fcr, max_epochs=1)
    made = fcr.model.priors["z_t"](fcr.cells.batch(slice(0, 3)))
    assert torch.equal(made.variance, torch.full((3, 2), 4.0))
    folder = fcr.save(tmp_path / "m")
    with pytest.raises(LoadError, match=r"a LambdaPrior of the user's own.*load\(path, priors="):
        pf.load(folder)
    again = pf.load(folder, priors={"z_t": prior})
    assert (again.latents(adata)["z_t"] == fcr.latents(adata)["z_t"]).all(axis=None)


def test_what_it_returns_is_checked():
    scalar = pf.priors.LambdaPrior(lambda batch: dist.Normal(0.0, 1.0))
    with pytest.raises(SlotError, match=r"'z_t' has the wrong shape"):
        tiny_fcr(priors={"z_t": scalar})


def test_it_knows_new_treatments_if_the_user_says_so():
    assert not pf.priors.LambdaPrior(wide).extrapolates
    assert pf.priors.LambdaPrior(wide, extrapolates=True).extrapolates
