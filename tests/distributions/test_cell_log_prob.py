"""The fused per-cell density against the plain one, and its gradient against differences."""

import pytest
import torch

from pyro_fcr.distributions import (
    NegativeBinomial,
    Poisson,
    SharedNegativeBinomial,
    ZeroInflatedNegativeBinomial,
    negative_binomial_log_prob,
)
from pyro_fcr.distributions.densities import TABULATED, dense_log_prob


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


def test_counts_of_every_size_and_fractions_agree_in_single_precision():
    # Around the table's last row, far beyond it, and no whole numbers: all in one gene each.
    y = torch.tensor([1, 2, TABULATED - 1, TABULATED, TABULATED + 1, 5000, 0.5, 2.5])
    log_theta = torch.tensor([-8.0, -1.0, 0.0, 3.0, 12.0])
    y, log_mean = y[:, None].expand(8, 5), torch.full((8, 5), 1.0)
    inputs = [x.clone().requires_grad_() for x in (log_mean, log_theta)]
    fused = NegativeBinomial(*inputs, validate_args=False).log_prob(y)
    exact = [x.double().detach().requires_grad_() for x in inputs]
    plain = negative_binomial_log_prob(y.double(), *exact).sum(-1)
    torch.testing.assert_close(fused.double(), plain, rtol=2e-6, atol=1e-2)
    for ours, theirs in zip(
        torch.autograd.grad(fused.sum(), inputs),
        torch.autograd.grad(plain.sum(), exact),
        strict=True,
    ):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=0.1)


def zero_inflated_density(y, log_mean, log_theta, gate):
    """The mixture as it is written, from logsigmoids."""
    count = negative_binomial_log_prob(y, log_mean, log_theta)
    present = torch.nn.functional.logsigmoid(-gate) + count
    structural = torch.where(y == 0, torch.nn.functional.logsigmoid(gate), -torch.inf)
    return torch.logaddexp(present, structural).sum(-1)


@pytest.mark.parametrize("density", [zero_inflated_density, dense_log_prob])
def test_zero_inflated_value_and_gradient(density):
    y, log_mean, log_theta = random_cells()
    inputs = [log_mean, log_theta, 2 * torch.randn_like(log_mean)]
    inputs = [x.requires_grad_() for x in inputs]
    weight = torch.linspace(0.1, 3.0, 6, dtype=torch.float64)
    fused, plain = ZeroInflatedNegativeBinomial(*inputs).log_prob(y), density(y, *inputs)
    torch.testing.assert_close(fused, plain, rtol=1e-10, atol=1e-10)
    ours = torch.autograd.grad((weight * fused).sum(), inputs)
    theirs = torch.autograd.grad((weight * plain).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_poisson_is_the_stock_one():
    y, log_mean, _ = random_cells()
    ours, theirs = Poisson(log_mean), torch.distributions.Poisson(log_mean.exp())
    torch.testing.assert_close(ours.log_prob(y), theirs.log_prob(y).sum(-1))
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.expand((2, 6)).log_prob(y)[1], ours.log_prob(y))
    grad = torch.autograd.grad(Poisson(log_mean.requires_grad_()).log_prob(y).sum(), log_mean)[0]
    torch.testing.assert_close(grad, y - log_mean.detach().exp())
    drawn = Poisson(torch.full((3,), 1.5)).sample((20_000,))
    assert drawn.mean().item() == pytest.approx(4.4817, abs=0.05)
    assert drawn.var().item() == pytest.approx(4.4817, abs=0.15)


@pytest.mark.gpu
def test_the_dense_form_on_an_accelerator_agrees():
    y, log_mean, log_theta = random_cells(dtype=torch.float32)
    on_cpu = NegativeBinomial(log_mean, log_theta).log_prob(y)
    on_gpu = NegativeBinomial(log_mean.cuda(), log_theta.cuda()).log_prob(y.cuda())
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-5, atol=1e-4)


def shared_cells():
    y, logits, log_theta = random_cells()
    return y, logits, torch.linspace(-1.0, 7.0, 6, dtype=torch.float64), log_theta


def test_a_shared_library_equals_its_log_mean():
    y, logits, log_library, log_theta = shared_cells()
    weight = torch.linspace(0.1, 3.0, 6, dtype=torch.float64)

    def by_log_mean(logits, log_library, log_theta):
        log_mean = logits.log_softmax(-1) + log_library[:, None]
        return negative_binomial_log_prob(y, log_mean, log_theta).sum(-1)

    def shared(*given):
        return SharedNegativeBinomial(*given).log_prob(y)

    results = []
    for density in (shared, by_log_mean):
        given = [x.clone().requires_grad_() for x in (logits, log_library, log_theta)]
        out = density(*given)
        results.append((out, *torch.autograd.grad((weight * out).sum(), given)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    made = SharedNegativeBinomial(logits, log_library, log_theta)
    same = NegativeBinomial(logits.log_softmax(-1) + log_library[:, None], log_theta)
    torch.testing.assert_close(made.mean, same.mean)
    torch.testing.assert_close(made.variance, same.variance)
    torch.testing.assert_close(made.mean.sum(-1).log(), log_library)
    torch.testing.assert_close(made.expand([3, 6]).log_prob(y), same.expand([3, 6]).log_prob(y))


def test_a_shared_library_has_the_gradient_of_finite_differences():
    y, *given = shared_cells()
    given = [x.requires_grad_() for x in given]
    assert torch.autograd.gradcheck(lambda *x: SharedNegativeBinomial(*x).log_prob(y), given)


def test_a_share_too_small_for_single_precision_keeps_its_density_finite():
    y = torch.tensor([[1.0, 3.0]])
    logits = torch.tensor([[-200.0, 0.0]], requires_grad=True)
    log_prob = SharedNegativeBinomial(logits, torch.zeros(1), torch.zeros(2)).log_prob(y)
    exact = negative_binomial_log_prob(
        y.double(), logits.detach().double().log_softmax(-1), torch.zeros(2, dtype=torch.float64)
    ).sum(-1)
    torch.testing.assert_close(log_prob.double(), exact)
    (grad,) = torch.autograd.grad(log_prob, logits)
    # y(1 − s) − θ s − p Σ(...) by hand: s = p / (1 + p), so 1 for the rare gene, and for the
    # other (3 − 1)/2 − (1 + (3 − 1)/2) = −1.
    torch.testing.assert_close(grad, torch.tensor([[1.0, -1.0]]))


def test_a_cell_without_molecules_has_no_gradient():
    logits = torch.randn(1, 4, requires_grad=True)
    made = SharedNegativeBinomial(logits, torch.tensor([-torch.inf]), torch.zeros(4),
                                  validate_args=False)  # fmt: skip
    log_prob = made.log_prob(torch.zeros(1, 4))
    assert log_prob.item() == 0
    assert torch.autograd.grad(log_prob, logits)[0].abs().sum() == 0
