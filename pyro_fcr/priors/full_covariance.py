"""A Gaussian prior with a covariance of its own in every condition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyro.distributions as dist
import torch

from pyro_fcr.nn import Block, condition_map
from pyro_fcr.priors.base import Prior
from pyro_fcr.priors.gaussian import BOUND, SCALE_SPREAD, bounded_exp, loc_spread

if TYPE_CHECKING:
    from torch import Tensor

    from pyro_fcr.data import Batch, Design

__all__ = ["FullCovariance"]


class FullCovariance(Prior):
    r"""Gaussian whose mean, scales and correlations all vary by condition.

    The covariance is :math:`\operatorname{diag}(s)\, C C^\top \operatorname{diag}(s)`, with C
    lower triangular and its rows of length one: :math:`s_i` is the standard deviation of
    component i, whatever the correlations are. Its divergence from a mean-field posterior is
    analytic. The blocks' components are correlated within a condition, so they are no longer
    identified one by one: the gauge is left alone.

    Parameters
    ----------
    condition
        How the condition is read: ``"table"``, ``"embedding"``, ``"mlp"`` or ``"features"``.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, condition: str = "table") -> None:
        super().__init__()
        self.condition = condition

    def bind(self, block: Block, design: Design) -> None:
        """Make the map of means, log-scales and correlations."""
        d = self.size = block.size
        rows, columns = torch.tril_indices(d, d, -1)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        start = torch.tensor([loc_spread(block)] * d + [SCALE_SPREAD] * (d + len(rows)))
        self.table = condition_map(self.condition, design, block.parents, start)

    def forward(self, batch: Batch) -> dist.TorchDistribution:
        """Return the Gaussian with batch shape (B,) and event shape (d,)."""
        d = self.size
        loc, raw, below = self.table(batch).split([d, d, len(self.rows)], dim=-1)
        # Bounded, the rows stay well away from singular in float32.
        eye = torch.eye(d, dtype=loc.dtype, device=loc.device)
        triangle = eye.expand(len(batch), d, d).clone()
        triangle[:, self.rows, self.columns] = BOUND * torch.tanh(below / BOUND)
        triangle = triangle / triangle.norm(dim=-1, keepdim=True)
        return dist.MultivariateNormal(loc, scale_tril=bounded_exp(raw)[..., None] * triangle)
