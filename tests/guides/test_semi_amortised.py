"""Steps up each cell's own ELBO: where they lead, and when they are taken."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroSample
from tiny import fit, tiny_adata, tiny_cells, tiny_fcr, tiny_genes, tiny_schema
from torch.distributions import kl_divergence

import pyro_fcr as pf
from pyro_fcr.analysis.draws import draw_globals, draw_sites
from pyro_fcr.errors import DesignError, SlotError
from pyro_fcr.guides import Amortised, Joint, SemiAmortised
from pyro_fcr.likelihoods import resolve
from pyro_fcr.nn import Block

BLOCKS = (Block("a", 2), Block("b", 1))
NOISE = 0.7


class LinearGaussian:
    """z ~ N(0, I), y ~ N(W z, σ²): its posterior is known."""

    def __init__(self, n_genes):
        self.weight = torch.randn(n_genes, 3) * 0.3

    def __call__(self, batch):
        with pyro.plate("cells", batch.n_cells, subsample=batch.index):
            zeros = torch.zeros(len(batch), 3)
            z = [
                pyro.sample("a", dist.Normal(zeros[:, :2], 1.0).to_event(1)),
                pyro.sample("b", dist.Normal(zeros[:, :1], 1.0).to_event(1)),
            ]
            mean = torch.cat(z, -1) @ self.weight.T
            pyro.sample("y", dist.Normal(mean, NOISE).to_event(1), obs=batch.counts)

    def posterior(self, batch):
        precision = torch.eye(3) + self.weight.T @ self.weight / NOISE**2
        covariance = torch.linalg.inv(precision)
        return batch.counts @ self.weight @ covariance / NOISE**2, covariance

    def evidence(self, batch):
        covariance = self.weight @ self.weight.T + NOISE**2 * torch.eye(len(self.weight))
        zeros = torch.zeros(len(self.weight))
        return dist.MultivariateNormal(zeros, covariance).log_prob(batch.counts)


@pytest.fixture
def setup():
    torch.manual_seed(0)
    cells, model = tiny_cells(), LinearGaussian(20)
    y = torch.randn(12, 3) @ model.weight.T + NOISE * torch.randn(12, 20)
    return cells, model, cells.batch(slice(0, 12)).replace(counts=y)


def bound(cells, model, base, betas=(), **options):
    guide = SemiAmortised(base, **options)
    guide.bind(BLOCKS, cells.design, resolve("normal"), tiny_genes(cells))
    guide.bind_model(model, dict(betas))
    return guide.eval()


@torch.no_grad()
def test_the_exact_posterior_of_a_linear_gaussian_model_is_reached(setup):
    cells, model, batch = setup
    guide = bound(cells, model, Joint(width=8), steps=600)
    mean, covariance = model.posterior(batch)
    joint = guide.base.joint(guide.encode(batch))
    sd = covariance.diagonal().sqrt()
    assert float(((joint.mean - mean) / sd).abs().max()) < 0.05
    found = joint.factor @ joint.factor.mT
    scaled = (found - covariance) / sd / sd[:, None]
    assert float(scaled.abs().max()) < 0.2
    # The ELBO lies below the evidence by the divergence that is left, in closed form.
    reached = dist.MultivariateNormal(joint.mean, found)
    left = kl_divergence(reached, dist.MultivariateNormal(mean, covariance))
    assert float(left.max()) < 0.05
    parameters = guide.encode(batch)
    elbo = torch.stack([guide.elbo(parameters, batch, torch.randn(12, 3)) for _ in range(400)])
    error = elbo.std(0) / 20
    torch.testing.assert_close(
        (elbo.mean(0) - model.evidence(batch) + left) / error, torch.zeros(12), atol=4.5, rtol=0
    )


@torch.no_grad()
def test_the_best_mean_field_is_reached(setup):
    cells, model, batch = setup
    guide = bound(cells, model, Amortised(width=8), steps=600)
    mean, covariance = model.posterior(batch)
    found = guide.posteriors(batch)
    scale = torch.linalg.inv(covariance).diagonal().rsqrt()
    means = torch.cat([found["a"].mean, found["b"].mean], -1)
    scales = torch.cat([found["a"].stddev, found["b"].stddev], -1)
    assert float(((means - mean) / scale).abs().max()) < 0.05
    torch.testing.assert_close(scales / scale, torch.ones(12, 3), atol=0.1, rtol=0)


@torch.no_grad()
def test_weighted_divergences_move_the_optimum(setup):
    """With weight β on all, z ~ N(0, I) and y ~ N(W z, σ²) give mean (βI + WᵀW/σ²)⁻¹Wᵀy/σ²."""
    cells, model, batch = setup
    beta = 6.0
    guide = bound(cells, model, Joint(width=8), {"a": beta, "b": beta}, steps=600)
    precision = beta * torch.eye(3) + model.weight.T @ model.weight / NOISE**2
    covariance = torch.linalg.inv(precision)
    mean = batch.counts @ model.weight @ covariance / NOISE**2
    joint = guide.base.joint(guide.encode(batch))
    # The entropy carries the factor too: the posterior is β times as wide as it is alone.
    sd = (beta * covariance.diagonal()).sqrt()
    assert float(((joint.mean - mean) / sd).abs().max()) < 0.05
    assert float(((model.posterior(batch)[0] - mean) / sd).abs().max()) > 0.5


def test_a_systems_factors_reach_the_steps():
    adata = tiny_adata(per_condition=6)
    vae = pf.BetaVAE(adata, tiny_schema(), beta=3.0, guide=SemiAmortised(steps=2))
    assert vae.guide.locals._betas == vae.declaration.betas == {"z": 3.0}


@torch.no_grad()
def test_the_elbo_by_hand(setup):
    cells, model, batch = setup
    guide = bound(cells, model, Amortised(width=8))
    parameters, noise = guide.base.encode(batch), torch.randn(12, 3)
    loc = torch.cat([p.chunk(2, -1)[0] for p in parameters], -1)
    scale = torch.cat([q.stddev for q in guide.base.marginals(parameters).values()], -1)
    values = []
    for sign in (1, -1):
        z = loc + sign * scale * noise
        y = dist.Normal(z @ model.weight.T, NOISE).log_prob(batch.counts).sum(-1)
        prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
        values.append(y + prior - dist.Normal(loc, scale).log_prob(z).sum(-1))
    torch.testing.assert_close(guide.elbo(parameters, batch, noise), sum(values) / 2)


@pytest.mark.parametrize("base", [Amortised, Joint])
def test_steps_raise_every_cells_elbo(base):
    adata = tiny_adata(per_condition=12)
    fcr = tiny_fcr(adata, guide=SemiAmortised(base(width=16, depth=1), steps=40))
    fit(fcr, max_epochs=4)
    guide, batch = fcr.guide.locals, fcr.cells.batch()
    start = [value.detach() for value in guide.base.encode(batch)]
    found = guide.refine(start, batch)
    noise = torch.randn(50, len(batch), 7)
    with torch.no_grad():
        before = torch.stack([guide.elbo(start, batch, e) for e in noise]).mean(0)
        after = torch.stack([guide.elbo(found, batch, e) for e in noise]).mean(0)
    # A cell that was at its best stays there, up to the steps' noise.
    assert float((after - before).min()) > -0.2
    assert float((after - before).mean()) > 0.3


def test_steps_are_taken_in_evaluation_and_in_training_if_asked(setup):
    cells, model, batch = setup
    for in_training in (False, True):
        guide = bound(cells, model, Amortised(width=8), steps=3, in_training=in_training)
        plain = guide.base.encode(batch)[0]
        torch.manual_seed(1)
        assert not torch.equal(guide.eval().encode(batch)[0], plain)
        trained = guide.train().encode(batch)[0]
        assert torch.equal(trained, plain) is not in_training
        trained.sum().backward()
        assert guide.base.encoders.first_weight_gk.grad.abs().sum() > 0


def test_no_sites_but_the_blocks_are_seen_and_the_model_is_not_owned(setup):
    cells, model, batch = setup
    guide = bound(cells, model, Amortised(width=8), steps=2)
    trace = poutine.trace(guide).get_trace(batch)
    assert list(trace.stochastic_nodes) == ["cells", "a", "b"]
    fcr = tiny_fcr(tiny_adata(per_condition=6), guide=SemiAmortised(steps=2))
    assert not any("decoder" in name for name, _ in fcr.guide.named_parameters())


def test_labels_that_the_model_reads_are_read_by_the_refined_guide():
    adata = tiny_adata(per_condition=6)
    bare = adata.copy()
    del bare.obs["type"]
    semi = SemiAmortised(Amortised(width=8), steps=2)
    fcr = tiny_fcr(adata, guide=semi, schema=tiny_schema(batch="lane"))
    assert fcr.guide.reads == {"treatment", "covariates", "batch"}
    fit(fcr, max_epochs=1)
    # Through its prior and decoder, a cell without its label would be taken for one of another.
    with pytest.raises(DesignError, match="the encoders read a label"):
        fcr.latents(bare)
    vae = pf.VAE(adata, tiny_schema(), guide=semi)
    assert vae.guide.reads == frozenset()
    fit(vae, max_epochs=1)
    assert len(vae.latents(bare)["z"]) == len(bare)


def test_draws_share_one_refinement(setup):
    cells, model, batch = setup
    guide = bound(cells, model, Amortised(width=8), steps=2)
    calls, inner = [], guide.refine
    guide.refine = lambda *given: calls.append(1) or inner(*given)
    with guide.prepared(batch):
        first, second = guide(batch), guide(batch)
    assert calls == [1]
    assert not torch.equal(first["a"], second["a"])
    guide(batch)
    assert calls == [1, 1]


def test_globals_are_those_the_guide_drew(tmp_path):
    class Slope(pf.Prior):
        def __init__(self):
            super().__init__()
            self.slope = PyroSample(dist.Normal(0.0, 1.0).expand([2]).to_event(1))

        def forward(self, batch):
            return dist.Normal(self.slope * batch.dose[:, None], 1.0).to_event(1)

    adata = tiny_adata(per_condition=6)
    guide = SemiAmortised(Amortised(width=8), steps=2)
    fcr = tiny_fcr(adata, guide=guide, priors={"z_t": Slope()})
    fit(fcr, max_epochs=1)
    assert torch.isfinite(torch.tensor(fcr.get_latent_representation())).all()
    locals_ = fcr.guide.locals
    assert set(locals_.shared) == {"priors.z_t.slope"}
    drawn = fcr.posterior(adata[:3], draws=3).posterior
    assert drawn["priors.z_t.slope"].shape == (1, 3, 2)
    batch = fcr.cells.batch(slice(0, 3))
    shared = draw_globals(fcr.guide, batch, 3)
    for values, _ in zip(shared, draw_sites(fcr.guide, batch, shared), strict=True):
        # Given, they are what the cells are refined by, and not the draw before.
        assert torch.equal(locals_.shared["priors.z_t.slope"], values["priors.z_t.slope"])
    again = pf.load(fcr.save(tmp_path / "m"), priors={"z_t": Slope()})
    np.testing.assert_array_equal(
        again.get_latent_representation(adata), fcr.get_latent_representation(adata)
    )


def test_only_encoders_can_be_refined():
    with pytest.raises(SlotError, match="only encoders have parameters to refine"):
        SemiAmortised(pf.guides.Composed())
