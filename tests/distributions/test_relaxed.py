"""Straight-through Bernoulli: its law, its divergence, its gradient."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch.distributions import kl_divergence

from pyro_fcr.distributions import StraightThroughBernoulli


def test_draws_are_bernoulli() -> None:
    probs = torch.tensor([0.02, 0.3, 0.9])
    torch.manual_seed(0)
    drawn = StraightThroughBernoulli(probs=probs).sample((40_000,))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    standard_error = (probs * (1 - probs) / 40_000).sqrt()
    assert ((drawn.mean(0) - probs).abs() < 4 * standard_error).all()


def test_divergence_by_hand_and_by_monte_carlo() -> None:
    q = StraightThroughBernoulli(probs=torch.tensor([0.25, 0.9]))
    p = dist.Bernoulli(torch.tensor([0.5, 0.01]))
    found = kl_divergence(q, p)
    by_hand = [
        0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5),
        0.9 * math.log(0.9 / 0.01) + 0.1 * math.log(0.1 / 0.99),
    ]
    torch.testing.assert_close(found, torch.tensor(by_hand))
    torch.manual_seed(0)
    drawn = q.sample((20_000,))
    ratio = q.log_prob(drawn) - p.log_prob(drawn)
    standard_error = ratio.std(0) / math.sqrt(20_000)
    assert ((ratio.mean(0) - found).abs() < 4 * standard_error).all()


def test_divergence_survives_to_event() -> None:
    q = StraightThroughBernoulli(logits=torch.randn(3, 2)).to_event(2)
    p = dist.Bernoulli(torch.full((3, 2), 0.1)).to_event(2)
    torch.testing.assert_close(kl_divergence(q, p), kl_divergence(q.base_dist, p.base_dist).sum())


def test_gradient_is_that_of_the_relaxation() -> None:
    # d sigmoid((l + e) / t) / dl averaged over e is, by the density of e, that of the soft step.
    logits = torch.tensor(0.7, requires_grad=True)
    torch.manual_seed(0)
    q = StraightThroughBernoulli(logits=logits, temperature=0.5)
    q.rsample((200_000,)).mean().backward()
    noise = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    density = torch.sigmoid(noise) * torch.sigmoid(-noise)
    soft = torch.sigmoid((0.7 + noise) / 0.5)
    expected = (density * soft * (1 - soft) / 0.5).sum() * (noise[1] - noise[0])
    assert abs(float(logits.grad) - float(expected)) < 3e-3


def test_expand_keeps_the_temperature() -> None:
    q = StraightThroughBernoulli(logits=torch.zeros(2), temperature=0.3).expand([4, 2])
    assert q.temperature == 0.3
    assert q.rsample().shape == (4, 2)
