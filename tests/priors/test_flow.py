"""The flow against autograd and quadrature."""

import pytest
import torch
from tiny import tiny_cells

from pyro_fcr.nn import Block
from pyro_fcr.priors import Flow, bounded_exp

PARENTS = frozenset({"treatment", "covariates"})


@pytest.fixture(scope="module")
def cells():
    return tiny_cells()


def bound(cells, size, *, std=0.4, **options):
    prior = Flow(**options)
    prior.bind(Block("z", size, PARENTS), cells.design)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return prior


@pytest.mark.parametrize("size", [2, 5])
def test_inverse_and_jacobian(cells, size):
    prior, batch = bound(cells, size), cells.batch(slice(0, 6))
    for coupling in prior(batch).transforms:
        x = torch.randn(6, size)
        y = coupling(x)
        assert (y - x).abs().max() > 0.05
        torch.testing.assert_close(coupling.inv(y), x, rtol=1e-4, atol=1e-4)
        # Cells do not mix, so each has a Jacobian of its own.
        jacobian = torch.autograd.functional.jacobian(coupling, x)
        blocks = jacobian[torch.arange(6), :, torch.arange(6)]
        assert jacobian.abs().sum() == pytest.approx(blocks.abs().sum().item(), rel=1e-6)
        expected = torch.linalg.slogdet(blocks).logabsdet
        torch.testing.assert_close(coupling.log_abs_det_jacobian(x, y), expected, rtol=1e-4,
                                   atol=1e-5)  # fmt: skip


def test_it_integrates_to_one_and_is_no_gaussian(cells):
    prior, batch = bound(cells, 2), cells.batch(slice(0, 3))
    with torch.no_grad():
        for parameter in prior.table.parameters():
            parameter.mul_(0.1)
    made = prior(batch)
    axis = torch.linspace(-25, 25, 1001)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        density = made.log_prob(grid[:, None]).exp()
    area = (axis[1] - axis[0]) ** 2
    torch.testing.assert_close(density.sum(0) * area, torch.ones(3), atol=2e-3, rtol=0)
    drawn = made.sample((20000,))[:, 0]
    centred = (drawn - drawn.mean(0)) / drawn.std(0)
    # Mardia's kurtosis of a Gaussian in two dimensions is 8, give or take 0.06.
    distance = torch.einsum("ni,ij,nj->n", centred, torch.linalg.inv(centred.T.cov()), centred)
    assert abs(distance.square().mean() - 8) > 0.5


def test_it_starts_as_the_gaussian(cells):
    prior, batch = Flow(), cells.batch(slice(0, 4))
    prior.bind(Block("z", 3, PARENTS), cells.design)
    raw, z = prior.table(batch), torch.randn(4, 3)
    expected = torch.distributions.Normal(raw[:, :3], bounded_exp(raw[:, 3:6])).log_prob(z).sum(-1)
    torch.testing.assert_close(prior(batch).log_prob(z), expected)


def test_draws_are_reparametrised_and_shaped(cells):
    prior, batch = bound(cells, 3), cells.batch(slice(0, 4))
    made = prior(batch)
    assert made.rsample((7,)).shape == (7, 4, 3)
    made.rsample().sum().backward()
    assert prior.table.intercept.grad.abs().sum() > 0
    assert made.expand([5, 4]).log_prob(torch.randn(5, 4, 3)).shape == (5, 4)


def test_couplings_know_the_condition(cells):
    prior = bound(cells, 2)
    context = prior.table(cells.batch())[:, 4:]
    assert len(context.unique(dim=0)) == 9


def test_one_dimension_and_extremes(cells):
    made = bound(cells, 1, std=30.0)(cells.batch(slice(0, 4)))
    assert torch.isfinite(made.log_prob(made.sample())).all()
