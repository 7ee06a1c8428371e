"""A mixture of Gaussians in every condition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyro.distributions as dist
import torch
from torch import nn

from pyro_fcr.nn import Block, condition_map
from pyro_fcr.priors.base import Prior
from pyro_fcr.priors.gaussian import SCALE_SPREAD, bounded_exp, loc_spread

if TYPE_CHECKING:
    from pyro_fcr.data import Batch, Design

__all__ = ["Mixture"]


class Mixture(Prior):
    r"""A mixture of K diagonal Gaussians whose weights, means and scales vary by condition.

    .. math:: p(z \mid c) = \sum_k \pi_k(c)\, N\left(z; m_k(c), \operatorname{diag} s_k(c)^2\right)

    For conditions that are not of one kind: responders and non-responders, phases of the cell
    cycle. Its divergence has no closed form; draws stand in.

    Parameters
    ----------
    components
        K.
    condition
        How the condition is read: ``"table"``, ``"embedding"``, ``"mlp"`` or ``"features"``.
    """

    def __init__(self, components: int = 5, condition: str = "table") -> None:
        super().__init__()
        self.components, self.condition = components, condition

    def bind(self, block: Block, design: Design) -> None:
        """Make the map of weights, means and log-scales; the components start apart."""
        self.size = block.size
        n = self.components * block.size
        spreads = [SCALE_SPREAD] * self.components + [loc_spread(block)] * n + [SCALE_SPREAD] * n
        self.table = condition_map(self.condition, design, block.parents, torch.tensor(spreads))
        self.centres = nn.Parameter(0.5 * torch.randn(self.components, block.size))

    def forward(self, batch: Batch) -> dist.TorchDistribution:
        """Return the mixture with batch shape (B,) and event shape (d,)."""
        n = self.components * self.size
        logits, loc, raw = self.table(batch).split([self.components, n, n], dim=-1)
        shape = (self.components, self.size)
        loc = loc.unflatten(-1, shape) + self.centres
        parts = dist.Normal(loc, bounded_exp(raw).unflatten(-1, shape)).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)
