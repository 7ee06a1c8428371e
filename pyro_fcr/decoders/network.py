"""The decoder of every system that does not ask for another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pyro_fcr.decoders.base import Decoder
from pyro_fcr.nn import MLP, LabelCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyro_fcr.data import Batch, Design
    from pyro_fcr.nn import Block

__all__ = ["NetworkDecoder"]


class NetworkDecoder(Decoder):
    """A linear map plus a network, of the latents and, if asked, of labels beside them.

    The linear part alone makes every latent act additively on the output, which is what an
    unseen combination should fall back on. With labels it is the decoder of a conditional VAE
    (Sohn, Lee & Yan, NeurIPS 2015).

    Parameters
    ----------
    parents
        Labels that enter beside the latents: any of ``"treatment"``, ``"covariates"``,
        ``"batch"``.
    hidden
        Widths of the network's hidden layers; by default those the system was given.
    """

    def __init__(self, parents: Sequence[str] = (), hidden: Sequence[int] | None = None) -> None:
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
        """Make the linear map and the network."""
        self.reads = frozenset(self.parents) | frozenset({"batch"} if with_batch else ())
        self.code = LabelCode(design, self.reads)
        n_in = sum(block.size for block in blocks) + self.code.size
        widths = hidden if self.hidden is None else self.hidden
        self.linear = nn.Linear(n_in, len(start))
        self.network = MLP(n_in, len(start), hidden=widths, last_bias=False)
        with torch.no_grad():
            self.linear.weight.mul_(0.1)
            self.linear.bias.copy_(start)
            self.network.last.weight.mul_(0.3)

    def forward(self, z: Tensor, batch: Batch) -> Tensor:
        """Map latents (..., B, d) to (..., B, channels · G)."""
        if self.reads:
            code = self.code(batch)
            z = torch.cat([z, code.expand(*z.shape[:-1], -1)], dim=-1)
        return self.network(z, beside=self.linear)

    @torch.no_grad()
    def turn(self, columns: slice, inverse: Tensor) -> None:
        """Read latents z' = A z in some columns as before: ``inverse`` is A⁻¹."""
        self.linear.weight[:, columns] = self.linear.weight[:, columns] @ inverse
        self.network.turn(columns, inverse)

    @torch.no_grad()
    def zero_unseen(self, batch: Batch) -> None:
        """Zero what labels that no training cell has would add."""
        unseen = self.code.unseen(batch)
        for layer in (self.linear, self.network.first):
            layer.weight[:, layer.in_features - self.code.size :].masked_fill_(unseen, 0.0)
