"""The joint Gaussian: its density by blocks, its marginals, its gauge, and what it can fit."""

import numpy as np
import pytest
import torch
from pyro import poutine
from tiny import fit, tiny_adata, tiny_cells, tiny_fcr, tiny_genes
from torch.distributions import MultivariateNormal

import pyro_fcr as pf
from pyro_fcr.guides import Joint
from pyro_fcr.likelihoods import resolve
from pyro_fcr.nn import Block, marginal

BLOCKS = (
    Block("z_x", 3, frozenset({"covariates"})),
    Block("z_t", 2, frozenset({"treatment"})),
    Block("z_tx", 1, frozenset({"treatment", "covariates"})),
)


def bound(cells, blocks=BLOCKS, **options):
    guide = Joint(width=8, depth=2, **options)
    guide.bind(blocks, cells.design, resolve("nb"), tiny_genes(cells))
    for parameter in guide.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return guide.double()


def turned(guide):
    for name, d in (("z_x", 3), ("z_t", 2)):
        guide.turn(name, torch.randn(d, d, dtype=torch.float64), torch.ones(d))
    return guide


@pytest.fixture(scope="module")
def cells():
    return tiny_cells()


def reference(guide, parameters):
    q = guide.joint(parameters)
    return MultivariateNormal(q.mean, q.factor @ q.factor.mT)


@pytest.mark.parametrize("prepare", [lambda guide: guide, turned], ids=["plain", "turned"])
@torch.no_grad()
def test_the_product_of_the_sites_is_the_joint_density(cells, prepare):
    guide, batch = prepare(bound(cells)), cells.batch(slice(0, 9))
    trace = poutine.trace(guide).get_trace(batch)
    sites = [trace.nodes[block.name] for block in BLOCKS]
    total = sum(site["fn"].log_prob(site["value"]) for site in sites)
    whole = reference(guide, guide.encode(batch))
    value = torch.cat([site["value"] for site in sites], -1)
    torch.testing.assert_close(total, whole.log_prob(value))
    # Each site says what its block is alone.
    for block, mean, variance in zip(
        BLOCKS, whole.mean.split([3, 2, 1], -1), whole.variance.split([3, 2, 1], -1), strict=True
    ):
        alone = marginal(trace.nodes[block.name])
        torch.testing.assert_close(alone.mean, mean)
        torch.testing.assert_close(alone.variance, variance)


@torch.no_grad()
def test_a_block_that_is_set_moves_the_blocks_after_it_as_the_joint_says(cells):
    guide, batch = bound(cells), cells.batch(slice(0, 4))
    value = torch.randn(4, 3, dtype=torch.float64)
    trace = poutine.trace(poutine.condition(guide, data={"z_x": value})).get_trace(batch)
    whole = reference(guide, guide.encode(batch))
    cov, mean = whole.covariance_matrix, whole.mean
    gain = cov[:, 3:5, :3] @ torch.linalg.inv(cov[:, :3, :3])
    expected = mean[:, 3:5] + (gain @ (value - mean[:, :3])[..., None]).squeeze(-1)
    left = cov[:, 3:5, 3:5] - gain @ cov[:, :3, 3:5]
    q = trace.nodes["z_t"]["fn"]
    torch.testing.assert_close(q.mean, expected)
    torch.testing.assert_close(q.factor @ q.factor.mT, left)


@torch.no_grad()
def test_noise_is_placed_with_its_density(cells):
    guide, batch = turned(bound(cells)), cells.batch(slice(0, 5))
    parameters, noise = guide.encode(batch), torch.randn(5, 6, dtype=torch.float64)
    z, log_q = guide.place(parameters, noise)
    value = torch.cat(list(z.values()), -1)
    total = torch.stack(list(log_q.values())).sum(0)
    torch.testing.assert_close(total, reference(guide, parameters).log_prob(value))
    trace = poutine.trace(poutine.condition(guide, data=z)).get_trace(batch)
    for name, density in log_q.items():
        torch.testing.assert_close(density, trace.nodes[name]["fn"].log_prob(z[name]))


@torch.no_grad()
def test_a_turn_is_exact(cells):
    guide, batch = bound(cells), cells.batch(slice(0, 5))
    before = reference(guide, guide.encode(batch))
    full = torch.eye(6, dtype=torch.float64)
    for _ in range(2):
        matrix = torch.randn(2, 2, dtype=torch.float64)
        guide.turn("z_t", matrix, torch.ones(2))
        full[3:5, 3:5] = matrix @ full[3:5, 3:5]
    after = reference(guide, guide.encode(batch))
    torch.testing.assert_close(after.mean, before.mean @ full.T)
    torch.testing.assert_close(after.covariance_matrix, full @ before.covariance_matrix @ full.T)


def test_it_starts_near_the_mean_field(cells):
    guide = Joint(width=8)
    guide.bind(BLOCKS, cells.design, resolve("nb"), tiny_genes(cells))
    with torch.no_grad():
        q = guide.joint(guide.encode(cells.batch()))
    correlation = q.factor / q.variance.sqrt()[..., None]
    assert float((correlation @ correlation.mT - torch.eye(6)).abs().max()) < 0.2


def test_one_dimension_has_no_correlations(cells):
    guide, batch = bound(cells, (Block("z", 1),)), cells.batch(slice(0, 3))
    assert guide(batch)["z"].shape == (3, 1)
    q, site = guide.joint(guide.encode(batch)), poutine.trace(guide).get_trace(batch).nodes["z"]
    normal = torch.distributions.Normal(q.mean, q.variance.sqrt())
    torch.testing.assert_close(
        site["fn"].log_prob(site["value"]), normal.log_prob(site["value"]).sum(-1)
    )


def test_it_trains_aligns_saves_and_loads(tmp_path):
    adata = tiny_adata(per_condition=12)
    fcr = tiny_fcr(adata, guide=Joint(width=16, depth=1))
    fit(fcr, max_epochs=6)
    axes = fcr.guide.locals.axes
    # The gauge of the interaction block, and of no other, was fixed.
    assert not torch.equal(axes[5:, 5:], torch.eye(2))
    assert torch.equal(axes[:5, :5], torch.eye(5))
    again = pf.load(fcr.save(tmp_path / "m"))
    for name, frame in fcr.latents(adata).items():
        assert again.latents(adata)[name].equals(frame)
    drawn = fcr.posterior(adata[:3], draws=400).posterior
    means = fcr.latents(adata[:3])
    for name, frame in means.items():
        found, sd = drawn[name].values[0].mean(0), drawn[name].values[0].std(0)
        assert (np.abs(found - frame.to_numpy()) < 5 * sd / 20).all()
