"""The objective against the stock ELBO, plain autograd and numbers worked by hand."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroSample
from tiny import labelled, penalties_off, tiny_adata, tiny_cells, tiny_fcr
from torch import nn

import pyro_fcr as pf
from pyro_fcr.infer import Objective, Weighted
from pyro_fcr.infer.objective import ObservedHeads, PenalisedGuide, SiteELBO
from pyro_fcr.penalties import Head, PermutationDiscriminator, Reading


class Mixture(pf.Prior):
    def bind(self, block, design):
        self.size = block.size

    def forward(self, batch):
        n = len(batch)
        parts = dist.Normal(torch.tensor([-1.0, 2.0]).expand(n, self.size, 2), 0.7)
        mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(n, self.size, 2)), parts)
        return mixture.to_event(1)


class HeavyTailed(pf.Prior):
    def bind(self, block, design):
        self.size = block.size

    def forward(self, batch):
        return dist.StudentT(3.0, torch.zeros(len(batch), self.size), 1.0).to_event(1)


class Bayesian(pf.Prior):
    def __init__(self, size):
        super().__init__()
        self.slope = PyroSample(dist.Normal(0.0, 1.0).expand([size]).to_event(1))

    def forward(self, batch):
        return dist.Normal(self.slope * batch.dose[:, None], 1.0).to_event(1)


OFF = penalties_off()
PRIORS = {
    "analytic": {},
    "mixture": {"z_x": Mixture()},
    "student": {"z_t": HeavyTailed()},
    "bayesian": {"z_t": Bayesian(2)},
}


@pytest.fixture(scope="module")
def adata():
    return tiny_adata()


@pytest.mark.parametrize("priors", PRIORS.values(), ids=PRIORS.keys())
@pytest.mark.parametrize("n_cells", [None, 5000])
def test_value_and_gradient_are_the_stock_elbos(adata, priors, n_cells):
    fcr = tiny_fcr(adata, priors=priors, penalties=OFF)
    batch = fcr.cells.batch(slice(0, 40), n_cells=n_cells)
    parameters = [*fcr.model.parameters(), *fcr.guide.parameters()]
    results = []
    for elbo in (SiteELBO(), TraceMeanField_ELBO()):
        pyro.set_rng_seed(3)
        loss = elbo.differentiable_loss(fcr.model, fcr.guide, batch)
        results.append((loss, torch.autograd.grad(loss, parameters, allow_unused=True)))
    (ours, our_grads), (stock, stock_grads) = results
    assert float(ours.detach()) == pytest.approx(float(stock.detach()), rel=1e-6)
    for a, b in zip(our_grads, stock_grads, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_terms_add_up_to_the_loss(adata):
    fcr = tiny_fcr(adata, penalties={"covariate_head": 0.5, "z_x_vs_z_tx": 2.0})
    terms = fcr._objective(fcr.cells.batch(slice(0, 64)))
    s, weights = terms.sites, fcr._objective.guide.weights
    total = (
        -s["counts"] - 0.5 * s["covariate_head"] + s["kl.z_x"] + s["kl.z_t"] + s["kl.z_tx"]
        + sum(weights[name] * s[name] for name in OFF) + 2 * s["z_x_vs_z_tx"]
    )  # fmt: skip
    torch.testing.assert_close(terms.loss.detach(), total, rtol=1e-5, atol=1e-4)


class OneDim:
    """y ~ N(z, 1), z ~ N(0, 1), q = N(m, s): every number of the ELBO is known."""

    def __init__(self, m=0.5, s=0.25, mixture=False):
        self.m, self.s, self.mixture = (
            torch.tensor(m, requires_grad=True),
            torch.tensor(s),
            mixture,
        )

    def model(self, batch):
        shared = pyro.sample("shared", dist.Normal(0.0, 1.0))
        with pyro.plate("cells", batch.n_cells, subsample=batch.index):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(batch), 1), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z + 0 * shared, 1.0).to_event(1), obs=batch.counts[:, :1])

    def guide(self, batch):
        pyro.sample("shared", dist.Normal(1.0, 1.0))
        with pyro.plate("cells", batch.n_cells, subsample=batch.index):
            pyro.sample("z", dist.Normal(self.m.expand(len(batch), 1), self.s).to_event(1))


def test_annealed_loss_by_hand():
    # KL(N(½, ¼²) ‖ N(0, 1)) = ½ (¼² + ½² − 1) − log ¼; KL of the shared variable is ½. Four
    # cells stand for twenty; annealing spares the shared variable.
    case, batch = OneDim(), labelled([0] * 4, [0] * 4).replace(n_cells=20)
    kl = 0.5 * (0.0625 + 0.25 - 1) + torch.log(torch.tensor(4.0)).item()
    for weight in (1.0, 0.3, 0.0):
        elbo = SiteELBO(kl_weight=weight)
        observed, divergences, factors = elbo.site_terms(case.model, case.guide, batch)
        z = elbo.draws["z"]
        log_density = 5 * dist.Normal(z, 1.0).log_prob(torch.tensor(1.0)).sum()
        assert not factors
        assert float(observed["y"].detach()) == pytest.approx(float(log_density), rel=1e-5)
        assert float(divergences["z"].detach()) == pytest.approx(20 * kl, rel=1e-5)
        assert float(divergences["shared"]) == pytest.approx(0.5, rel=1e-5)
        total = float(elbo.total(observed, divergences, factors).detach())
        assert total == pytest.approx(-float(log_density) + weight * 20 * kl + 0.5, rel=1e-5)


def test_a_divergence_without_a_formula_is_annealed_too(adata):
    fcr = tiny_fcr(adata, priors={"z_x": Mixture()}, penalties=OFF)
    batch = fcr.cells.batch(slice(0, 30))
    losses = {}
    for weight in (1.0, 0.25):
        pyro.set_rng_seed(1)
        terms = fcr._objective(batch, kl_weight=weight)
        losses[weight] = float(terms.loss.detach())
    kl = float(sum(v for k, v in terms.sites.items() if k.startswith("kl.")))
    assert losses[1.0] - losses[0.25] == pytest.approx(0.75 * kl, rel=1e-4)


class Coin(Head):
    """Reads nothing: a coin of known bias, observed for every other cell."""

    def forward(self, z, batch):
        n = len(batch)
        return Reading(
            dist.Bernoulli(torch.full((n,), 0.25)), torch.ones(n), torch.arange(n) % 2 == 0
        )


def test_heads_scale_and_mask_by_hand():
    # Five of ten cells, each log ¼, standing for 30 of 60, at a weight of 0.7.
    case = OneDim()
    batch = labelled([0] * 10, [0] * 10).replace(n_cells=60)
    model = ObservedHeads(case.model, {"coin": Weighted(Coin(), 0.7)})
    trace = poutine.trace(model).get_trace(batch)
    trace.compute_log_prob()
    site = trace.nodes["coin"]
    assert site["is_observed"]
    expected = 0.7 * 30 * torch.tensor(0.25).log()
    torch.testing.assert_close(site["log_prob_sum"], expected)
    observed, _, _ = SiteELBO().site_terms(model, case.guide, batch)
    torch.testing.assert_close(observed["coin"], expected)


class Squared(pf.Penalty):
    """The mean square of the draws: its gradient is known."""

    def forward(self, z, batch):
        return z["z"].square().mean()


class SquaredMean(Squared):
    reads = "mean"


@pytest.mark.parametrize("penalty", [Squared(), SquaredMean()], ids=["draw", "mean"])
@pytest.mark.parametrize("n", [4, 16])
def test_factor_convention_and_gradient_against_plain_autograd(penalty, n):
    case = OneDim()
    batch = labelled([0] * n, [0] * n).replace(n_cells=80)
    guide = PenalisedGuide(case.guide, {"pen": Weighted(penalty, 3.0)})

    def loss(g, elbo):
        pyro.set_rng_seed(0)
        value = elbo.differentiable_loss(case.model, g, batch)
        return value.detach(), torch.autograd.grad(value, case.m)[0]

    for elbo in (SiteELBO(), TraceMeanField_ELBO(), Trace_ELBO()):
        (with_value, with_grad), (value, grad) = loss(guide, elbo), loss(case.guide, elbo)
        pyro.set_rng_seed(0)
        trace = poutine.trace(case.guide).get_trace(batch)
        z = trace.nodes["z"]["fn"].mean if penalty.reads == "mean" else trace.nodes["z"]["value"]
        plain = 3.0 * 80 * z.square().mean()
        torch.testing.assert_close(with_value - value, plain.detach(), rtol=1e-4, atol=1e-3)
        expected = torch.autograd.grad(plain, case.m)[0]
        torch.testing.assert_close(with_grad - grad, expected, rtol=1e-4, atol=1e-3)


def test_a_factor_does_not_know_the_minibatchs_size():
    case = OneDim(s=1e-6)
    values = []
    for n in (2, 8, 40):
        batch = labelled([0] * n, [0] * n).replace(n_cells=40)
        guide = PenalisedGuide(case.guide, {"pen": Weighted(SquaredMean(), 2.0)})
        _, _, factors = SiteELBO().site_terms(case.model, guide, batch)
        values.append(float(factors["pen"].detach()))
    assert values == pytest.approx([2.0 * 40 * 0.25] * 3, rel=1e-5)


def test_ramp_scales_the_factor_and_not_what_is_reported():
    case = OneDim(s=1e-6)
    objective = Objective(
        _module(case.model), _module(case.guide), heads={},
        penalties={"pen": Weighted(SquaredMean(), 2.0)},
    )  # fmt: skip
    batch = labelled([0] * 4, [0] * 4)
    losses = {}
    for ramp in (0.0, 0.5, 1.0):
        pyro.set_rng_seed(0)
        terms = objective(batch, ramp=ramp)
        losses[ramp] = float(terms.loss.detach())
        assert float(terms.sites["pen"]) == pytest.approx(0.25 if ramp else 0.0)
    assert losses[0.5] - losses[0.0] == pytest.approx(0.25, rel=1e-4)
    assert losses[1.0] - losses[0.0] == pytest.approx(0.5, rel=1e-4)


def test_a_price_multiplies_the_divergence_of_priced_sites_and_not_what_is_reported():
    case = OneDim(s=0.5)
    batch = labelled([0] * 4, [0] * 4)
    found = {}
    for priced in ((), ("z",)):
        objective = Objective(
            _module(case.model), _module(case.guide), heads={}, penalties={}, priced=priced
        )
        pyro.set_rng_seed(0)
        found[priced] = objective(batch, price=3.0)
    plain, priced = found[()], found["z",]
    divergence = plain.sites["kl.z"]
    torch.testing.assert_close(priced.sites["kl.z"], divergence)
    torch.testing.assert_close((priced.loss - plain.loss).detach(), 2.0 * divergence)


def _module(function):
    class Wrapped(nn.Module):
        def forward(self, batch):
            return function(batch)

    return Wrapped()


def test_the_bare_guide_is_free_of_penalties(adata):
    fcr = tiny_fcr(adata)
    batch = fcr.cells.batch(slice(0, 10))
    names = set(Predictive(fcr.guide, num_samples=2)(batch))
    assert names == {"z_x", "z_t", "z_tx"}
    wrapped = poutine.trace(fcr._objective.guide).get_trace(batch).nodes
    assert len(OFF) == 2
    assert OFF.keys() <= set(wrapped)


def test_swapping_the_guide_keeps_the_penalties(adata):
    class Blind(pf.Guide):
        def bind(self, blocks, design, likelihood, genes):
            self.blocks = tuple(blocks)
            self.loc = nn.Parameter(torch.zeros(1))

        def forward(self, batch):
            with pyro.plate("cells", batch.n_cells, subsample=batch.index):
                for b in self.blocks:
                    loc = self.loc.expand(len(batch), b.size)
                    pyro.sample(b.name, dist.Normal(loc, 1.0).to_event(1))

    for guide in (Blind(), pf.guides.Amortised(labels=True, width=8)):
        fcr = tiny_fcr(adata, guide=guide, penalties={"z_x_vs_z_tx": 1.0})
        sites = fcr._objective(fcr.cells.batch(slice(0, 20))).sites
        assert {*OFF, "z_x_vs_z_tx"} <= set(sites)


def test_critics_and_encoders_get_each_their_own_gradient(adata):
    fcr = tiny_fcr(adata, penalties={"z_x_vs_z_tx": 1.0, "z_t_vs_z_tx": 1.0})
    objective = fcr._objective
    batch = fcr.cells.batch()
    critics, encoders = objective.critic_parameters(), objective.encoder_parameters()
    assert len(critics) + len(encoders) == len(list(objective.parameters()))
    assert not {id(p) for p in critics} & {id(p) for p in encoders}
    assert set(objective.critics) == {"z_x_vs_z_tx", "z_t_vs_z_tx"}

    # The ELBO step, critics frozen: the penalty alone must move the encoders.
    for part in objective.critics.values():
        part.requires_grad_(False)
    with_penalty, without = [], []
    for ramp, found in ((1.0, with_penalty), (0.0, without)):
        pyro.set_rng_seed(0)
        objective.zero_grad()
        terms = objective(batch, ramp=ramp)
        terms.loss.backward()
        found += [p.grad.clone() for p in fcr.guide.parameters() if p.grad is not None]
    assert all(p.grad is None for p in critics)
    assert any(not torch.allclose(a, b) for a, b in zip(with_penalty, without, strict=True))

    # The critics' step on detached draws.
    objective.zero_grad()
    assert not any(z.requires_grad for read in terms.read.values() for z in read.values())
    for name, part in objective.critics.items():
        part.requires_grad_(True)
        part.critic_loss(terms.read[name], batch)[0].backward()
    assert all(p.grad is not None for p in critics)
    assert all(p.grad is None for p in encoders)


def test_penalties_by_mean_ignore_global_sites_without_one(adata):
    # A normalising flow for the globals has no mean to give; penalties read cells' blocks only.
    from pyro.infer.autoguide import AutoIAFNormal

    def flow(model):
        return AutoIAFNormal(model, hidden_dim=[4], num_transforms=1)

    class Mean(pf.Penalty):
        reads = "mean"

        def forward(self, z, batch):
            return z["z_t"].square().mean()

    fcr = tiny_fcr(adata, priors={"z_t": Bayesian(2)}, guide=pf.guides.Composed(globals=flow),
                   penalties={"mine": (Mean(), 2.0)})  # fmt: skip
    batch = fcr.cells.batch(slice(0, 10))
    terms = fcr._objective(batch)
    assert torch.isfinite(terms.loss)
    mean = fcr.guide.locals.posteriors(batch)["z_t"].mean
    torch.testing.assert_close(terms.sites["mine"], mean.square().mean().detach())


class Positive(pf.Prior):
    """A global on the positive half-line; the cells do not read it."""

    def __init__(self):
        super().__init__()
        self.rate = PyroSample(dist.LogNormal(0.0, 1.0))

    def bind(self, block, design):
        self.size = block.size

    def forward(self, batch):
        loc = torch.zeros(len(batch), self.size) + 0.0 * self.rate
        return dist.Normal(loc, 1.0).to_event(1)


def test_a_constrained_globals_jacobian_is_counted():
    # q(log rate) = N(1, s) against p = N(0, 1): the divergence is that of the logarithms,
    # wherever the transform is taken. The stock mean-field ELBO drops the Jacobian.
    adata = tiny_adata(per_condition=8)
    fcr = tiny_fcr(adata, priors={"z_t": Positive()}, penalties=OFF,
                   guide=pf.guides.Composed(globals=AutoNormal))  # fmt: skip
    auto = fcr.guide.global_guide
    batch = fcr.cells.batch(slice(0, 4))
    with torch.no_grad():
        for parameter in auto.locs.parameters():
            parameter.fill_(1.0)
        scale = float(auto.scales.priors.z_t.rate)
    exact = 0.5 * (scale**2 + 1.0 - 1.0) - torch.log(torch.tensor(scale)).item()
    elbo, found = SiteELBO(), []
    for _ in range(400):
        with torch.no_grad():
            _, divergences, factors = elbo.site_terms(fcr.model, fcr.guide, batch)
        auxiliary = sum(float(v) for v in factors.values())
        found.append(float(divergences["priors.z_t.rate"]) + auxiliary)
    values = torch.tensor(found)
    assert float(values.mean()) == pytest.approx(exact, abs=4 * float(values.std()) / 20 + 1e-3)


def test_discriminators_read_draws():
    assert PermutationDiscriminator.reads == "draw"
    assert tiny_cells().design.n_treatments == 2
