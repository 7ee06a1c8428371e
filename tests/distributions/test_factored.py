"""The Gaussian by its factor against torch's own."""

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, StudentT, kl_divergence

from pyro_fcr.distributions import FactoredNormal


def made(turned, batch=(4,), d=3):
    generator = torch.Generator().manual_seed(0)
    loc = torch.randn(*batch, d, generator=generator, dtype=torch.float64)
    tril = torch.randn(*batch, d, d, generator=generator, dtype=torch.float64).tril(-1)
    tril = tril + torch.diag_embed(torch.rand(*batch, d, generator=generator).double() + 0.3)
    axes = torch.randn(d, d, generator=generator, dtype=torch.float64) if turned else None
    q = FactoredNormal(loc, tril, axes)
    factor = tril if axes is None else axes @ tril
    return q, MultivariateNormal(loc, factor @ factor.mT)


@pytest.mark.parametrize("turned", [False, True])
def test_density_moments_and_whitening(turned):
    q, reference = made(turned)
    value = torch.randn(5, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(q.log_prob(value), reference.log_prob(value))
    torch.testing.assert_close(q.mean, reference.mean)
    torch.testing.assert_close(q.variance, reference.variance)
    torch.testing.assert_close(q.place(q.whiten(value)), value)
    assert q.batch_shape == (4,)
    assert q.event_shape == (3,)
    assert q.expand((5, 4)).log_prob(value).shape == (5, 4)


def test_draws_have_its_covariance():
    torch.manual_seed(0)
    q, reference = made(True, batch=())
    drawn = q.rsample((200_000,))
    spread = reference.covariance_matrix.abs().max()
    torch.testing.assert_close(drawn.T.cov() / spread, reference.covariance_matrix / spread,
                               atol=0.02, rtol=0)  # fmt: skip
    torch.testing.assert_close(drawn.mean(0), reference.mean, atol=0.02, rtol=0)


@pytest.mark.parametrize("turned", [False, True])
def test_divergences(turned):
    q, reference = made(turned)
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    loc = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    plain = Independent(Normal(loc, scale), 1)
    full = MultivariateNormal(loc, torch.diag(scale**2) + 0.2)
    as_full = MultivariateNormal(loc, torch.diag(scale**2))
    torch.testing.assert_close(kl_divergence(q, plain), kl_divergence(reference, as_full))
    torch.testing.assert_close(kl_divergence(q, full), kl_divergence(reference, full))
    with pytest.raises(NotImplementedError):
        kl_divergence(q, Independent(StudentT(3.0, loc, scale), 1))


def test_the_noise_carries_the_gradient():
    q, _ = made(True)
    loc = q.loc.clone().requires_grad_()
    tril = q.scale_tril.clone().requires_grad_()
    FactoredNormal(loc, tril, q.axes).rsample().sum().backward()
    torch.testing.assert_close(loc.grad, torch.ones_like(loc))
    assert tril.grad.abs().sum() > 0
