"""What a prior over a latent block promises."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from pyro_fcr.nn import ConditionMap, Part

if TYPE_CHECKING:
    from pyro.distributions import TorchDistribution
    from torch import Tensor, nn

    from pyro_fcr.data import Batch, Design
    from pyro_fcr.nn import Block

__all__ = ["Prior"]


class Prior(Part):
    """A conditional prior over one latent block.

    Subclasses write :meth:`forward`; Bayesian parameters are ``pyro.nn.PyroSample`` attributes
    and need no guide code. Override :meth:`bind` to learn the block's size and the design.

    A prior whose density has no known normaliser says so by ``normalised = False``, and the
    history then calls its block's divergence ``kl.NAME.unnormalised``: it is no bound on anything.
    Its parameters must be held fixed in the distribution that it returns, and be learned by a
    method ``own_loss(z, batch)``, which takes detached draws of shape (B, d) and returns a loss
    per cell, shape (B,), known in the history as ``prior.NAME``.
    """

    normalised: ClassVar[bool] = True
    """Whether the density of :meth:`forward`'s distribution integrates to one."""

    isotropic: ClassVar[bool] = False
    """Whether it stays the same when the latents are rotated."""

    def bind(self, block: Block, design: Design) -> None:
        """Make what depends on the block's size or the design's categories; nothing by default."""

    def meet(self, guide: nn.Module, rate: Tensor) -> None:
        """Take what the prior shares with the guide; nothing by default.

        Parameters
        ----------
        guide
            The bound guide.
        rate
            Shape (G,): the genes' mean share of a cell's library (mean intensity where it is 1).
        """

    def leave(self) -> None:
        """Keep what the guide shared as it is now: the guide goes on alone; nothing by default."""

    @property
    def extrapolates(self) -> bool:
        """Whether the prior can tell what a treatment does that no training cell had.

        Of this package's priors those do whose conditions are read through features; a prior of
        one's own says so itself.
        """
        maps = [module for module in self.modules() if isinstance(module, ConditionMap)]
        return bool(maps) and all(one.extrapolates for one in maps)

    @abstractmethod
    def forward(self, batch: Batch) -> TorchDistribution:
        """Return the distribution of the block for each cell.

        Parameters
        ----------
        batch
            B cells.

        Returns
        -------
        TorchDistribution
            Batch shape (B,), event shape (d,).
        """
