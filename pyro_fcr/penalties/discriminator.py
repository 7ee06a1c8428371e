"""Permutation discriminators: independence by a critic that cannot tell pairs apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from pyro_fcr.nn import MLP
from pyro_fcr.penalties.base import (
    Adversarial,
    find_block,
    find_label,
    find_told,
    permute_within,
    turn_reader,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from pyro_fcr.data import Batch, Design
    from pyro_fcr.nn import Block

__all__ = ["PermutationDiscriminator"]


class PermutationDiscriminator(Adversarial):
    """left ⊥ right | given, by a critic D of real against within-group permuted pairs.

    D is trained to tell (left, right) from (left, right permuted among cells of the same
    group). At its optimum log D/(1−D) is the log density ratio of the joint to the product of
    the conditionals, whose mean over real pairs is the conditional mutual information
    I(left; right | given): the penalty, in nats per cell (Mao et al. 2024, permutation
    discriminators D_x and D_t; the ratio form is FactorVAE's, Kim & Mnih 2018).

    The critic reads posterior draws. A cell alone in its group is its own permutation and tells
    the critic nothing.

    Parameters
    ----------
    left, right
        Latent blocks; ``right`` may be a label instead (see ``given``).
    given
        The label within which pairs are permuted: ``"treatment"``, ``"covariates"`` (jointly),
        ``"batch"``, or one covariate by its column's name.
    width, depth
        Hidden layers of the critic.
    """

    def __init__(
        self, left: str, right: str, *, given: str, width: int = 64, depth: int = 2
    ) -> None:
        super().__init__()
        self.left, self.right, self.given = left, right, given
        self.width, self.depth = width, depth

    def bind(self, blocks: Sequence[Block], design: Design) -> None:
        """Make the critic for the sizes of both sides and the groups."""
        where = type(self).__name__
        self._given = find_label(self.given, design, where=where)
        left = find_block(self.left, blocks, where=where)
        self._read: tuple[Block, ...] = (left,)
        if self.right in [block.name for block in blocks]:
            right = find_block(self.right, blocks, where=where)
            self._label, n_right, self._read = None, right.size, (left, right)
        else:
            self._label = find_told(self.right, design, where=where)
            n_right = self._label.n_groups
        n_in = left.size + n_right + self._given.n_groups
        self.critic = MLP(n_in, 1, hidden=(self.width,) * self.depth)

    def turn(self, name: str, inverse: Tensor) -> None:
        """Let the critic follow."""
        turn_reader(self.critic, self._read, name, inverse)

    def forward(self, z: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the estimated conditional mutual information, in nats."""
        return self._logits(z[self.left], self._right(z, batch), batch).mean()

    def critic_loss(self, z: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the critic's cross-entropy over both classes, and its accuracy."""
        left, right = z[self.left], self._right(z, batch)
        permuted = right[permute_within(self._given.of(batch))]
        given = self._given.one_hot(batch)
        pairs = [torch.cat([left, side, given], dim=-1) for side in (right, permuted)]
        real, fake = self.critic(torch.cat(pairs)).squeeze(-1).chunk(2)
        wrong = torch.cat([-real, fake])
        return 2 * F.softplus(wrong).mean(), (wrong <= 0).float().mean()

    def _right(self, z: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return z[self.right] if self._label is None else self._label.one_hot(batch)

    def _logits(self, left: Tensor, right: Tensor, batch: Batch) -> Tensor:
        given = self._given.one_hot(batch)
        return self.critic(torch.cat([left, right, given], dim=-1)).squeeze(-1)
