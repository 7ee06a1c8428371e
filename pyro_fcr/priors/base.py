"""What a latent block is, and what a prior over it promises."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyro_fcr.nn import Part

if TYPE_CHECKING:
    from pyro.distributions import TorchDistribution

    from pyro_fcr.data import Batch, Design

__all__ = ["Block", "Prior"]


@dataclass(frozen=True)
class Block:
    """A latent block of the generative model.

    Parameters
    ----------
    name
        Site name, by the paper's symbol.
    size
        Number of latent dimensions.
    parents
        What the block depends on in the causal graph: any of ``"treatment"``, ``"covariates"``,
        ``"batch"``. An intervention redraws the blocks that descend from what it sets.
    """

    name: str
    size: int
    parents: frozenset[str] = frozenset()


class Prior(Part):
    """A conditional prior over one latent block.

    Subclasses write :meth:`forward`; Bayesian parameters are ``pyro.nn.PyroSample`` attributes
    and need no guide code. Override :meth:`bind` to learn the block's size and the design.
    """

    def bind(self, block: Block, design: Design) -> None:
        """Make what depends on the block's size or the design's categories; nothing by default."""

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
