"""Count distributions against scipy, finite differences and moments."""

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from pyro_fcr.distributions import (
    NegativeBinomial,
    ZeroInflatedNegativeBinomial,
    negative_binomial_log_prob,
)

COUNTS = np.array([0, 1, 2, 7, 40, 1000], dtype=float)
MEANS = np.array([1e-6, 1e-2, 0.7, 5.0, 300.0, 2e4])
THETAS = np.array([np.exp(-8), 0.05, 1.0, 10.0, 1e3, np.exp(12)])


def grid(dtype):
    y, mu, theta = np.meshgrid(COUNTS, MEANS, THETAS, indexing="ij")
    y, mu = y.reshape(-1, len(THETAS)), mu.reshape(-1, len(THETAS))
    log_mean = torch.tensor(np.log(mu), dtype=dtype)
    log_theta = torch.tensor(np.log(THETAS), dtype=dtype)
    return torch.tensor(y, dtype=dtype), log_mean, log_theta


def exact_log_prob(y, log_mean, log_theta):
    """Fifty digits: scipy's own 1 - p cancels where the mean is far below the dispersion."""
    with mpmath.workdps(50):
        out = np.empty(np.broadcast_shapes(y.shape, log_mean.shape, log_theta.shape))
        rows = np.broadcast_arrays(y, log_mean, log_theta)
        for at in np.ndindex(out.shape):
            k, m, t = (mpmath.mpf(float(x[at])) for x in rows)
            mu, theta = mpmath.exp(m), mpmath.exp(t)
            out[at] = float(
                mpmath.loggamma(k + theta) - mpmath.loggamma(theta) - mpmath.loggamma(k + 1)
                + k * (m - mpmath.log(mu + theta)) + theta * (t - mpmath.log(mu + theta))
            )  # fmt: skip
    return out


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["f32", "f64"]
)
def test_log_prob_is_scipys(dtype, tolerance):
    y = torch.tensor([0, 1, 3, 12, 40], dtype=dtype)[:, None, None]
    log_mean = torch.tensor([0.05, 0.7, 5, 150], dtype=dtype).log()[:, None].expand(5, 4, 3)
    log_theta = torch.tensor([0.05, 1.0, 10.0], dtype=dtype).log()
    ours = negative_binomial_log_prob(y.expand(5, 4, 3), log_mean, log_theta)
    mu, theta = log_mean.double().exp(), log_theta.double().exp()
    theirs = stats.nbinom.logpmf(y.double().numpy(), theta.numpy(), (theta / (theta + mu)).numpy())
    np.testing.assert_allclose(ours.double(), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_log_prob_at_the_extremes(dtype):
    y, log_mean, log_theta = grid(dtype)
    ours = negative_binomial_log_prob(y, log_mean, log_theta).double().numpy()
    # The reference sees the rounded parameters, so that the formula is judged, not the rounding.
    y64, m64, t64 = (x.double().numpy() for x in (y, log_mean, log_theta))
    exact, theta = exact_log_prob(y64, m64, t64), np.exp(t64)
    # A difference of log-gammas of size θ log θ cannot be better than its own rounding; with
    # zero counts there is none.
    gammas = (y64 > 0) * (theta * np.abs(t64) + y64 * np.log(y64 + theta + 1))
    size = np.abs(exact) + y64 * np.abs(m64 - t64) + gammas + 1e-30
    assert np.max(np.abs(ours - exact) / size) < 20 * torch.finfo(dtype).eps


def test_log_prob_by_hand():
    # θ = 1 is geometric: p(y) = (1/(1+μ)) (μ/(1+μ))^y; with μ = 1 that is 2^-(y+1).
    y = torch.tensor([[0.0, 1.0, 5.0]])
    out = negative_binomial_log_prob(y, torch.zeros(1, 3), torch.zeros(3))
    np.testing.assert_allclose(out[0], -np.log(2) * np.array([1, 2, 6]), rtol=1e-6)


@pytest.mark.parametrize("counts", [[0.0, 0.0, 0.0, 0.0], [0.0, 3.0, 1.0, 60.0]])
def test_closed_form_backward_is_the_gradient(counts):
    y = torch.tensor(counts, dtype=torch.float64).expand(3, 4)
    log_mean = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    log_theta = torch.tensor([-3.0, 0.0, 2.0, 5.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda m, t: negative_binomial_log_prob(y, m, t), (log_mean, log_theta)
    )


def test_backward_sums_over_leading_axes():
    # Draws × cells × genes against one dispersion per gene.
    y = torch.poisson(torch.full((2, 3, 4), 2.0, dtype=torch.float64))
    log_mean = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    log_theta = torch.randn(4, dtype=torch.float64, requires_grad=True)
    negative_binomial_log_prob(y, log_mean, log_theta).sum().backward()
    m, t = (x.detach().clone().requires_grad_() for x in (log_mean, log_theta))
    theta, mu = t.exp(), m.exp()
    plain = (
        torch.lgamma(y + theta) - torch.lgamma(theta) - torch.lgamma(y + 1)
        + y * (mu.log() - (mu + theta).log()) + theta * (t - (mu + theta).log())
    )  # fmt: skip
    plain.sum().backward()
    torch.testing.assert_close(log_mean.grad, m.grad)
    torch.testing.assert_close(log_theta.grad, t.grad)


def test_counts_broadcast_against_draws():
    y, log_mean = torch.tensor([[0.0, 2.0]]), torch.zeros(5, 1, 2)
    out = negative_binomial_log_prob(y, log_mean, torch.zeros(2))
    assert out.shape == (5, 1, 2)
    np.testing.assert_allclose(out[3, 0], -np.log(2) * np.array([1, 3]), rtol=1e-6)


def test_finite_at_the_extremes():
    y = torch.tensor([0.0, 1.0, 1e4, 1e6])[:, None, None].expand(-1, 5, 3)
    log_mean = torch.tensor([-60.0, -20.0, 0.0, 10.0, 20.0])[:, None].expand(4, 5, 3).clone()
    log_theta = torch.tensor([-8.0, 0.0, 12.0]).requires_grad_()
    log_mean.requires_grad_()
    out = negative_binomial_log_prob(y, log_mean, log_theta)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert (out <= 1e-2).all()
    assert torch.isfinite(log_mean.grad).all()
    assert torch.isfinite(log_theta.grad).all()
    zi = ZeroInflatedNegativeBinomial(log_mean, log_theta.detach(), torch.full_like(log_mean, 40))
    assert torch.isfinite(zi.log_prob(y)).all()


@pytest.mark.parametrize("gate", [-30.0, -3.0, 0.0, 6.0])
def test_zero_inflated_log_prob_is_the_mixture(gate):
    y, log_mean, log_theta = grid(torch.float64)
    pi = 1 / (1 + np.exp(-gate))
    nb = np.exp(exact_log_prob(y.numpy(), log_mean.numpy(), log_theta.numpy()))
    with np.errstate(divide="ignore"):
        expected = np.log(pi * (y.numpy() == 0) + (1 - pi) * nb)
    usable = np.isfinite(expected) & (nb > 1e-280)
    for gene in range(y.shape[1]):
        column = ZeroInflatedNegativeBinomial(
            log_mean[:, [gene]], log_theta[[gene]], torch.full_like(log_mean[:, [gene]], gate)
        )
        np.testing.assert_allclose(
            column.log_prob(y[:, [gene]])[usable[:, gene]], expected[usable[:, gene], gene],
            rtol=1e-8, atol=1e-9,
        )  # fmt: skip


def test_zero_inflated_gradient_in_all_inputs():
    y = torch.tensor([[0.0, 2.0, 0.0, 9.0]], dtype=torch.float64)
    make = lambda *s: torch.randn(*s, dtype=torch.float64, requires_grad=True)  # noqa: E731
    assert torch.autograd.gradcheck(
        lambda m, t, g: ZeroInflatedNegativeBinomial(m, t, g).log_prob(y),
        (make(1, 4), make(4), make(1, 4)),
    )


def test_probabilities_sum_to_one():
    y = torch.arange(4000.0, dtype=torch.float64)[:, None]
    one = torch.tensor([[np.log(3.0)]], dtype=torch.float64).expand(4000, 1)
    theta = torch.tensor([np.log(0.8)], dtype=torch.float64)
    for d in (
        NegativeBinomial(one, theta),
        ZeroInflatedNegativeBinomial(one, theta, torch.zeros_like(one)),
    ):
        assert d.log_prob(y).exp().sum().item() == pytest.approx(1.0, abs=1e-9)


def distributions():
    log_mean, log_theta = torch.tensor([0.5, 3.0]).log(), torch.tensor([0.7, 20.0]).log()
    return [
        NegativeBinomial(log_mean, log_theta),
        ZeroInflatedNegativeBinomial(log_mean, log_theta, torch.tensor([-1.0, 0.5])),
    ]


@pytest.mark.parametrize("d", distributions(), ids=["nb", "zinb"])
def test_moments_of_samples(d):
    n = 200_000
    x = d.sample((n,)).double()
    assert x.shape == (n, 2)
    assert (x == x.round()).all()
    assert (x >= 0).all()
    error = (d.variance.double() / n).sqrt()
    assert ((x.mean(0) - d.mean).abs() < 5 * error).all()
    torch.testing.assert_close(x.var(0), d.variance.double(), rtol=0.05, atol=0.0)


def test_moments_by_hand():
    nb, zi = distributions()
    np.testing.assert_allclose(nb.mean, [0.5, 3.0], rtol=1e-6)
    np.testing.assert_allclose(nb.variance, [0.5 + 0.25 / 0.7, 3 + 9 / 20], rtol=1e-6)
    # The mixture's second moment less its squared mean.
    pi = 1 / (1 + np.exp([1.0, -0.5]))
    mu, second = np.array([0.5, 3.0]), np.array([0.5 + 0.25 / 0.7 + 0.25, 3 + 9 / 20 + 9])
    np.testing.assert_allclose(zi.mean, (1 - pi) * mu, rtol=1e-6)
    np.testing.assert_allclose(zi.variance, (1 - pi) * second - ((1 - pi) * mu) ** 2, rtol=1e-5)


@pytest.mark.parametrize("d", distributions(), ids=["nb", "zinb"])
def test_expand(d):
    wide = d.expand(torch.Size([5, 3]))
    assert (wide.batch_shape, wide.event_shape) == ((5, 3), (2,))
    assert type(wide) is type(d)
    y = torch.tensor([0.0, 4.0])
    torch.testing.assert_close(wide.log_prob(y), d.log_prob(y).expand(5, 3))
    assert wide.sample().shape == (5, 3, 2)
    assert wide.sample((7,)).shape == (7, 5, 3, 2)


@pytest.mark.parametrize("d", distributions(), ids=["nb", "zinb"])
@pytest.mark.parametrize("bad", [-1.0, 0.5, float("nan")])
def test_validation_refuses_what_is_no_count(d, bad):
    checked = type(d)(*[getattr(d, n) for n in d.arg_constraints], validate_args=True)
    with pytest.raises(ValueError, match="support"):
        checked.log_prob(torch.tensor([1.0, bad]))


def test_samples_of_a_vanishing_mean_are_zero():
    d = NegativeBinomial(torch.full((100, 3), -80.0), torch.tensor([-8.0, 0.0, 12.0]))
    assert d.sample().sum() == 0
