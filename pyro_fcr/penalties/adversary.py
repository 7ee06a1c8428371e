"""A label that a block should not tell, by a classifier whose gradient is reversed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from pyro_fcr.nn import MLP
from pyro_fcr.penalties.base import Penalty, find_block, find_label, find_told, turn_reader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from pyro_fcr.data import Batch, Design
    from pyro_fcr.nn import Block

__all__ = ["Adversary", "reverse_gradient"]


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


def reverse_gradient(value: Tensor) -> Tensor:
    """Return the value itself, with a gradient of the opposite sign."""
    return _Reversed.apply(value)


class Adversary(Penalty):
    """label ⊥ block | given, by a classifier the encoders work against.

    The classifier reads the label from the block through a layer that reverses the gradient
    (Ganin et al., JMLR 2016): one step teaches the classifier and moves the encoders so that it
    fails. Its value is the classifier's cross-entropy in nats, which is the label's entropy where
    the block tells nothing; unlike another penalty's it should *rise*. It needs no optimiser of
    its own, and is the cheaper and less stable alternative to a
    :class:`~pyro_fcr.penalties.PermutationDiscriminator`.

    Parameters
    ----------
    block
        The latent block that should not tell the label.
    label
        ``"treatment"``, ``"covariates"`` (jointly), ``"batch"``, one covariate by its column's
        name, or several of these jointly.
    given
        The label within whose strata it should not, named likewise: the classifier reads it as
        well, so that the block is blamed only for what it adds. By default it should not at all.
    width, depth
        Hidden layers of the classifier.
    """

    def __init__(
        self,
        block: str,
        label: str | Sequence[str],
        *,
        given: str | Sequence[str] = (),
        width: int = 64,
        depth: int = 2,
    ) -> None:
        super().__init__()
        self.block, self.label, self.given = block, label, given
        self.width, self.depth = width, depth

    def bind(self, blocks: Sequence[Block], design: Design) -> None:
        """Make the classifier for the block's size and the groups."""
        where = type(self).__name__
        self._read = (find_block(self.block, blocks, where=where),)
        self._label = find_told(self.label, design, where=where)
        self._given = find_label(self.given, design, where=where)
        size = self._read[0].size + self._given.n_groups
        self.classifier = MLP(size, self._label.n_groups, hidden=(self.width,) * self.depth)

    def turn(self, name: str, inverse: Tensor) -> None:
        """Let the classifier follow."""
        turn_reader(self.classifier, self._read, name, inverse)

    def forward(self, z: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the classifier's mean cross-entropy over cells whose label is known, in nats."""
        read = torch.cat([reverse_gradient(z[self.block]), self._given.one_hot(batch)], dim=-1)
        label = self._label.of(batch)
        known = label >= 0
        each = F.cross_entropy(self.classifier(read), label.clamp_min(0), reduction="none")
        return (each * known).sum() / known.sum().clamp_min(1)
