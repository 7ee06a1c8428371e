"""A normalising flow on top of the amortised Gaussians."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_fcr.guides.encoders import Encoders, log_normal
from pyro_fcr.priors import bounded_exp

__all__ = ["FlowRefined"]

CONTEXT = 8
"""Numbers that an encoder hands to the flow about a cell."""

POINTS = 32
"""Points of the base at which the flow's mean and variance are taken."""


class FlowRefined(Encoders):
    r"""q(z | y) as the image of amortised Gaussians under an autoregressive flow.

    Dimension i of all blocks, in order, is

    .. math:: z_i = m_i + s_i \bigl[\mu_i + e^{\sigma_i}
              \sinh\bigl(e^{\tau_i}\,(\operatorname{asinh} u_i + \kappa_i)\bigr)\bigr],
              \qquad u \sim N(0, I),

    with m, s the encoders' Gaussian and shift μ, log-scale σ, skewness κ and tail weight τ
    functions of :math:`u_{<i}` and the cell, by a masked network (Germain et al., ICML 2015;
    inverse autoregressive flow, Kingma et al., NeurIPS 2016; sinh-arcsinh, Jones & Pewsey,
    Biometrika 2009). It bends and skews what a joint Gaussian can only tilt, and starts as the
    mean field. Blocks keep their sites, each given those before it; the mean and variance of a
    block alone, which penalties and ``latents`` read, are those over a fixed set of points.

    Parameters: see :class:`~pyro_fcr.guides.encoders.Encoders`.
    """

    axes: Tensor
    points: Tensor

    def bind_family(self) -> None:
        """Make the flow."""
        self.network = MaskedNetwork(self.n_latent, CONTEXT, width=self.width)
        self.register_buffer("axes", torch.eye(self.n_latent))
        self.register_buffer("points", _points(self.n_latent), persistent=False)

    def shared_sizes(self) -> list[int]:
        """Return the size of the flow's context."""
        return [CONTEXT]

    def draw(self, parameters: list[Tensor]) -> dict[str, Tensor]:
        """Sample each block given those before it; the cell plate is open."""
        z: dict[str, Tensor] = {}
        noise = parameters[0][:, :0]
        for block in self.blocks:
            own = slice(noise.shape[-1], noise.shape[-1] + block.size)
            q = FlowBlock(self, parameters, noise, own)
            alone: Any = {"marginal": FlowMoments(self, parameters, own)}
            z[block.name] = pyro.sample(block.name, q, infer=alone)
            noise = torch.cat([noise, q.whiten(z[block.name])], dim=-1)
        return z

    def marginals(self, parameters: list[Tensor]) -> dict[str, dist.TorchDistribution]:
        """Return Gaussians with the mean and variance of each block's dimensions."""
        columns = self.columns().items()
        return {name: FlowMoments(self, parameters, own).normal for name, own in columns}

    def place(
        self, parameters: list[Tensor], noise: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the flow's image of noise and its log-density, block given block."""
        values, slope = self.push(parameters, noise)
        z, log_q = {}, {}
        for name, own in self.columns().items():
            axes = torch.linalg.slogdet(self.axes[own, own]).logabsdet
            z[name] = values[..., own]
            log_q[name] = log_normal(noise[..., own]) - slope[..., own].sum(-1) - axes
        return z, log_q

    def push(self, parameters: list[Tensor], noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return z, shape (..., B, D), and log ∂z_i/∂u_i in the axes of the encoders."""
        *gaussian, context = parameters
        loc = torch.cat([output.chunk(2, dim=-1)[0] for output in gaussian], dim=-1)
        raw = torch.cat([output.chunk(2, dim=-1)[1] for output in gaussian], dim=-1)
        scale = bounded_exp(raw, 4.0)
        shift, log_scale, skew, tail = self.network(noise, context)
        inner = tail.exp() * (torch.asinh(noise) + skew)
        bent = shift + log_scale.exp() * torch.sinh(inner)
        slope = scale.log() + log_scale + tail + _log_cosh(inner)
        slope = slope - 0.5 * torch.log1p(noise.square())
        return (loc + scale * bent) @ self.axes.T, slope

    def turn(self, name: str, matrix: Tensor, variance: Tensor) -> None:
        """Replace a block's z by ``matrix`` · z, exactly; see :meth:`Encoders.turn`."""
        own = self.columns()[name]
        self.axes[own, own] = matrix.to(self.axes.dtype) @ self.axes[own, own]


class MaskedNetwork(nn.Module):
    """Four numbers per dimension, each a function of the dimensions before it and a context.

    Parameters
    ----------
    size
        Dimensions, D.
    n_context
        Numbers of context; every output reads them all.
    width
        Hidden units.
    """

    degree_h: Tensor
    degree_d: Tensor

    def __init__(self, size: int, n_context: int, *, width: int) -> None:
        super().__init__()
        self.size = size
        self.first = nn.Linear(size, width)
        self.context = nn.Linear(n_context, width, bias=False)
        self.last = nn.Linear(width, 4 * size)
        self.direct = nn.Linear(n_context, 4 * size, bias=False)
        with torch.no_grad():
            for layer in (self.last, self.direct):
                layer.weight.mul_(0.01)
            self.last.bias.zero_()
        degrees = torch.arange(size)
        # A hidden unit of degree k reads dimensions up to k; dimension i reads units below i.
        self.register_buffer("degree_d", degrees, persistent=False)
        self.register_buffer("degree_h", torch.arange(width) % max(1, size - 1), persistent=False)

    def forward(self, u: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return shift, log-scale, skewness and log tail weight; shape (..., B, D) each."""
        reads = (self.degree_h[:, None] >= self.degree_d).to(u.dtype)
        feeds = (self.degree_d[:, None] > self.degree_h).to(u.dtype).repeat(4, 1)
        hidden = F.linear(u, self.first.weight * reads, self.first.bias) + self.context(context)
        out = F.linear(torch.tanh(hidden), self.last.weight * feeds, self.last.bias)
        shift, *others = (out + self.direct(context)).chunk(4, dim=-1)
        log_scale, skew, tail = (torch.tanh(value) for value in others)
        return shift, log_scale, skew, 0.5 * tail


class FlowBlock(TorchDistribution):
    """One block of the flow, given the noise of those before it."""

    has_rsample = True
    support = dist.constraints.real_vector

    def __init__(
        self, flow: FlowRefined, parameters: list[Tensor], before: Tensor, own: slice
    ) -> None:
        self.flow, self.parameters, self.before, self.own = flow, parameters, before, own
        shape = parameters[0].shape[:-1]
        super().__init__(shape, torch.Size([own.stop - own.start]), validate_args=False)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw values of shape (*sample_shape, B, d)."""
        shape = self._extended_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.before.dtype, device=self.before.device)
        return self._push(noise)[0]

    def whiten(self, value: Tensor) -> Tensor:
        """Return the noise that gives a value, dimension by dimension; shape as the value."""
        inverse = torch.linalg.inv_ex(self.flow.axes[self.own, self.own]).inverse
        wanted = value @ inverse.T
        *gaussian, context = self.parameters
        loc = torch.cat([output.chunk(2, dim=-1)[0] for output in gaussian], dim=-1)
        raw = torch.cat([output.chunk(2, dim=-1)[1] for output in gaussian], dim=-1)
        bent = (wanted - loc[..., self.own]) / bounded_exp(raw[..., self.own], 4.0)
        noise = self.before.expand(*value.shape[:-1], -1)
        for i in range(self.own.start, self.own.stop):
            rest = noise.new_zeros(*noise.shape[:-1], self.flow.n_latent - i)
            found = self.flow.network(torch.cat([noise, rest], dim=-1), context)
            shift, log_scale, skew, tail = (part[..., i] for part in found)
            ratio = (bent[..., i - self.own.start] - shift) * torch.exp(-log_scale)
            u = torch.sinh(torch.asinh(ratio) * torch.exp(-tail) - skew)
            noise = torch.cat([noise, u[..., None]], dim=-1)
        return noise[..., self.own]

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density; shape (..., B)."""
        noise = self.whiten(value)
        slope = self._push(noise)[1]
        axes = torch.linalg.slogdet(self.flow.axes[self.own, self.own]).logabsdet
        return log_normal(noise) - slope.sum(-1) - axes

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowBlock:
        """Return the same distribution; only its own batch shape is known."""
        if torch.Size(batch_shape) != self.batch_shape:
            raise NotImplementedError
        return self

    def _push(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        before = self.before.expand(*noise.shape[:-1], -1)
        rest = noise.new_zeros(*noise.shape[:-1], self.flow.n_latent - self.own.stop)
        full = torch.cat([before, noise, rest], dim=-1)
        values, slope = self.flow.push(self.parameters, full)
        return values[..., self.own], slope[..., self.own]


class FlowMoments:
    """A Gaussian with the mean and variance of a block alone; computed only when asked for."""

    def __init__(self, flow: FlowRefined, parameters: list[Tensor], own: slice) -> None:
        self.flow, self.parameters, self.own = flow, parameters, own

    @cached_property
    def normal(self) -> TorchDistribution:
        """Batch shape (B,), event shape (d,); its moments are those over the fixed points."""
        cells = self.parameters[0].shape[0]
        noise = self.flow.points[:, None].expand(-1, cells, -1)
        values = self.flow.push(self.parameters, noise)[0][..., self.own]
        return dist.Normal(values.mean(0), values.std(0, unbiased=False)).to_event(1)

    def __getattr__(self, name: str) -> Any:
        """Answer as the Gaussian does."""
        return getattr(self.normal, name)


def _points(size: int) -> Tensor:
    """Return antithetic quasi-random points of N(0, I), scaled to unit variance; (P, D)."""
    sobol = torch.quasirandom.SobolEngine(size, scramble=True, seed=0).draw(POINTS // 2)
    half = torch.special.ndtri(sobol.double().clamp(1e-4, 1 - 1e-4))
    both = torch.cat([half, -half])
    return (both / both.square().mean(0).sqrt()).float()


def _log_cosh(value: Tensor) -> Tensor:
    return value + F.softplus(-2 * value) - math.log(2)
