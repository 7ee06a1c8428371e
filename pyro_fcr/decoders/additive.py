"""The decoder of compositional models: conditions are added to the latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pyro_fcr.decoders.base import Decoder
from pyro_fcr.decoders.network import NetworkDecoder
from pyro_fcr.errors import SlotError, sentence
from pyro_fcr.nn import LabelCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyro_fcr.data import Batch, Design
    from pyro_fcr.nn import Block

__all__ = ["AdditiveDecoder"]

GAIN = 5.0
"""Effects are stored divided by this, which under Adam multiplies their learning rate: they must
keep up with the encoders."""


class AdditiveDecoder(Decoder):
    r"""Latents, plus a vector for each label, through a network.

    .. math:: f\bigl(z + \textstyle\sum_k t_k e_k + \sum_j a_{x_j}\bigr)

    with :math:`t` the doses in units of training's: doses scale an effect, the parts of a
    combination add, and a control cell has none. It is the compositional perturbation
    autoencoder's (Lotfollahi et al., Mol Syst Biol 2023). Effects start at zero.

    Parameters
    ----------
    parents
        Labels whose effects are added: any of ``"treatment"``, ``"covariates"``, ``"batch"``.
    hidden
        Widths of the network's hidden layers; by default those the system was given.

    Raises
    ------
    SlotError
        If no label is named, or one that the schema does not have.
    """

    def __init__(
        self,
        parents: Sequence[str] = ("treatment", "covariates"),
        hidden: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.parents = (parents,) if isinstance(parents, str) else tuple(parents)
        self.hidden = None if hidden is None else tuple(hidden)

    def bind(
        self,
        blocks: Sequence[Block],
        design: Design,
        start: Tensor,
        *,
        hidden: tuple[int, ...],
        with_batch: bool,
    ) -> None:
        """Make the effects and the network."""
        if not self.parents:
            raise SlotError(
                sentence(
                    "no label whose effect is added",
                    where="AdditiveDecoder(parents=)",
                    expected="one of 'treatment', 'covariates', 'batch' at least",
                    got="none",
                    hint="use NetworkDecoder",
                )
            )
        self.code = LabelCode(design, self.parents)
        size = sum(block.size for block in blocks)
        self.effects = nn.Linear(self.code.size, size, bias=False)
        nn.init.zeros_(self.effects.weight)
        self.network = NetworkDecoder(hidden=self.hidden)
        self.network.bind(blocks, design, start, hidden=hidden, with_batch=with_batch)
        self.reads = self.network.reads | frozenset(self.parents)

    def shift(self, batch: Batch) -> Tensor:
        """Return what the labels add to each cell's latents; shape (B, d)."""
        return GAIN * self.effects(self.code(batch))

    def forward(self, z: Tensor, batch: Batch) -> Tensor:
        """Map latents (..., B, d) to (..., B, channels · G)."""
        return self.network(z + self.shift(batch), batch)

    @torch.no_grad()
    def turn(self, columns: slice, inverse: Tensor) -> None:
        """Read latents z' = A z in some columns as before: ``inverse`` is A⁻¹."""
        self.network.turn(columns, inverse)
        self.effects.weight[columns] = torch.linalg.solve(inverse, self.effects.weight[columns])
