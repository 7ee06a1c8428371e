"""The closed form of sparse effects against enumeration and simulation."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.stats import norm, t

from pyro_fcr.distributions import spike_and_slab


def one_effect(mean: float, n: float, slab: float, omega: float, sparsity: float) -> float:
    """Posterior log-odds by Bayes' rule, both densities by quadrature."""
    leak = np.linspace(-40 * omega, 40 * omega, 40_001)
    density = norm.pdf(mean - leak, scale=1 / math.sqrt(n)) * t.pdf(leak / omega, 4) / omega
    null = math.log(density.sum() * (leak[1] - leak[0]))
    sigma = slab / math.sqrt(3)
    effect = np.linspace(-12 * sigma, 12 * sigma, 40_001)
    prior = effect**2 / sigma**2 * norm.pdf(effect, scale=sigma)
    density = prior * norm.pdf(mean - effect, scale=math.sqrt(1 / n + omega**2))
    real = math.log(density.sum() * (effect[1] - effect[0]))
    return real - null - math.log(sparsity)


def test_inclusion_is_bayes_rule() -> None:
    torch.manual_seed(0)
    n, effects = 100.0, torch.zeros(200, 3, dtype=torch.float64)
    effects[:20] = 2 * torch.randn(20, 3, dtype=torch.float64)
    mean = effects + 0.3 * torch.randn(200, 3, dtype=torch.float64)
    gram = n * torch.eye(200, dtype=torch.float64)
    found = spike_and_slab(gram, n * mean, torch.ones(3), sparsity=9.0)
    hyper = float(found.slab), float(found.discrepancy), 9.0
    # Further out a finite mixture has lighter tails than Student's t; all there are certain.
    near = (mean.abs() < 1.5).nonzero().tolist()
    for a, j in near[::20]:
        expected = one_effect(float(mean[a, j]), n, *hyper)
        assert abs(float(found.logits_td[a, j]) - expected) < 0.1
    assert (found.logits_td[mean.abs() > 1.5] > 0).all()


def test_exact_measurements_have_no_discrepancy() -> None:
    torch.manual_seed(0)
    mean = torch.randn(500, 3, dtype=torch.float64) / 10
    found = spike_and_slab(100 * torch.eye(500, dtype=torch.float64), 100 * mean, torch.ones(3))
    assert float(found.discrepancy) < 0.04
    assert float((torch.sigmoid(found.logits_td) > 0.5).double().mean()) < 0.01


def test_hyperparameters_are_learned() -> None:
    torch.manual_seed(1)
    n, shape = 200.0, (400, 10)
    on = torch.rand(shape) < 0.1
    sign = torch.where(torch.rand(shape) < 0.5, -1.0, 1.0).double()
    effects = on * sign * (3 + 0.5 * torch.randn(shape, dtype=torch.float64))
    leak = 0.2 * torch.randn(shape, dtype=torch.float64)
    mean = effects + leak + torch.randn(shape, dtype=torch.float64) / math.sqrt(n)
    gram = n * torch.eye(400, dtype=torch.float64)
    found = spike_and_slab(gram, n * mean, torch.ones(10))
    # A tenth of the effects are real: they lift the median a little.
    assert 0.16 < float(found.discrepancy) < 0.24
    assert abs(float(found.slab) - math.sqrt(9.25)) < 0.1
    assert 7 < float(found.sparsity) < 12
    probability = torch.sigmoid(found.logits_td)
    chosen = probability > 0.5
    assert float((chosen & ~on).sum() / chosen.sum()) < 0.05


def test_combinations_share_their_effects() -> None:
    # Treatments a and b are seen together alone, and a by itself: b is what a leaves.
    dose = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    size = torch.tensor([400.0, 400.0], dtype=torch.float64)
    loc = torch.tensor([[3.0, 0.0], [3.0, -2.0]], dtype=torch.float64)
    gram = dose.T @ (size[:, None] * dose)
    found = spike_and_slab(gram, dose.T @ (size[:, None] * loc), torch.ones(2), sparsity=1.0)
    assert (found.logits_td > 0).tolist() == [[True, False], [False, True]]
    torch.testing.assert_close(found.loc_td.diagonal(), torch.tensor([3.0, -2.0]).double(),
                               atol=0.02, rtol=0)  # fmt: skip


def test_without_cells_the_posterior_is_the_prior() -> None:
    gram = torch.diag(torch.tensor([100.0, 0.0], dtype=torch.float64))
    found = spike_and_slab(gram, torch.tensor([[200.0], [0.0]]).double(), torch.ones(1), 4.0)
    assert abs(float(found.logits_td[1, 0]) + math.log(4.0)) < 1e-6
    assert float(found.loc_td[1, 0]) == 0
    assert float(found.scale_td[1, 0]) == float(found.slab)


def test_little_information_is_little_evidence() -> None:
    gram, cross = torch.tensor([[50.0]]).double(), torch.tensor([[40.0]]).double()
    much = spike_and_slab(gram, cross, torch.tensor([1.0]), 10.0)
    little = spike_and_slab(gram, cross, torch.tensor([0.1]), 10.0)
    assert float(little.logits_td) < float(much.logits_td)
    assert float(little.scale_td) > float(much.scale_td)
