"""The closed form of sparse effects against enumeration and simulation."""

from __future__ import annotations

import math

import torch
from torch.distributions import Normal

from pyro_fcr.distributions import spike_and_slab


def one_effect(mean: float, n: float, slab: float, sparsity: float) -> float:
    """Posterior log-odds by Bayes' rule: the mean's two marginal densities."""
    null = Normal(0.0, math.sqrt(1 / n)).log_prob(torch.tensor(mean))
    real = Normal(0.0, math.sqrt(1 / n + slab**2)).log_prob(torch.tensor(mean))
    return float(real - null) - math.log(sparsity)


def test_inclusion_is_bayes_rule() -> None:
    torch.manual_seed(0)
    n, effects = 100.0, torch.zeros(200, 3, dtype=torch.float64)
    effects[:20] = 2 * torch.randn(20, 3, dtype=torch.float64)
    mean = effects + torch.randn(200, 3, dtype=torch.float64) / math.sqrt(n)
    gram = n * torch.eye(200, dtype=torch.float64)
    found = spike_and_slab(gram, n * mean, torch.ones(3), sparsity=9.0)
    # Null effects spread by their standard error alone, so no discrepancy is to be found.
    assert float(found.discrepancy) < 0.05
    variance = 1 / n + float(found.discrepancy) ** 2
    for a, j in ((0, 0), (5, 2), (150, 1)):
        expected = one_effect(float(mean[a, j]), 1 / variance, float(found.slab), 9.0)
        assert abs(float(found.logits_td[a, j]) - expected) < 1e-2


def test_hyperparameters_are_learned() -> None:
    torch.manual_seed(1)
    n, shape = 200.0, (400, 10)
    on = torch.rand(shape) < 0.1
    effects = on * 3 * torch.randn(shape, dtype=torch.float64)
    leak = 0.2 * torch.randn(shape, dtype=torch.float64)
    mean = effects + leak + torch.randn(shape, dtype=torch.float64) / math.sqrt(n)
    gram = n * torch.eye(400, dtype=torch.float64)
    found = spike_and_slab(gram, n * mean, torch.ones(10))
    assert abs(float(found.discrepancy) - 0.2) < 0.02
    assert abs(float(found.slab) - 3) < 0.3
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
