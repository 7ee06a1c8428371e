"""The networks: fully connected layers, and several of them fused into one pass."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_fcr.nn.sparse_linear import SparseFeatures

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MLP", "ParallelMLP"]


class MLP(nn.Module):
    """Fully connected layers with layer normalisation and GELU between them.

    Parameters
    ----------
    n_in, n_out
        Sizes of the last axis of input and output.
    hidden
        Widths of the hidden layers; empty for a linear map.
    last_bias
        Whether the last layer has a bias.

    Examples
    --------
    >>> MLP(3, 2, hidden=(8,))(torch.zeros(5, 3)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self, n_in: int, n_out: int, *, hidden: Sequence[int] = (128,), last_bias: bool = True
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(n_in, width), nn.LayerNorm(width), nn.GELU()]
            n_in = width
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(n_in, n_out, bias=last_bias)

    def forward(self, x: Tensor, beside: nn.Linear | None = None) -> Tensor:
        """Map (..., n_in) to (..., n_out).

        Parameters
        ----------
        x
            Shape (..., n_in).
        beside
            A linear map of the input, added to what the last layer makes, which then has no bias
            of its own: both are one product.
        """
        hidden = self.layers(x)
        if beside is None:
            return self.last(hidden)
        joined = torch.cat([hidden, x], dim=-1)
        weight = torch.cat([self.last.weight, beside.weight], dim=1)
        if torch.is_autocast_enabled(x.device.type):
            # Half precision would round what the bias adds to.
            return F.linear(joined, weight).float() + beside.bias
        return F.linear(joined, weight, beside.bias)

    @property
    def first(self) -> nn.Linear:
        """The layer that reads the input."""
        return next(m for m in self.modules() if isinstance(m, nn.Linear))

    @torch.no_grad()
    def turn(self, columns: slice, inverse: Tensor) -> None:
        """Read inputs x' = A x in some columns as x was read: ``inverse`` is A⁻¹."""
        weight = self.first.weight
        weight[:, columns] = weight[:, columns] @ inverse


class ParallelMLP(nn.Module):
    """K independent MLPs over the same input, evaluated together.

    The first layers read the same genes, so they are one matrix product; the deeper layers are
    batched ones. The result equals K separate networks, at a fraction of the calls.

    Parameters
    ----------
    n_in
        Number of input features, shared.
    n_out
        One output size per network.
    width
        Hidden width of each network.
    depth
        Number of hidden layers, at least 1.
    """

    def __init__(
        self, n_in: int, n_out: Sequence[int], *, width: int = 128, depth: int = 2
    ) -> None:
        super().__init__()
        self.n_networks, self.width, self.n_out = len(n_out), width, tuple(n_out)
        first = nn.Linear(n_in, self.n_networks * width)
        # By genes: what a cell's few non-zero genes add up lies together.
        self.first_weight_gk = nn.Parameter(first.weight.detach().T.contiguous())
        self.first_bias_k = first.bias
        self.norms_kd = nn.ParameterList(
            nn.Parameter(torch.stack([torch.ones(self.n_networks, width),
                                      torch.zeros(self.n_networks, width)]))
            for _ in range(depth)
        )  # fmt: skip
        self.weights_kdd = nn.ParameterList(
            nn.Parameter(_uniform(width, self.n_networks, width, width)) for _ in range(depth - 1)
        )
        self.biases_kd = nn.ParameterList(
            nn.Parameter(_uniform(width, self.n_networks, 1, width)) for _ in range(depth - 1)
        )
        widest = max(n_out)
        self.last_weight_kdo = nn.Parameter(_uniform(width, self.n_networks, width, widest))
        self.last_bias_ko = nn.Parameter(torch.zeros(self.n_networks, 1, widest))

    def forward(self, x: Tensor | SparseFeatures, shift_kd: Tensor | None = None) -> list[Tensor]:
        """Return one output of shape (B, n_out[k]) per network.

        Parameters
        ----------
        x
            Shape (B, n_in).
        shift_kd
            Shape (B, K · width), added to the first layers' pre-activations: what each network
            reads besides the shared input.
        """
        if isinstance(x, SparseFeatures):
            first = x.linear(self.first_weight_gk, self.first_bias_k)
        else:
            first = torch.addmm(self.first_bias_k, x, self.first_weight_gk)
        first = first if shift_kd is None else first + shift_kd
        hidden = first.unflatten(-1, (self.n_networks, self.width)).transpose(0, 1)
        hidden = self._activate(hidden, 0)
        for layer, (weight, bias) in enumerate(
            zip(self.weights_kdd, self.biases_kd, strict=True), 1
        ):
            hidden = self._activate(torch.baddbmm(bias, hidden, weight), layer)
        out = torch.baddbmm(self.last_bias_ko, hidden, self.last_weight_kdo)
        return [out[k, :, :size] for k, size in enumerate(self.n_out)]

    @torch.no_grad()
    def turn(self, network: int, matrix: Tensor, offset: Tensor) -> None:
        """Replace one network's output o by ``matrix`` · o + ``offset``."""
        size = self.n_out[network]
        weight, bias = self.last_weight_kdo[network], self.last_bias_ko[network]
        weight[:, :size] = weight[:, :size] @ matrix.T
        bias[:, :size] = bias[:, :size] @ matrix.T + offset

    def _activate(self, hidden: Tensor, layer: int) -> Tensor:
        gain, bias = self.norms_kd[layer].unsqueeze(2)
        return F.gelu(torch.addcmul(bias, F.layer_norm(hidden, (self.width,)), gain))


def _uniform(fan_in: int, *shape: int) -> Tensor:
    bound = 1 / math.sqrt(fan_in)
    return torch.empty(*shape).uniform_(-bound, bound)
