"""The conditional Gaussian prior of identifiable VAEs and of FCR."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import pyro.distributions as dist
import torch

from pyro_fcr.nn import Block, condition_map
from pyro_fcr.priors.base import Prior

if TYPE_CHECKING:
    from torch import Tensor

    from pyro_fcr.data import Batch, Design
    from pyro_fcr.nn import ConditionMap

__all__ = [
    "BOUND",
    "SCALE_SPREAD",
    "DiagonalGaussian",
    "Gaussian",
    "bounded_exp",
    "loc_spread",
    "raw_scale",
]

BOUND = 3.0
"""A prior's log-scale stays between minus and plus this."""

SCALE_SPREAD = 0.05
"""Standard deviation of the log-scales over conditions before training."""


def bounded_exp(raw: Tensor, bound: float = BOUND) -> Tensor:
    """Return a scale between exp(-bound) and exp(bound), equal to exp(raw) near zero."""
    return torch.exp(bound * torch.tanh(raw / bound))


def raw_scale(scale: Tensor) -> Tensor:
    """Return what :func:`bounded_exp` turns into the given scale, as near as its bounds allow."""
    return BOUND * torch.atanh((scale.log() / BOUND).clamp(-0.95, 0.95))


def loc_spread(block: Block) -> float:
    """Return the standard deviation of a block's prior means over conditions before training."""
    return 0.5 if len(block.parents) == 1 else 0.3


class DiagonalGaussian(Prior):
    """N(m, diag s²) with mean and log-scale side by side in one map of conditions, ``table``."""

    learn_scale: bool
    table: ConditionMap

    @abstractmethod
    def bind(self, block: Block, design: Design) -> None:
        """Make the table, 2d numbers per condition."""

    def start(self, block: Block) -> Tensor:
        """Return the spread of the table over conditions before training; shape (2d,)."""
        return torch.tensor([loc_spread(block)] * block.size + [SCALE_SPREAD] * block.size)

    def forward(self, batch: Batch) -> dist.TorchDistribution:
        """Return N(m, s²) with batch shape (B,) and event shape (d,)."""
        loc, raw = self.table(batch).chunk(2, dim=-1)
        scale = bounded_exp(raw) if self.learn_scale else torch.ones_like(raw)
        return dist.Normal(loc, scale).to_event(1)

    def refit(self, batch: Batch, loc: Tensor, scale: Tensor) -> None:
        """Set the table so that the batch's conditions have the given moments.

        Parameters
        ----------
        batch
            One cell per condition, C of them.
        loc, scale
            Shape (C, d).
        """
        self.table.refit(batch, torch.cat([loc, raw_scale(scale)], dim=1))


class Gaussian(DiagonalGaussian):
    """Diagonal Gaussian whose mean and scale are learned functions of the block's parents.

    p(z | condition) = N(m(condition), diag s(condition)²). Both moments vary: with a fixed
    variance the interaction contrasts lose half their rank and with it the identifiability of
    z_tx (Mao et al. 2024, arXiv 2410.22472).

    The natural place of a combination that training never saw is without interaction:
    means and log-scales are tables of main effects plus an interaction that starts at zero
    (:class:`~pyro_fcr.nn.ConditionTable`). The product of embeddings that the paper uses for
    z_tx extrapolates to such combinations badly.

    Parameters
    ----------
    learn_scale
        Whether the scale varies with the condition; otherwise it is 1.
    condition
        How the condition is read: ``"table"``, ``"embedding"`` (the paper's form), ``"mlp"`` or
        ``"features"`` (:func:`~pyro_fcr.nn.condition_map`).
    """

    def __init__(self, learn_scale: bool = True, condition: str = "table") -> None:
        super().__init__()
        self.learn_scale, self.condition = learn_scale, condition

    def bind(self, block: Block, design: Design) -> None:
        """Make the maps of means and log-scales."""
        self.table = condition_map(self.condition, design, block.parents, self.start(block))
