"""Permutation discriminators: chance where there is nothing, mutual information where there is."""

import numpy as np
import pytest
import torch
from tiny import labelled, levels_design

from pyro_fcr.errors import SlotError
from pyro_fcr.nn import Block
from pyro_fcr.penalties import PermutationDiscriminator

BLOCKS = (Block("a", 1, frozenset()), Block("b", 1, frozenset()))
DESIGN = levels_design(2, 3)


def labels(n, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return labelled(
        torch.randint(0, 2, (n,), generator=rng), torch.randint(0, 3, (n,), generator=rng)
    )


def gaussian_pairs(n, rho):
    a = torch.randn(n, 1)
    return {"a": a, "b": rho * a + (1 - rho**2) ** 0.5 * torch.randn(n, 1)}


def trained(sample, *, steps=400, n=512, width=32, **options):
    critic = PermutationDiscriminator("a", "b", given="covariates", width=width, **options)
    critic.bind(BLOCKS, DESIGN)
    optimiser = torch.optim.Adam(critic.parameters(), lr=5e-3)
    for step in range(steps):
        batch = labels(n, step)
        loss, _ = critic.critic_loss(sample(batch), batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return critic


@torch.no_grad()
def judged(critic, sample, n=20_000):
    batch = labels(n, 10**6)
    z = sample(batch)
    loss, accuracy = critic.critic_loss(z, batch)
    return float(critic(z, batch)), float(loss), float(accuracy)


def test_chance_on_independent_blocks():
    sample = lambda batch: gaussian_pairs(len(batch), 0.0)  # noqa: E731
    information, loss, accuracy = judged(trained(sample), sample)
    assert abs(accuracy - 0.5) < 0.02
    assert abs(information) < 0.03
    assert loss == pytest.approx(2 * np.log(2), abs=0.02)


def test_the_penalty_is_the_gaussian_mutual_information():
    rho = 0.8
    sample = lambda batch: gaussian_pairs(len(batch), rho)  # noqa: E731
    information, _, accuracy = judged(trained(sample), sample)
    assert accuracy > 0.65
    assert information == pytest.approx(-0.5 * np.log(1 - rho**2), abs=0.08)


def test_dependence_that_the_group_explains_is_not_seen():
    def sample(batch):
        shift = 3.0 * batch.covariate_id[:, None]
        z = gaussian_pairs(len(batch), 0.0)
        return {name: value + shift for name, value in z.items()}

    information, _, accuracy = judged(trained(sample), sample)
    assert abs(accuracy - 0.5) < 0.02
    assert abs(information) < 0.04


def test_a_label_on_the_right():
    critic = PermutationDiscriminator("a", "treatment", given="covariates")
    critic.bind(BLOCKS, DESIGN)
    batch = labels(50)
    z = {"a": torch.randn(50, 1)}
    told = torch.cat([
        z["a"], torch.eye(2)[batch.treatment_id], torch.eye(3)[batch.covariate_id]
    ], 1)  # fmt: skip
    torch.testing.assert_close(critic(z, batch), critic.critic(told).mean())
    # A block that is the label is told from permuted ones wherever they differ.
    z, optimiser = (
        {"a": batch.treatment_id[:, None].float()},
        torch.optim.Adam(critic.critic.parameters(), 0.02),
    )
    for _ in range(200):
        optimiser.zero_grad()
        loss, accuracy = critic.critic_loss(z, batch)
        loss.backward()
        optimiser.step()
    assert float(accuracy) > 0.65
    assert float(critic(z, batch).detach()) > 0.3


def test_groups_of_one_leave_nothing_to_tell():
    critic = PermutationDiscriminator("a", "b", given="covariates")
    critic.bind(BLOCKS, DESIGN)
    batch = labelled([0, 1, 1], [0, 1, 2])
    _, accuracy = critic.critic_loss(gaussian_pairs(3, 0.9), batch)
    # Real and permuted pairs are the same pairs.
    assert float(accuracy) == 0.5


def test_gradient_reaches_both_blocks_and_not_the_critic_when_frozen():
    critic = PermutationDiscriminator("a", "b", given="covariates")
    critic.bind(BLOCKS, DESIGN)
    critic.requires_grad_(False)
    z = {k: v.requires_grad_() for k, v in gaussian_pairs(20, 0.5).items()}
    critic(z, labels(20)).backward()
    assert z["a"].grad.abs().sum() > 0
    assert z["b"].grad.abs().sum() > 0
    assert all(p.grad is None for p in critic.parameters())


@pytest.mark.parametrize(
    "names",
    [("q", "b", "covariates"), ("a", "q", "covariates"), ("a", "b", "a"), ("a", "b", "dose")],
)
def test_unknown_variables_are_refused(names):
    left, right, given = names
    with pytest.raises(SlotError, match="a penalty reads"):
        PermutationDiscriminator(left, right, given=given).bind(BLOCKS, DESIGN)
