"""The conditional Gaussian prior of identifiable VAEs and of FCR."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyro.distributions as dist
import torch

from pyro_fcr.nn import Block, ConditionTable
from pyro_fcr.priors.base import Prior

if TYPE_CHECKING:
    from pyro_fcr.data import Batch, Design

__all__ = ["Gaussian", "bounded_exp"]


BOUND = 3.0
"""A prior's log-scale stays between minus and plus this."""


def bounded_exp(raw: torch.Tensor, bound: float = BOUND) -> torch.Tensor:
    """Return a scale between exp(-bound) and exp(bound), equal to exp(raw) near zero."""
    return torch.exp(bound * torch.tanh(raw / bound))


class Gaussian(Prior):
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
    """

    def __init__(self, learn_scale: bool = True) -> None:
        super().__init__()
        self.learn_scale = learn_scale

    def bind(self, block: Block, design: Design) -> None:
        """Make the tables of means and log-scales."""
        spread = 0.5 if len(block.parents) == 1 else 0.3
        start = torch.cat([torch.full((block.size,), spread), torch.full((block.size,), 0.05)])
        self.table = ConditionTable(design, block.parents, start)

    def forward(self, batch: Batch) -> dist.TorchDistribution:
        """Return N(m, s²) with batch shape (B,) and event shape (d,)."""
        loc, raw = self.table(batch).chunk(2, dim=-1)
        scale = bounded_exp(raw) if self.learn_scale else torch.ones_like(raw)
        return dist.Normal(loc, scale).to_event(1)

    def refit(self, batch: Batch, loc: torch.Tensor, scale: torch.Tensor) -> None:
        """Set the tables so that the batch's conditions have the given moments.

        Parameters
        ----------
        batch
            One cell per condition, C of them.
        loc, scale
            Shape (C, d).
        """
        share = (scale.log() / BOUND).clamp(-0.95, 0.95)
        self.table.refit(batch, torch.cat([loc, BOUND * torch.atanh(share)], dim=1))
