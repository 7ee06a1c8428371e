"""Heads: labels read back from the latents, as observed sites."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import pyro.distributions as dist
import torch

from pyro_fcr.nn import MLP, Part
from pyro_fcr.penalties.base import find_block, find_told, turn_reader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from pyro_fcr.data import Batch, Design
    from pyro_fcr.nn import Block

__all__ = ["CovariateHead", "Head", "Reading", "TreatmentHead", "match_controls"]


class Reading(NamedTuple):
    """What a head observes: a distribution over labels, the labels, and which cells count."""

    distribution: dist.TorchDistribution
    value: Tensor
    mask: Tensor


class Head(Part):
    """A label's distribution given latents: an observed site beside the counts."""

    levels: tuple[str, ...] = ()
    """Names of the label's groups, where it can be told of a cell by itself; known once bound."""

    def bind(self, blocks: Sequence[Block], design: Design) -> None:
        """Size the head; nothing by default."""

    def turn(self, name: str, inverse: Tensor) -> None:
        """Read a block z' = A z as z was read: ``inverse`` is A⁻¹; nothing by default."""

    @abstractmethod
    def forward(self, z: Mapping[str, Tensor], batch: Batch) -> Reading:
        """Return what is observed for B cells; every tensor has shape (B,)."""


class CovariateHead(Head):
    """p(label | z_x): a label is read from one block.

    Parameters
    ----------
    block
        The block to read.
    label
        ``"covariates"`` (jointly), ``"treatment"``, ``"batch"``, a column, or several columns
        jointly.
    """

    def __init__(self, block: str = "z_x", label: str | Sequence[str] = "covariates") -> None:
        super().__init__()
        self.block = block
        self.label = label if isinstance(label, str) else tuple(label)

    def bind(self, blocks: Sequence[Block], design: Design) -> None:
        """Make the classifier."""
        where = type(self).__name__
        self._read = (find_block(self.block, blocks, where=where),)
        self._label = find_told(self.label, design, where=where)
        self.levels = self._label.levels
        self.classifier = MLP(self._read[0].size, self._label.n_groups, hidden=(64,))

    def turn(self, name: str, inverse: Tensor) -> None:
        """Let the classifier follow."""
        turn_reader(self.classifier, self._read, name, inverse)

    def forward(self, z: Mapping[str, Tensor], batch: Batch) -> Reading:
        """Return the label's distribution, its value and the cells whose group is known."""
        label = self._label.of(batch)
        logits = self.classifier(z[self.block])
        return Reading(dist.Categorical(logits=logits), label.clamp_min(0), label >= 0)


class TreatmentHead(Head):
    """p(t | the change of (z_t, z_tx) against a matched control of the same covariates).

    The matched control is another cell, a control, drawn from the same minibatch and covariate
    group; a cell without one is left out.

    Parameters
    ----------
    blocks
        The blocks whose difference to the control is read.
    """

    def __init__(self, blocks: Sequence[str] = ("z_t", "z_tx")) -> None:
        super().__init__()
        self.blocks = tuple(blocks)

    def bind(self, blocks: Sequence[Block], design: Design) -> None:
        """Make the classifier."""
        where = type(self).__name__
        self._read = tuple(find_block(name, blocks, where=where) for name in self.blocks)
        size = sum(block.size for block in self._read)
        n_groups = find_told("treatment", design, where=where).n_groups
        self.classifier = MLP(size, n_groups, hidden=(64,))

    def turn(self, name: str, inverse: Tensor) -> None:
        """Let the classifier follow: it reads a difference, which turns as the latents do."""
        turn_reader(self.classifier, self._read, name, inverse)

    def forward(self, z: Mapping[str, Tensor], batch: Batch) -> Reading:
        """Return the treatment's distribution, its value and the cells that have a match."""
        control = match_controls(batch)
        latents = torch.cat([z[name] for name in self.blocks], dim=-1)
        logits = self.classifier(latents - latents[control.clamp_min(0)])
        label = batch.treatment_id
        mask = (label >= 0) & (control >= 0)
        return Reading(dist.Categorical(logits=logits), label.clamp_min(0), mask)


def match_controls(batch: Batch) -> Tensor:
    """Return for each cell a random other control cell of the same covariate group in the batch.

    A control is never its own match: a change of exactly zero would give its label away.

    Parameters
    ----------
    batch
        B cells.

    Returns
    -------
    Tensor
        Shape (B,), int64: positions in the batch; -1 where the group has no other control.
    """
    group, is_control = batch.covariate_id, batch.treatment_id == 0
    # Controls first, sorted by group; then a uniform pick inside the group's run of them.
    order = torch.argsort(group + (~is_control) * (group.max() + 2), stable=True)
    n = is_control.sum()
    control_groups = torch.where(
        torch.arange(len(group), device=group.device) < n, group[order], group.max() + 1
    )
    start = torch.searchsorted(control_groups, group, right=False)
    stop = torch.searchsorted(control_groups, group, right=True)
    others = stop - start - is_control.long()
    pick = start + (torch.rand(len(group), device=group.device) * others).long()
    # The picks of a control run over its group without itself.
    pick = pick + (is_control & (pick >= torch.argsort(order))).long()
    return torch.where(others > 0, order[pick.clamp(max=len(group) - 1)], -1)
