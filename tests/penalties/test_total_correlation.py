"""Total correlation: both estimators against the analytic value of correlated Gaussians."""

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from tiny import fit, labelled, tiny_adata, tiny_fcr

from pyro_fcr.distributions import FactoredNormal
from pyro_fcr.errors import SlotError
from pyro_fcr.guides import FlowRefined, Joint
from pyro_fcr.nn import Block, Posteriors
from pyro_fcr.penalties import DensityRatioTC, TotalCorrelation
from pyro_fcr.penalties.total_correlation import _log_weights

BLOCKS = (Block("a", 2), Block("b", 1))
RHO = 0.8
TRUE = -0.5 * math.log(1 - RHO**2)
"""Mutual information of a pair of correlation 0.8: 0.51 nats."""


def bound(part, blocks=BLOCKS):
    torch.manual_seed(0)
    part.bind(blocks, None)
    return part


def correlated(n, rho=RHO):
    """Draws of a (2) and b (1): a's first component and b correlate, all have variance one."""
    a, noise = torch.randn(n, 2), torch.randn(n, 1)
    return {"a": a, "b": rho * a[:, :1] + math.sqrt(1 - rho**2) * noise}


def posteriors(n, rho=RHO, sd=0.3):
    """Posteriors whose aggregate is the Gaussian of ``correlated``: it adds sd² of its own."""
    shrunk = 1 - sd**2
    z = correlated(n, rho / shrunk)
    return {k: dist.Normal(math.sqrt(shrunk) * v, sd).to_event(1) for k, v in z.items()}


def batch(n, n_cells=None):
    made = labelled([0] * n, [0] * n)
    return made.replace(n_cells=n if n_cells is None else n_cells)


@pytest.mark.parametrize("n_cells", [3000, 10**6])
@pytest.mark.parametrize(("rho", "true"), [(0.0, 0.0), (RHO, TRUE)])
def test_minibatch_estimate_between_blocks(rho, true, n_cells):
    penalty = bound(TotalCorrelation())
    value = penalty(posteriors(3000, rho), batch(3000, n_cells))
    assert float(value) == pytest.approx(true, abs=0.1)


def test_minibatch_estimate_between_components():
    """Two correlated pairs: one between the blocks and one inside the first."""
    n, sd = 3000, 0.3
    chol = torch.linalg.cholesky(
        torch.tensor([[1.0, 0.5, RHO], [0.5, 1.0, 0.4], [RHO, 0.4, 1.0]]) - sd**2 * torch.eye(3)
    )
    z = torch.randn(n, 3) @ chol.T
    q = {
        "a": dist.Normal(z[:, :2], sd).to_event(1),
        "b": dist.Normal(z[:, 2:], sd).to_event(1),
    }
    covariance = torch.tensor([[1.0, 0.5, RHO], [0.5, 1.0, 0.4], [RHO, 0.4, 1.0]])
    true = -0.5 * float(torch.logdet(covariance))
    value = bound(TotalCorrelation(between="components"))(q, batch(n))
    assert float(value) == pytest.approx(true, abs=0.12)
    # Between blocks: I(a; b) by the determinants of the parts.
    true += 0.5 * math.log(1 - 0.5**2)
    assert float(bound(TotalCorrelation())(q, batch(n))) == pytest.approx(true, abs=0.12)


@pytest.mark.parametrize("between", ["blocks", "components"])
def test_minibatch_estimate_of_a_joint_posterior(between):
    """Every cell has the same posterior, whose own correlations are all there is to see."""
    covariance = torch.tensor([[1.0, 0.5, RHO], [0.5, 1.0, 0.4], [RHO, 0.4, 1.0]])
    tril = torch.linalg.cholesky(covariance).expand(3000, 3, 3)
    q = FactoredNormal(torch.zeros(3000, 3), tril)
    sites = {}
    for name, own in (("a", slice(0, 2)), ("b", slice(2, 3))):
        alone = dist.Normal(q.loc[:, own], q.variance[:, own].sqrt()).to_event(1)
        sites[name] = {"fn": None, "infer": {"marginal": alone, "joint": q}}
    true = -0.5 * float(torch.logdet(covariance))
    if between == "blocks":
        true += 0.5 * math.log(1 - 0.5**2)
    torch.manual_seed(1)
    value = bound(TotalCorrelation(between=between))(Posteriors(sites), batch(3000))
    assert float(value) == pytest.approx(true, abs=0.08)


def test_a_joint_guide_is_read_jointly():
    torch.manual_seed(0)
    guide = Joint(width=8, depth=1)
    part = {"tc": (TotalCorrelation(("z_x", "z_tx")), 1.0)}
    fcr = tiny_fcr(tiny_adata(per_condition=6), guide=guide, penalties=part)
    locals_, cells = fcr.guide.locals, fcr.cells.batch()
    with torch.no_grad():
        locals_.encoders.last_bias_ko[-1].fill_(0.5)
        joint = locals_.joint(locals_.encode(cells))
        kept = torch.tensor([0, 1, 2, 5, 6])
        whole = joint.factor @ joint.factor.mT
        drawn = joint.rsample()
        own = dist.MultivariateNormal(joint.loc[:, kept], whole[:, kept][:, :, kept])
        torch.testing.assert_close(
            joint.over(kept).log_prob(drawn[:, kept]), own.log_prob(drawn[:, kept])
        )
        torch.manual_seed(3)
        read = fcr._objective(cells).sites["tc"]
        apart = Posteriors(
            {k: {"fn": q, "infer": {}} for k, q in locals_.posteriors(cells).items()}
        )
        torch.manual_seed(3)
        blind = fcr._objective.guide.parts[-1](apart, cells)
    assert float((read - blind).abs()) > 0.05


def test_a_guide_without_densities_of_its_blocks_is_refused():
    part = {"tc": (TotalCorrelation(("z_x", "z_t")), 1.0)}
    with pytest.raises(SlotError, match=r"no density of a block alone.*DensityRatioTC"):
        tiny_fcr(tiny_adata(per_condition=6), guide=FlowRefined(width=8), penalties=part)


def test_stratified_weights_are_unbiased():
    """Over all minibatches of 3 that hold a cell, its weighted density is the mean over all 6."""
    n_cells, n, i = 6, 3, 2
    density = torch.rand(n_cells, generator=torch.Generator().manual_seed(0))
    weight = _log_weights(torch.zeros(n, n), n_cells).exp()
    found = []
    for others in itertools.combinations([j for j in range(n_cells) if j != i], n - 1):
        found.append(weight[0] @ density[[i, *others]])
    assert float(torch.stack(found).mean()) == pytest.approx(float(density.mean()), rel=1e-5)


def test_one_cell_tells_nothing():
    value = bound(TotalCorrelation())(posteriors(1), batch(1))
    assert float(value) == pytest.approx(0.0, abs=1e-5)


def test_minibatch_gradient_reaches_means_and_scales():
    loc = {k: v.requires_grad_() for k, v in correlated(50).items()}
    scale = {k: torch.full_like(v, 0.3).requires_grad_() for k, v in loc.items()}
    q = {k: dist.Normal(loc[k], scale[k]).to_event(1) for k in loc}
    bound(TotalCorrelation())(q, batch(50)).backward()
    assert all(p.grad.any() for p in [*loc.values(), *scale.values()])


@pytest.mark.slow
@pytest.mark.parametrize(("rho", "true"), [(0.0, 0.0), (RHO, TRUE)])
def test_density_ratio_between_blocks(rho, true):
    penalty = bound(DensityRatioTC())
    train(penalty, lambda n: correlated(n, rho))
    value = penalty(correlated(20_000, rho), batch(20_000)).detach()
    assert float(value) == pytest.approx(true, abs=0.08)


@pytest.mark.slow
def test_density_ratio_between_components_sees_inside_a_block():
    def inside(n):
        z = correlated(n)
        return {"a": torch.cat([z["a"][:, :1], z["b"]], 1), "b": z["a"][:, 1:]}

    within = bound(DensityRatioTC(between="components"))
    between = bound(DensityRatioTC())
    for penalty in (within, between):
        train(penalty, inside)
    z = inside(20_000)
    assert float(within(z, batch(20_000)).detach()) == pytest.approx(TRUE, abs=0.08)
    assert float(between(z, batch(20_000)).detach()) == pytest.approx(0.0, abs=0.05)


def train(penalty, draw, steps=1200):
    search = torch.optim.Adam(penalty.parameters(), lr=2e-3)
    for _ in range(steps):
        search.zero_grad()
        loss, accuracy = penalty.critic_loss(draw(512), batch(512))
        loss.backward()
        search.step()
    assert 0.4 < float(accuracy) < 0.9


@pytest.mark.parametrize("kind", [TotalCorrelation, DensityRatioTC])
def test_refusals(kind):
    with pytest.raises(SlotError, match=r"between=.*'rows'"):
        kind(between="rows")
    with pytest.raises(SlotError, match="one group is independent of nothing"):
        bound(kind(("a",)))
    with pytest.raises(SlotError, match="one group is independent of nothing"):
        bound(kind(("b",), between="components"))
    with pytest.raises(SlotError, match="reads the block 'c'"):
        bound(kind(("a", "c")))
    assert bound(kind(("a",), between="components"))


@pytest.mark.parametrize("kind", [TotalCorrelation, DensityRatioTC])
def test_in_any_system(kind, tmp_path):
    adata = tiny_adata(per_condition=6)
    fcr = tiny_fcr(adata, penalties={"tc": (kind(("z_x", "z_t")), 1.0)})
    history = fit(fcr)
    assert history["tc"].notna().all()
    assert fcr.save(tmp_path / "m")


def test_components_that_depend_on_one_another_are_told():
    penalty = TotalCorrelation(between="components")
    penalty.bind((Block("z", 2),), None)
    q = dist.MultivariateNormal(torch.zeros(4, 2), torch.eye(2).expand(4, 2, 2))
    with pytest.raises(SlotError, match="no density of a component alone"):
        penalty({"z": q}, labelled([0] * 4, [0] * 4))
