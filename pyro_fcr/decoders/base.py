"""What a decoder promises."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from pyro_fcr.nn import Part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from pyro_fcr.data import Batch, Design
    from pyro_fcr.nn import Block

__all__ = ["Decoder"]


class Decoder(Part):
    """Maps the latents of all blocks, side by side, to what the likelihood reads.

    Subclasses write :meth:`forward` and, to learn sizes, :meth:`bind`. A decoder with a method
    ``turn(columns, inverse)``, which makes it read latents z' = A z as it read z
    (``inverse`` is A⁻¹), lets the gauge of its blocks be fixed.
    """

    reads: frozenset[str] = frozenset()
    """Labels that enter beside the latents, of ``"treatment"``, ``"covariates"`` and ``"batch"``:
    an intervention on one of them reaches the genes directly. Known once the decoder is bound."""

    def bind(
        self,
        blocks: Sequence[Block],
        design: Design,
        start: Tensor,
        *,
        hidden: tuple[int, ...],
        with_batch: bool,
    ) -> None:
        """Make the networks; nothing by default.

        Parameters
        ----------
        blocks
            The latent blocks in decoding order.
        design
            The experiment.
        start
            Shape (channels · G,): the output that gives every cell the mean profile.
        hidden
            Widths of hidden layers, for a decoder that was given none of its own.
        with_batch
            Whether the technical batch is to enter as well.
        """

    def zero_unseen(self, batch: Batch) -> None:
        """Before training, forget what no training cell informs; nothing by default.

        Parameters
        ----------
        batch
            Cells with every label that the training cells have.
        """

    @abstractmethod
    def forward(self, z: Tensor, batch: Batch) -> Tensor:
        """Map latents (..., B, d) of B cells to (..., B, channels · G)."""
