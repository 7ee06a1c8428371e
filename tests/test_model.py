"""The model and the guide are plain Pyro: every tool of Pyro's works on them as they are."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroSample
from tiny import SIZES, tiny_adata, tiny_fcr

import pyro_fcr as pf
from pyro_fcr.model import global_sites


class Slope(pf.Prior):
    def __init__(self, size=2):
        super().__init__()
        self.slope = PyroSample(dist.Normal(0.0, 2.0).expand([size]).to_event(1))

    def forward(self, batch):
        return dist.Normal(self.slope * batch.dose[:, None], 0.5).to_event(1)


@pytest.fixture(scope="module")
def adata():
    return tiny_adata()


@pytest.fixture
def fcr(adata):
    return tiny_fcr(adata)


def test_trace_of_the_model(fcr):
    batch = fcr.cells.batch(slice(0, 12), n_cells=1200)
    trace = poutine.trace(fcr.model).get_trace(batch)
    trace.compute_log_prob()
    assert trace.nodes["counts"]["is_observed"]
    assert torch.equal(trace.nodes["counts"]["value"], batch.counts)
    for name, size in SIZES.items():
        site = trace.nodes[name]
        assert site["value"].shape == (12, size)
        assert site["log_prob"].shape == (12,)
        assert site["scale"] == pytest.approx(100.0)
    sites = [n for n, s in trace.nodes.items() if s["type"] == "sample" and n != "cells"]
    assert sites == ["z_x", "z_t", "z_tx", "counts"]
    assert not list(pyro.get_param_store().keys())


def test_the_minibatchs_density_is_unbiased(fcr):
    # Every cell once, in four parts each standing for all: their mean is the whole.
    with torch.no_grad():
        whole = fcr.cells.batch()
        z = {n: torch.randn(len(whole), d) for n, d in SIZES.items()}

        def density(rows):
            batch = fcr.cells.batch(rows)
            data = {n: v[rows] for n, v in z.items()}
            conditioned = poutine.condition(fcr.model, data=data)
            return poutine.trace(conditioned).get_trace(batch).log_prob_sum()

        n = len(whole)
        parts = [density(slice(k * n // 4, (k + 1) * n // 4)) for k in range(4)]
        torch.testing.assert_close(sum(parts) / 4, density(slice(0, n)), rtol=1e-5, atol=0.1)


def test_predictive_draws_from_prior_and_posterior(fcr):
    batch = fcr.cells.batch(slice(0, 5))
    with torch.no_grad():
        prior = Predictive(poutine.uncondition(fcr.model), num_samples=7)(batch)
        assert prior["counts"].shape == (7, 5, 20)
        assert prior["z_tx"].shape == (7, 5, 2)
        guided = Predictive(
            poutine.uncondition(fcr.model), guide=fcr.guide, num_samples=7,
            return_sites=("z_x", "counts"),
        )(batch)  # fmt: skip
        assert guided["counts"].shape == (7, 5, 20)
        assert (guided["counts"] >= 0).all()


def test_condition_and_do(fcr):
    batch = fcr.cells.batch(slice(0, 4))
    value = torch.full((4, 2), 3.0)
    conditioned = poutine.trace(poutine.condition(fcr.model, data={"z_t": value})).get_trace(batch)
    assert conditioned.nodes["z_t"]["is_observed"]
    assert torch.equal(conditioned.nodes["z_t"]["value"], value)
    intervened = poutine.trace(poutine.do(fcr.model, data={"z_t": value})).get_trace(batch)
    a = intervened.nodes["counts"]["fn"].mean
    moved = poutine.do(fcr.model, data={"z_t": -value})
    b = poutine.trace(moved).get_trace(batch).nodes["counts"]["fn"].mean
    assert not torch.allclose(a, b)


def test_training_by_hand(fcr):
    elbo = TraceMeanField_ELBO()(fcr.model, fcr.guide)
    optimiser = torch.optim.Adam(elbo.parameters(), lr=5e-3)
    batch = fcr.cells.batch()
    names = {n.split(".")[0] for n, _ in elbo.named_parameters()}
    assert names == {"model", "guide"}
    losses = []
    for _ in range(25):
        loss = elbo(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 100


def test_trace_elbo_agrees_on_average(fcr):
    batch = fcr.cells.batch(slice(0, 10))
    with torch.no_grad():
        mean_field = [TraceMeanField_ELBO()(fcr.model, fcr.guide)(batch) for _ in range(150)]
        plain = [Trace_ELBO()(fcr.model, fcr.guide)(batch) for _ in range(150)]
    a, b = torch.stack(mean_field), torch.stack(plain)
    error = ((a.var() + b.var()) / 150).sqrt()
    assert (a.mean() - b.mean()).abs() < 4.5 * error


def test_globals_are_one_variable_and_known(adata):
    fcr = tiny_fcr(adata, priors={"z_t": Slope()})
    batch = fcr.cells.batch(slice(0, 6))
    assert global_sites(fcr.model, batch) == ["priors.z_t.slope"]
    trace = poutine.trace(fcr.model).get_trace(batch)
    site = trace.nodes["priors.z_t.slope"]
    assert site["value"].shape == (2,)
    assert site["scale"] == 1.0
    assert not site["cond_indep_stack"]
    assert global_sites(tiny_fcr(adata).model, batch) == []


def test_nuts_on_the_globals(adata):
    # Given z_t, the slope is conjugate: the chain must find the known posterior.
    fcr = tiny_fcr(adata, priors={"z_t": Slope()})
    batch = fcr.cells.batch()
    truth = torch.tensor([1.5, -0.5])
    z = {n: torch.zeros(len(batch), d) for n, d in SIZES.items()}
    z["z_t"] = truth * batch.dose[:, None] + 0.5 * torch.randn(len(batch), 2)
    model = poutine.condition(fcr.model, data=z)
    n = batch.dose.sum()
    precision = n / 0.25 + 1 / 4.0
    mean = (z["z_t"] * batch.dose[:, None]).sum(0) / 0.25 / precision
    for parameter in fcr.model.parameters():
        parameter.requires_grad_(False)
    kernel = NUTS(model, jit_compile=False)
    chain = MCMC(kernel, num_samples=60, warmup_steps=40, disable_progbar=True)
    chain.run(batch)
    slope = chain.get_samples()["priors.z_t.slope"]
    assert slope.shape == (60, 2)
    assert ((slope.mean(0) - mean).abs() < 6 * precision**-0.5 / 60**0.5 * 2).all()
    assert (slope.std(0) < 2 * precision**-0.5).all()


def test_priors_cross_into_other_blocks(adata):
    blocks = {"z_x": pf.priors.Standard(), "z_tx": pf.priors.Gaussian(learn_scale=False)}
    fcr = tiny_fcr(adata, priors=blocks)
    trace = poutine.trace(fcr.model).get_trace(fcr.cells.batch(slice(0, 3)))
    assert (trace.nodes["z_x"]["fn"].mean == 0).all()
    assert (trace.nodes["z_tx"]["fn"].variance == 1).all()
