"""A Gaussian prior whose components share a few directions of variation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyro.distributions as dist
import torch
from torch import nn

from pyro_fcr.nn import Block, condition_map
from pyro_fcr.priors.base import Prior
from pyro_fcr.priors.gaussian import BOUND, SCALE_SPREAD, bounded_exp, loc_spread

if TYPE_CHECKING:
    from pyro_fcr.data import Batch, Design

__all__ = ["LowRank"]


class LowRank(Prior):
    r"""Gaussian with covariance :math:`W(c) W(c)^\top + \operatorname{diag} s(c)^2`.

    Its divergence from a mean-field posterior is analytic. The blocks' components are correlated
    within a condition, so they are no longer identified one by one: the gauge is left alone.

    Parameters
    ----------
    rank
        Columns of W; no more than the block's size are used.
    condition
        How the condition is read: ``"table"``, ``"embedding"``, ``"mlp"`` or ``"features"``.
    """

    def __init__(self, rank: int = 2, condition: str = "table") -> None:
        super().__init__()
        self.rank, self.condition = rank, condition

    def bind(self, block: Block, design: Design) -> None:
        """Make the map of means, log-scales and factors."""
        d, self.shape = block.size, (block.size, min(self.rank, block.size))
        n = self.shape[0] * self.shape[1]
        start = torch.tensor([loc_spread(block)] * d + [SCALE_SPREAD] * (d + n))
        self.table = condition_map(self.condition, design, block.parents, start)
        # At W = 0 its gradient vanishes.
        self.factor = nn.Parameter(0.1 * torch.randn(self.shape))

    def forward(self, batch: Batch) -> dist.TorchDistribution:
        """Return the Gaussian with batch shape (B,) and event shape (d,)."""
        d, rank = self.shape
        loc, raw, factor = self.table(batch).split([d, d, d * rank], dim=-1)
        factor = self.factor + factor.unflatten(-1, self.shape)
        factor = BOUND * torch.tanh(factor / BOUND)
        return dist.LowRankMultivariateNormal(loc, factor, bounded_exp(raw).square())
