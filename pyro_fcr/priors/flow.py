"""A normalising flow whose base and transforms know the condition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from pyro_fcr.nn import MLP, Block, condition_map
from pyro_fcr.priors.base import Prior
from pyro_fcr.priors.gaussian import SCALE_SPREAD, bounded_exp, loc_spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyro_fcr.data import Batch, Design

__all__ = ["Coupling", "Flow"]

STRETCH = 1.5
"""A coupling's log-scale stays between minus and plus this."""


class Coupling(Transform):
    r"""Affine coupling: half of the components are moved by what the other half says.

    .. math:: y_a = x_a,\qquad y_b = x_b \odot e^{\sigma(x_a, c)} + \mu(x_a, c)

    (Dinh et al. 2017, arXiv 1605.08803), with a context c.

    Parameters
    ----------
    network
        From (d + c) to 2 d: the shifts and the log-scales' raw values.
    kept
        Shape (d,), bool: which components are read and left as they are.
    context
        Shape (B, c).
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, network: nn.Module, kept: Tensor, context: Tensor) -> None:
        super().__init__()
        self.network, self.kept, self.context = network, kept, context

    def _moves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # Where the context is one of many particles', or the other way round, both broadcast.
        shape = torch.broadcast_shapes(x.shape[:-1], self.context.shape[:-1])
        read = (x * self.kept).expand(*shape, -1)
        context = self.context.expand(*shape, -1)
        shift, raw = self.network(torch.cat([read, context], dim=-1)).chunk(2, dim=-1)
        return shift * ~self.kept, STRETCH * torch.tanh(raw / STRETCH) * ~self.kept

    def _call(self, x: Tensor) -> Tensor:
        shift, log_scale = self._moves(x)
        return x * log_scale.exp() + shift

    def _inverse(self, y: Tensor) -> Tensor:
        shift, log_scale = self._moves(y)
        return (y - shift) * (-log_scale).exp()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the sum of the log-scales; shape (B,)."""
        return self._moves(x)[1].sum(-1)


class Flow(Prior):
    """A conditional normalising flow: a diagonal Gaussian per condition, bent by couplings.

    The base's mean and scale vary by condition, and so do the couplings, through a short
    context vector. It starts as the Gaussian. Its divergence has no closed form; draws stand
    in. A block of one dimension stays Gaussian, since a coupling needs two parts.

    Parameters
    ----------
    layers
        Number of couplings, which keep even and odd components in turn.
    hidden
        Widths of each coupling's hidden layers.
    context
        Length of the context vector.
    condition
        How the condition is read: ``"table"``, ``"embedding"``, ``"mlp"`` or ``"features"``.
    """

    kept: Tensor

    def __init__(
        self,
        layers: int = 4,
        hidden: Sequence[int] = (32,),
        context: int = 4,
        condition: str = "table",
    ) -> None:
        super().__init__()
        self.layers, self.hidden, self.context = layers, tuple(hidden), context
        self.condition = condition

    def bind(self, block: Block, design: Design) -> None:
        """Make the base's map, the context's, and the couplings' networks."""
        d = self.size = block.size
        spreads = [loc_spread(block)] * d + [SCALE_SPREAD] * d + [1.0] * self.context
        self.table = condition_map(self.condition, design, block.parents, torch.tensor(spreads))
        parity = torch.arange(d) % 2 == torch.arange(self.layers)[:, None] % 2
        self.register_buffer("kept", parity, persistent=False)
        networks = [MLP(d + self.context, 2 * d, hidden=self.hidden) for _ in range(self.layers)]
        for network in networks:
            nn.init.zeros_(network.last.weight)
            nn.init.zeros_(network.last.bias)
        self.networks = nn.ModuleList(networks)

    def forward(self, batch: Batch) -> dist.TorchDistribution:
        """Return the flow's distribution with batch shape (B,) and event shape (d,)."""
        d = self.size
        loc, raw, context = self.table(batch).split([d, d, self.context], dim=-1)
        base = dist.Normal(loc, bounded_exp(raw)).to_event(1)
        couplings = [
            Coupling(network, kept, context)
            for network, kept in zip(self.networks, self.kept, strict=True)
        ]
        return dist.TransformedDistribution(base, couplings)
