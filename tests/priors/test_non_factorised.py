"""The energy-based prior: score matching against theory, who learns from what, draws, names."""

import math

import pyro.distributions as dist
import pytest
import torch
from tiny import SIZES, fit, tiny_adata, tiny_cells, tiny_fcr
from torch.distributions import kl_divergence

from pyro_fcr.nn import Block
from pyro_fcr.priors import Gaussian, NonFactorised

BLOCK = Block("z_x", 2, frozenset({"covariates"}))


@pytest.fixture(scope="module")
def cells():
    return tiny_cells()


def bound(cells, block=BLOCK, **options):
    torch.manual_seed(0)
    prior = NonFactorised(**options)
    prior.bind(block, cells.design)
    return prior


def shaken(cells, **options):
    """A prior with a tilt as strong as it can be."""
    prior = bound(cells, **options)
    with torch.no_grad():
        prior.tilt.intercept.fill_(1.0)
        prior.statistics.inner.weight.normal_()
        prior.statistics.outer.weight.normal_()
    return prior


def one_condition(cells, n):
    """``n`` cells, all alike."""
    return cells.batch([0] * n)


def test_derivatives_are_those_of_autograd(cells):
    prior = shaken(cells)
    z = torch.randn(7, 2, requires_grad=True)
    weight = torch.randn(7, prior.features)
    value = (prior.statistics(z) * weight).sum()
    (first,) = torch.autograd.grad(value, z, create_graph=True)
    second = torch.stack(
        [torch.autograd.grad(first[:, j].sum(), z, retain_graph=True)[0][:, j] for j in (0, 1)], 1
    )
    found = prior.statistics.derivatives(z, weight)
    torch.testing.assert_close(found[0], first, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], second, rtol=1e-4, atol=1e-5)


def test_loss_of_a_gaussian_by_hand(cells):
    prior = bound(cells)
    batch = one_condition(cells, 3)
    z = torch.tensor([[0.5, -1.0], [2.0, 0.0], [0.0, 0.3]])
    with torch.no_grad():
        gaussian = prior(batch).base
    m, v = gaussian.mean, gaussian.variance
    # Without a tilt: s² [−1/s² + ½ (z − m)²/s⁴] in each direction.
    expected = (-1 + 0.5 * (z - m).square() / v).sum(1)
    torch.testing.assert_close(prior.own_loss(z, batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_optimum_is_the_datas_gaussian(cells):
    """Minimising the loss on Gaussian draws recovers their moments; the tilt finds nothing."""
    prior = bound(cells)
    batch = one_condition(cells, 20_000)
    loc, scale = torch.tensor([1.5, -0.7]), torch.tensor([0.5, 1.8])
    generator = torch.Generator().manual_seed(1)
    z = loc + scale * torch.randn(20_000, 2, generator=generator)
    search = torch.optim.Adam(prior.parameters(), lr=5e-3)
    for step in range(400):
        search.param_groups[0]["lr"] = 5e-3 * (1 - step / 400)
        rows = torch.randperm(20_000, generator=generator)[:2000]
        search.zero_grad()
        prior.own_loss(z[rows], batch.rows(rows)).mean().backward()
        search.step()
    made = prior(batch.rows(torch.arange(1)))
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-8, 8, 401)] * 2, indexing="ij"), -1)
    density = made.log_prob(grid.reshape(-1, 1, 2)).exp().reshape(401, 401)
    density = density / density.sum()
    mean = (density[..., None] * grid).sum((0, 1))
    sd = ((density[..., None] * (grid - mean).square()).sum((0, 1))).sqrt()
    torch.testing.assert_close(mean, loc, atol=0.06, rtol=0)
    torch.testing.assert_close(sd, scale, atol=0.06, rtol=0.05)


@pytest.mark.slow
def test_it_learns_what_no_factorised_prior_can(cells):
    """Two components that are never large together: the fitted density knows, a Gaussian not."""
    prior = bound(cells, features=16)
    generator = torch.Generator().manual_seed(1)
    sign = torch.randint(0, 2, (8000, 1), generator=generator) * 2.0 - 1
    z = sign * torch.tensor([[1.0, -1.0]]) + 0.5 * torch.randn(8000, 2, generator=generator)
    batch = one_condition(cells, 8000)
    search = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for step in range(800):
        search.param_groups[0]["lr"] = 1e-2 * (1 - step / 800)
        rows = torch.randperm(8000, generator=generator)[:1000]
        search.zero_grad()
        prior.own_loss(z[rows], batch.rows(rows)).mean().backward()
        search.step()
    drawn = prior(batch).sample()
    correlation = torch.corrcoef(drawn.T)[0, 1]
    # The truth: covariance −1 over variance 1.25.
    assert float(torch.corrcoef(z.T)[0, 1]) == pytest.approx(-0.8, abs=0.02)
    assert correlation < -0.5


def test_draws_follow_the_density(cells):
    prior = shaken(cells)
    made = prior(one_condition(cells, 4000))
    drawn = made.sample((5,)).reshape(-1, 2)
    assert drawn.shape == (20_000, 2)
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-5, 5, 301)] * 2, indexing="ij"), -1)
    one = prior(one_condition(cells, 1))
    density = one.log_prob(grid.reshape(-1, 1, 2)).exp().reshape(301, 301)
    total = density.sum() * (10 / 300) ** 2
    assert abs(math.log(total)) <= prior.bound
    mean = (density[..., None] * grid).sum((0, 1)) / density.sum()
    square = (density[..., None] * grid.square()).sum((0, 1)) / density.sum()
    assert (mean - one.base.mean).abs().max() > 0.1, "the tilt does something"
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.square().mean(0), square, atol=0.08, rtol=0.05)
    torch.testing.assert_close(made.mean.mean(0), mean, atol=0.05, rtol=0)


@pytest.mark.parametrize("bound_nats", [0.5, 4.0])
def test_the_tilt_stays_within_its_bound(cells, bound_nats):
    prior = shaken(cells, bound=bound_nats)
    with torch.no_grad():
        prior.tilt.intercept.mul_(1e6)
    batch = one_condition(cells, 500)
    made = prior(batch)
    z = 100 * torch.randn(500, 2)
    assert (made.log_prob(z) - made.base.log_prob(z)).abs().max() <= bound_nats + 1e-3


def test_it_starts_as_a_gaussian(cells):
    batch = cells.batch(slice(0, 9))
    made = bound(cells)(batch)
    z = torch.randn(9, 2)
    torch.testing.assert_close(made.log_prob(z), made.base.log_prob(z))
    q = dist.Normal(z, 0.5).to_event(1)
    torch.testing.assert_close(kl_divergence(q, made), kl_divergence(q, made.base))


def test_divergence_is_log_q_minus_log_p(cells):
    made = shaken(cells)(one_condition(cells, 20_000))
    q = dist.Normal(torch.zeros(20_000, 2), 0.7).to_event(1)
    z = q.sample()
    by_draws = (q.log_prob(z) - made.log_prob(z)).mean()
    assert float(kl_divergence(q, made).mean()) == pytest.approx(float(by_draws), abs=0.05)


@pytest.fixture
def fcr():
    return tiny_fcr(tiny_adata(per_condition=8), priors={"z_x": NonFactorised()})


def test_prior_and_encoders_learn_from_their_own_terms_alone(fcr):
    """No gradient from the ELBO reaches the prior, none from score matching the encoders."""
    objective, prior = fcr._objective, fcr.model.priors["z_x"]
    with torch.no_grad():
        prior.tilt.intercept.normal_()
    batch = fcr.cells.batch(slice(0, 64))
    own = list(prior.parameters())
    others = [p for p in objective.encoder_parameters() if all(p is not q for q in own)]
    elbo = objective.elbo.differentiable_loss(objective.model, objective.guide, batch)
    found = torch.autograd.grad(elbo, own, allow_unused=True, retain_graph=True)
    assert all(g is None or not g.any() for g in found)
    encoder = fcr.guide.locals.encoders.first_weight_gk
    assert torch.autograd.grad(elbo, encoder)[0].any()
    loss = prior.own_loss(objective.elbo.draws["z_x"].requires_grad_(), batch).mean()
    found = torch.autograd.grad(loss, [*own, *others], allow_unused=True)
    assert all(g is not None and g.any() for g in found[: len(own)] if g is not None)
    assert sum(g is not None for g in found[: len(own)]) >= 5
    assert all(g is None for g in found[len(own) :])
    # Both stand in the loss that is trained.
    objective(batch).loss.backward()
    assert encoder.grad.any()
    assert prior.gaussian.intercept.grad.any()


def test_encoders_feel_the_tilt(fcr):
    batch = fcr.cells.batch(slice(0, 64))
    encoder = fcr.guide.locals.encoders.first_weight_gk
    grads = []
    for weight in (0.0, 2.0):
        with torch.no_grad():
            fcr.model.priors["z_x"].tilt.intercept.fill_(weight)
        torch.manual_seed(0)
        grads.append(torch.autograd.grad(fcr._objective(batch).loss, encoder)[0])
    assert not torch.allclose(*grads)


def test_the_history_says_that_it_is_unnormalised(fcr):
    history = fit(fcr)
    assert "kl.z_x.unnormalised" in history
    assert "prior.z_x" in history
    assert "kl.z_x" not in history
    assert {"kl.z_t", "kl.z_tx"} <= set(history)
    assert "prior.z_t" not in history


@pytest.mark.slow
def test_five_hundred_epochs_stay_bounded():
    adata = tiny_adata(per_condition=16)
    fcr = tiny_fcr(adata, priors={name: NonFactorised() for name in SIZES})
    history = fit(fcr, max_epochs=500, batch_size=256)
    assert len(history) == 500
    terms = history.filter(regex=r"^(loss|counts|kl\.|prior\.)")
    assert terms.abs().to_numpy().max() < 500
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]


def test_gauge_cannot_be_fixed():
    assert hasattr(Gaussian(), "refit")
    assert not hasattr(NonFactorised(), "refit")
