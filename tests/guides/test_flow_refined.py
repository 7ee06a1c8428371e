"""The flow: change of variables, order of the dimensions, moments, gauge, and what it can bend."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats
from tiny import fit, tiny_adata, tiny_cells, tiny_fcr, tiny_genes

import pyro_fcr as pf
from pyro_fcr.guides import FlowRefined
from pyro_fcr.likelihoods import resolve
from pyro_fcr.nn import Block, marginal

BLOCKS = (Block("a", 2), Block("b", 1), Block("c", 2))


@pytest.fixture(scope="module")
def cells():
    return tiny_cells()


def bound(cells, blocks=BLOCKS, std=0.3, **options):
    torch.manual_seed(0)
    guide = FlowRefined(width=8, depth=1, **options)
    guide.bind(blocks, cells.design, resolve("nb"), tiny_genes(cells))
    for parameter in guide.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return guide.double()


def turned(guide):
    guide.turn("c", torch.tensor([[1.0, 2.0], [-0.5, 0.7]]).double(), torch.ones(2))
    return guide


@pytest.mark.parametrize("prepare", [lambda guide: guide, turned], ids=["plain", "turned"])
def test_the_density_is_that_of_a_change_of_variables(cells, prepare):
    guide, batch = prepare(bound(cells)), cells.batch(slice(0, 1))
    with torch.no_grad():
        parameters = guide.encode(batch)
    noise = torch.randn(1, 5, dtype=torch.float64)
    z, log_q = guide.place(parameters, noise)

    def whole(u):
        return torch.cat(list(guide.place(parameters, u[None])[0].values()), -1)[0]

    jacobian = torch.autograd.functional.jacobian(whole, noise[0])
    expected = dist.Normal(0.0, 1.0).log_prob(noise).sum() - jacobian.slogdet().logabsdet
    torch.testing.assert_close(sum(log_q.values())[0], expected)
    # Block by block it is the same, for values that are handed to it.
    with torch.no_grad():
        trace = poutine.trace(poutine.condition(guide, data=z)).get_trace(batch)
        for name, density in log_q.items():
            torch.testing.assert_close(trace.nodes[name]["fn"].log_prob(z[name]), density)


def test_a_dimension_reads_those_before_it_and_no_others(cells):
    guide = bound(cells)
    parameters = guide.encode(cells.batch(slice(0, 1)))
    jacobian = torch.autograd.functional.jacobian(
        lambda u: guide.push(parameters, u[None])[0][0], torch.randn(5, dtype=torch.float64)
    )
    assert torch.equal(jacobian.triu(1), torch.zeros(5, 5, dtype=torch.float64))
    assert (jacobian.tril().abs() > 0).sum() == 15


@torch.no_grad()
def test_draws_follow_the_density(cells):
    """What noise a draw stands for is standard normal."""
    guide, cell = turned(bound(cells)), cells.batch(slice(0, 1))
    batch = cell.rows(torch.zeros(4000, dtype=torch.long)).replace(index=torch.arange(4000))
    trace = poutine.trace(guide).get_trace(batch.replace(n_cells=4000))
    for block in BLOCKS:
        noise = trace.nodes[block.name]["fn"].whiten(trace.nodes[block.name]["value"])
        for column in noise.T.numpy():
            assert stats.kstest(column, "norm").pvalue > 1e-3


@torch.no_grad()
def test_mean_and_variance_of_a_block_alone(cells):
    guide, cell = turned(bound(cells, std=0.15)), cells.batch(slice(0, 1))
    batch = cell.rows(torch.zeros(20_000, dtype=torch.long))
    trace = poutine.trace(guide).get_trace(batch.replace(n_cells=20_000))
    for block in BLOCKS:
        site = trace.nodes[block.name]
        alone, drawn = marginal(site), site["value"]
        sd = drawn.std(0)
        assert float(((alone.mean[0] - drawn.mean(0)) / sd).abs().max()) < 0.1
        assert alone.variance[0].sqrt().numpy() == pytest.approx(sd.numpy(), rel=0.1)


def test_it_starts_as_the_mean_field(cells):
    guide = FlowRefined(width=8)
    guide.bind(BLOCKS, cells.design, resolve("nb"), tiny_genes(cells))
    with torch.no_grad():
        parameters, noise = guide.encode(cells.batch()), torch.randn(216, 5)
        z, _ = guide.place(parameters, noise)
        for block, output, part in zip(
            BLOCKS, parameters, noise.split([2, 1, 2], 1), strict=False
        ):
            loc, raw = output.chunk(2, -1)
            plain = loc + raw.exp() * part
            assert float((z[block.name] - plain).abs().max()) < 0.3


def test_it_bends_where_a_gaussian_cannot():
    """A banana, x₂ around x₁²: the flow's ELBO is far above the best Gaussian's."""
    cells = tiny_cells()
    batch = cells.batch(slice(0, 64))

    def model(batch):
        with pyro.plate("cells", 64):
            x = pyro.sample("a", dist.Normal(torch.zeros(64, 1), 1.0).to_event(1))
            pyro.sample("b", dist.Normal(2 * x.square(), 0.2).to_event(1))

    found = {}
    for kind in (FlowRefined, pf.guides.Joint):
        torch.manual_seed(0)
        guide = kind(width=32, depth=1)
        blocks = (Block("a", 1), Block("b", 1))
        guide.bind(blocks, cells.design, resolve("nb"), tiny_genes(cells))
        search = torch.optim.Adam(guide.parameters(), lr=0.01)
        values = []
        for _ in range(600):
            z, log_q = guide.place(guide.encode(batch), torch.randn(64, 2))
            trace = poutine.trace(poutine.condition(model, data=z)).get_trace(batch)
            elbo = sum(trace.nodes[k]["fn"].log_prob(z[k]) for k in z) - sum(log_q.values())
            search.zero_grad()
            (-elbo.mean()).backward()
            search.step()
            values.append(float(elbo.mean().detach()))
        found[kind] = np.mean(values[-50:])
    # The evidence is 0, since nothing is observed.
    assert found[FlowRefined] > -1.05
    assert found[pf.guides.Joint] < found[FlowRefined] - 0.25


def test_it_trains_saves_and_loads(tmp_path):
    adata = tiny_adata(per_condition=8)
    fcr = tiny_fcr(adata, guide=FlowRefined(width=16, depth=1))
    fit(fcr, max_epochs=4)
    again = pf.load(fcr.save(tmp_path / "m"))
    for name, frame in fcr.latents(adata).items():
        assert again.latents(adata)[name].equals(frame)
    assert fcr.counterfactual(adata, do={"treatment": "A"}, draws=2).X.min() >= 0
