"""Correlated priors against scipy and closed forms."""

import numpy as np
import pytest
import torch
from pyro import distributions as dist
from scipy import stats
from tiny import tiny_cells
from torch.distributions import kl_divergence

from pyro_fcr.nn import Block
from pyro_fcr.priors import FullCovariance, LowRank, bounded_exp

PARENTS = frozenset({"treatment", "covariates"})


@pytest.fixture(scope="module")
def batch_of():
    cells = tiny_cells()

    def make(prior, size, std=0.3):
        prior.bind(Block("z", size, PARENTS), cells.design)
        for parameter in prior.parameters():
            torch.nn.init.normal_(parameter, std=std)
        return cells.batch(slice(0, 5))

    return make


PRIORS = [LowRank(), LowRank(rank=9), FullCovariance()]


@pytest.mark.parametrize("prior", PRIORS, ids=["low", "low_too_many", "full"])
@pytest.mark.parametrize("size", [1, 4])
def test_density_is_scipys(batch_of, prior, size):
    batch = batch_of(prior, size)
    made, z = prior(batch), torch.randn(5, size)
    assert (made.batch_shape, made.event_shape) == ((5,), (size,))
    for n in range(5):
        expected = stats.multivariate_normal.logpdf(
            z[n].numpy(), made.mean[n].detach(), made.covariance_matrix[n].detach()
        )
        assert made.log_prob(z)[n].item() == pytest.approx(expected, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("prior", PRIORS, ids=["low", "low_too_many", "full"])
def test_divergence_is_the_textbooks(batch_of, prior):
    made = prior(batch_of(prior, 4))
    loc, scale = torch.randn(5, 4), torch.rand(5, 4) + 0.2
    q = dist.Normal(loc, scale).to_event(1)
    # KL(N(m, S) | N(n, C)) = (tr(C⁻¹S) + (n − m)ᵀC⁻¹(n − m) − d + log|C| − log|S|) / 2
    precision = np.linalg.inv(made.covariance_matrix.detach().double().numpy())
    apart = (made.mean - loc).detach().double().numpy()
    s = scale.double().numpy() ** 2
    expected = 0.5 * (
        np.einsum("bii,bi->b", precision, s) + np.einsum("bi,bij,bj->b", apart, precision, apart)
        - 4 - np.linalg.slogdet(precision)[1] - np.log(s).sum(1)
    )  # fmt: skip
    np.testing.assert_allclose(kl_divergence(q, made).detach(), expected, rtol=1e-3)


def test_low_rank_starts_off_its_saddle(batch_of):
    prior = LowRank()
    batch = batch_of(prior, 3, std=0.0)
    prior.bind(Block("z", 3, PARENTS), tiny_cells().design)
    prior(batch).log_prob(torch.randn(5, 3)).sum().backward()
    assert prior.factor.grad.abs().min() > 0


def test_low_rank_covariance_by_hand(batch_of):
    prior = LowRank(rank=2)
    batch = batch_of(prior, 3)
    raw = prior.table(batch)
    w = 3 * torch.tanh((prior.factor + raw[:, 6:].unflatten(1, (3, 2))) / 3)
    expected = w @ w.mT + torch.diag_embed(bounded_exp(raw[:, 3:6]) ** 2)
    torch.testing.assert_close(prior(batch).covariance_matrix, expected)


def test_the_scales_are_standard_deviations_whatever_the_correlations(batch_of):
    prior = FullCovariance()
    batch = batch_of(prior, 4)
    made = prior(batch)
    torch.testing.assert_close(made.variance.sqrt(), bounded_exp(prior.table(batch)[:, 4:8]))
    off = made.covariance_matrix[0].detach()
    assert off[~torch.eye(4, dtype=bool)].abs().max() > 0.1


@pytest.mark.parametrize("prior", [LowRank(), FullCovariance()], ids=["low", "full"])
def test_extreme_parameters_stay_positive_definite(batch_of, prior):
    batch = batch_of(prior, 6, std=50.0)
    made = prior(batch)
    value = made.log_prob(made.sample())
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert all(torch.isfinite(p.grad).all() for p in prior.parameters())
