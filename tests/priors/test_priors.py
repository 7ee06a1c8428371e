"""Conditional priors."""

import pytest
import torch
from tiny import tiny_cells

from pyro_fcr.nn import Block
from pyro_fcr.nn.conditions import GAIN
from pyro_fcr.priors import Gaussian, Standard, bounded_exp

BLOCK = Block("z_tx", 2, frozenset({"treatment", "covariates"}))


@pytest.fixture(scope="module")
def cells():
    return tiny_cells()


def bound(prior, cells, block=BLOCK):
    prior.bind(block, cells.design)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return prior


def test_gaussian_moments_are_the_tables_halves(cells):
    prior = bound(Gaussian(), cells)
    batch = cells.batch(slice(0, 30))
    made, raw = prior(batch), prior.table(batch)
    assert (made.batch_shape, made.event_shape) == ((30,), (2,))
    torch.testing.assert_close(made.mean, raw[:, :2])
    torch.testing.assert_close(
        made.variance.sqrt(), torch.exp(3 * torch.tanh(raw[:, 2:] / 3)), rtol=1e-5, atol=1e-6
    )
    assert made.variance.unique().numel() > 6, "the scale moves with the condition"


def test_gaussian_of_fixed_scale(cells):
    made = bound(Gaussian(learn_scale=False), cells)(cells.batch(slice(0, 5)))
    assert (made.variance == 1).all()


@pytest.mark.parametrize("parents", [set(), {"covariates"}, {"treatment"}, {"batch"}])
def test_a_prior_reads_its_parents_alone(cells, parents):
    prior = bound(Gaussian(), cells, Block("z", 3, frozenset(parents)))
    batch = cells.batch(slice(0, 40))
    changes = {
        "covariates": {"covariates": (batch.covariates + 1) % 3,
                       "covariate_id": (batch.covariate_id + 1) % 3},
        "treatment": {"treatment": 1 - batch.treatment},
        "counts": {"counts": batch.counts + 1, "library": batch.library * 2},
    }  # fmt: skip
    for parent, change in changes.items():
        same = torch.equal(prior(batch).mean, prior(batch.replace(**change)).mean)
        assert same is (parent not in parents), parent


def test_the_start_spreads_means_and_hardly_scales(cells):
    torch.manual_seed(0)
    many = Block("z", 400, frozenset({"covariates"}))
    prior = Gaussian()
    prior.bind(many, cells.design)
    table = GAIN * prior.table.covariates
    assert table[:, :400].std().item() == pytest.approx(0.5, rel=0.1)
    assert table[:, 400:].std().item() == pytest.approx(0.05, rel=0.1)


def test_standard_is_blind(cells):
    prior = Standard()
    prior.bind(BLOCK, cells.design)
    made = prior(cells.batch(slice(0, 4)))
    assert (made.batch_shape, made.event_shape) == ((4,), (2,))
    assert (made.mean == 0).all()
    assert (made.variance == 1).all()
    assert not list(prior.parameters())


def test_bounded_exp():
    raw = torch.tensor([-1e4, -0.01, 0.0, 0.01, 1e4], dtype=torch.float64, requires_grad=True)
    scale = bounded_exp(raw)
    torch.testing.assert_close(scale[[0, -1]].log(), torch.tensor([-3.0, 3.0]).double())
    torch.testing.assert_close(scale[1:4], raw[1:4].exp(), rtol=1e-6, atol=0)
    scale.sum().backward()
    assert torch.isfinite(raw.grad).all()
