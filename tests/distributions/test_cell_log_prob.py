"""The fused per-cell density against the plain one, and its gradient against differences."""

import pytest
import torch

from pyro_fcr.distributions import NegativeBinomial, negative_binomial_log_prob


def random_cells(shape=(6, 5), dtype=torch.float64):
    y = torch.poisson(torch.full(shape, 0.8)).to(dtype)
    y[0] = 0
    y[1, 0] = 1000
    return y, torch.randn(shape, dtype=dtype), torch.randn(shape[-1], dtype=dtype)


def test_equals_the_sum_over_genes():
    y, log_mean, log_theta = random_cells()
    fused = NegativeBinomial(log_mean, log_theta).log_prob(y)
    plain = negative_binomial_log_prob(y, log_mean, log_theta).sum(-1)
    torch.testing.assert_close(fused, plain, rtol=1e-10, atol=1e-10)


def test_gradients_equal_finite_differences():
    y, log_mean, log_theta = random_cells()
    inputs = (log_mean.requires_grad_(), log_theta.requires_grad_())
    assert torch.autograd.gradcheck(lambda m, t: NegativeBinomial(m, t).log_prob(y), inputs)


def test_gradients_equal_autograd_through_the_plain_density_with_unequal_cells():
    y, log_mean, log_theta = random_cells()
    weight = torch.linspace(0.1, 3.0, 6, dtype=torch.float64)
    grads = []
    for density in (
        lambda m, t: NegativeBinomial(m, t).log_prob(y),
        lambda m, t: negative_binomial_log_prob(y, m, t).sum(-1),
    ):
        m, t = log_mean.clone().requires_grad_(), log_theta.clone().requires_grad_()
        grads.append(torch.autograd.grad((weight * density(m, t)).sum(), (m, t)))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.gpu
def test_the_dense_form_on_an_accelerator_agrees():
    y, log_mean, log_theta = random_cells(dtype=torch.float32)
    on_cpu = NegativeBinomial(log_mean, log_theta).log_prob(y)
    on_gpu = NegativeBinomial(log_mean.cuda(), log_theta.cuda()).log_prob(y.cuda())
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-5, atol=1e-4)
