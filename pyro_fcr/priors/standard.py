"""The prior of a plain VAE."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pyro.distributions as dist

from pyro_fcr.priors.base import Prior

if TYPE_CHECKING:
    from pyro_fcr.data import Batch, Design
    from pyro_fcr.nn import Block

__all__ = ["Standard"]


class Standard(Prior):
    """The standard normal N(0, I), blind to every condition: the null model of a block."""

    isotropic: ClassVar[bool] = True

    def bind(self, block: Block, design: Design) -> None:
        """Remember the block's size."""
        self.size = block.size

    @property
    def extrapolates(self) -> bool:
        """True: it is the same for every treatment."""
        return True

    def forward(self, batch: Batch) -> dist.TorchDistribution:
        """Return N(0, I) with batch shape (B,) and event shape (d,)."""
        zeros = batch.library.new_zeros(len(batch), self.size)
        return dist.Normal(zeros, 1.0).to_event(1)
