"""Log-densities of whole cells' counts, each one function with a gradient of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pyro_fcr.nonzeros import NonZeros, nonzeros

__all__ = [
    "TABULATED",
    "cell_log_prob",
    "dense_log_prob",
    "log_factorials",
    "negative_binomial_log_prob",
    "shared_log_prob",
]

TABULATED = 16
"""Largest count whose log-gamma and digamma differences are read from a table per gene."""

LARGEST_LOG = 80.0
"""Beyond this log-ratio of mean and dispersion exp would overflow float32."""


def negative_binomial_log_prob(y: Tensor, log_mean: Tensor, log_dispersion: Tensor) -> Tensor:
    """Return log NB(y; μ, θ) element by element.

    Parameters
    ----------
    y
        Shape (..., G): counts.
    log_mean
        Shape (..., G): log μ, in log molecules.
    log_dispersion
        Shape (G,): log θ; the variance is μ + μ²/θ.

    Returns
    -------
    Tensor
        Shape (..., G).
    """
    theta, a = log_dispersion.exp(), log_mean - log_dispersion
    softplus = F.softplus(a)
    gammas = torch.lgamma(y + theta) - torch.lgamma(theta) - torch.lgamma(y + 1)
    return y * (a - softplus) - theta * softplus + gammas


def cell_log_prob(
    value: Tensor, log_mean: Tensor, log_theta: Tensor, gate: Tensor | None = None
) -> Tensor:
    """Sum the log-densities of negative binomial counts over a cell's genes; shape (...).

    Parameters
    ----------
    value, log_mean
        Shape (..., G): counts, and log μ.
    log_theta
        Shape (G,).
    gate
        Shape (..., G): log-odds of a structural zero, where there may be some.
    """
    if log_mean.device.type != "cpu":
        return dense_log_prob(value, log_mean, log_theta, gate)
    given = [value, log_mean] if gate is None else [value, log_mean, gate]
    wide = torch.broadcast_tensors(*given)
    _, mean, *gates = (tensor.reshape(-1, wide[0].shape[-1]).contiguous() for tensor in wide)
    at = _found(value, wide[0].shape)
    out = _CellLogProb.apply(at, mean, log_theta, *(gates or [None]))
    return out.reshape(wide[0].shape[:-1])


def shared_log_prob(
    value: Tensor, logits: Tensor, log_library: Tensor, log_theta: Tensor
) -> Tensor:
    """Return the same of log μ = log library + log softmax(logits), on the CPU; shape (...).

    Parameters
    ----------
    value, logits
        Shape (..., G).
    log_library
        Shape (...), that of the logits: in log molecules.
    log_theta
        Shape (G,).
    """
    shape = torch.broadcast_shapes(value.shape, logits.shape)
    flat = logits.expand(shape).reshape(-1, shape[-1])
    library = log_library.expand(shape[:-1]).reshape(-1)
    y, at = value.expand(shape).reshape(-1, shape[-1]), _found(value, shape)
    return _SharedLogProb.apply(y, at, flat, library, log_theta).reshape(shape[:-1])


def dense_log_prob(y: Tensor, log_mean: Tensor, log_theta: Tensor, gate: Tensor | None) -> Tensor:
    """Return :func:`cell_log_prob` from every count alike, zero or not."""
    count = negative_binomial_log_prob(y, log_mean, log_theta)
    if gate is not None:
        count = torch.where(y == 0, torch.logaddexp(gate, count), count) - F.softplus(gate)
    return count.sum(-1)


def log_factorials(y: Tensor) -> Tensor:
    """Sum log y! over a cell's genes; shape (...) of counts (..., G)."""
    if y.device.type != "cpu":
        return torch.lgamma(y + 1).sum(-1)
    flat = y.reshape(-1, y.shape[-1])
    cell, gene = (flat > 1).nonzero(as_tuple=True)
    terms = torch.lgamma(_pick(flat, cell * y.shape[-1] + gene) + 1)
    return flat.new_zeros(len(flat)).index_add_(0, cell, terms).view(y.shape[:-1])


class _CellLogProb(torch.autograd.Function):
    """Log-density of each cell's counts, summed over genes, with a closed-form backward.

    With a = log μ − log θ, a gene's density is y (a − softplus a) − θ softplus a plus log-gamma
    terms that vanish where y = 0. Counts are mostly zeros, so everything that y multiplies is
    evaluated at the non-zeros alone, and the dense rest is an exp, a log1p and a matrix-vector
    product; nothing of the size of the counts is made that is not needed. With a gate g, the
    log-odds of a structural zero, a zero's density is log(e^g + NB(0)) − softplus g, and a
    count's that of the negative binomial − softplus g. On an accelerator finding the non-zeros
    would cost a synchronisation, so :func:`dense_log_prob` is used there.
    """

    @staticmethod
    def forward(
        ctx: Any, at: NonZeros, log_mean: Tensor, log_theta: Tensor, gate: Tensor | None
    ) -> Tensor:
        theta = log_theta.exp()
        odds = (log_mean - log_theta).clamp_(max=LARGEST_LOG).exp_()
        softplus = odds.log1p()
        gammas = _Pochhammer(at, theta)
        counted = _pick(log_mean, at.place).sub_(_pick(softplus, at.place))
        counted = counted.mul_(at.value).add_(gammas.value())
        structural: Tensor | None = None
        if gate is None:
            out = -(softplus @ theta)
        else:
            # At a zero: logaddexp(g, n) = n + softplus(g − n) with n = −θ softplus a.
            none = softplus * -theta
            excess = gate - none
            both = none + F.softplus(excess)
            both.view(-1)[at.place] = _pick(none, at.place)
            out = (both - F.softplus(gate)).sum(-1)
            structural = excess.sigmoid_()
            structural.view(-1)[at.place] = 0
        ctx.at, ctx.gammas = at, gammas
        ctx.save_for_backward(odds, softplus, theta, gate, structural)
        return out.add_(at.row_sums(counted))

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[None, Tensor | None, Tensor | None, Tensor | None]:
        odds, softplus, theta, gate, structural = ctx.saved_tensors
        at: NonZeros = ctx.at
        share = odds / (odds + 1)
        # d/d log μ = y (1 − share) − θ share; d/d log θ = −d/d log μ − θ softplus + θ (ψ − ψ).
        grad_nz = _pick(grad, at.row)
        counted = grad_nz * at.value * (1 - _pick(share, at.place))
        digammas = ctx.gammas.slopes(grad_nz)
        d_gate: Tensor | None = None
        if gate is None:
            d_mean = share.mul_(-theta).mul_(grad[:, None])
            d_theta = theta * (digammas - grad @ softplus)
        else:
            # What the structural zeros explain, the counts need not.
            kept = grad[:, None] * (1 - structural)
            d_mean = share.mul_(-theta).mul_(kept)
            d_theta = theta * (digammas - (kept * softplus).sum(0))
            d_gate = grad[:, None] * (structural - torch.sigmoid(gate))
        d_mean.view(-1).index_add_(0, at.place, counted)
        return None, d_mean, d_theta - d_mean.sum(0), d_gate


class _SharedLogProb(torch.autograd.Function):
    """The same, by what a softmax turns into shares of a cell's library: log μ = L + log p.

    One exponential serves the softmax and the odds μ/θ. With e = (y − μ) θ/(μ+θ), the derivative
    by log μ, that by the logits is e − p Σ_g e, made while its parts are at hand; so it is the
    passes over the matrix that count, and there are few.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, at: NonZeros, logits: Tensor, log_library: Tensor, log_theta: Tensor
    ) -> Tensor:
        theta, library = log_theta.exp(), log_library.exp()
        shares = logits.softmax(-1)
        # Of the logits, for log p where p is too small to be told.
        shift = log_library + shares.amax(-1).log_() - logits.amax(-1)
        mean = shares.mul_(library[:, None])
        odds = mean / theta
        softplus = odds.log1p()
        gammas = _Pochhammer(at, theta)
        counted = _pick(logits, at.place).add_(_pick(shift, at.row))
        counted = counted.sub_(_pick(softplus, at.place)).mul_(at.value).add_(gammas.value())
        out = at.row_sums(counted).sub_(softplus @ theta)
        if not any(ctx.needs_input_grad):
            return out
        excess = odds.add_(1.0).reciprocal_().mul_(y - mean)
        by_library = excess.sum(-1)
        by_theta = torch.addcmul(excess, softplus, theta, out=softplus)
        # A cell without molecules has a mean of zero as well.
        each = by_library / library.clamp_min(torch.finfo(library.dtype).tiny)
        by_logits = excess.addcmul_(mean, each[:, None], value=-1.0)
        ctx.at, ctx.gammas = at, gammas
        ctx.save_for_backward(by_logits, by_library, by_theta, theta)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor, Tensor, Tensor]:
        by_logits, by_library, by_theta, theta = ctx.saved_tensors
        # d/d log θ = −e − θ softplus + θ (ψ(y+θ) − ψ(θ)).
        slopes = ctx.gammas.slopes(_pick(grad, ctx.at.row))
        d_theta = theta * slopes - grad @ by_theta
        return None, None, by_logits * grad[:, None], by_library * grad, d_theta


class _Pochhammer:
    """log of Γ(y+θ) / Γ(θ) θ^y y! at non-zero counts, and the derivative of Γ(y+θ) / Γ(θ) by θ.

    For whole y these are sums over k < y of log (1+k/θ)/(1+k) and of 1/(θ+k). Most counts are
    small, so a table of few rows serves them all but some, which are evaluated themselves.
    """

    def __init__(self, at: NonZeros, theta: Tensor) -> None:
        self.at, self.theta = at, theta
        row = at.value.clamp(1, TABULATED).int() - 1
        self.place = row * len(theta) + at.column
        # Found by numpy in half the time.
        self.rest = torch.from_numpy(np.flatnonzero((at.value != row + 1).numpy()))
        self.y = at.value[self.rest]
        self.column = at.column.index_select(0, self.rest)
        self.theta_rest = theta.index_select(0, self.column)
        self.k = torch.arange(TABULATED, dtype=theta.dtype)[:, None]
        self.sums = torch.ones(TABULATED, TABULATED, dtype=theta.dtype).tril_()

    def value(self) -> Tensor:
        """Return the logarithms; shape (C,)."""
        out = _pick(self.sums @ ((self.k / self.theta).log1p() - self.k.log1p()), self.place)
        if len(self.rest):
            y, theta = self.y, self.theta_rest
            gammas = torch.lgamma(y + theta) - torch.lgamma(theta) - torch.lgamma(y + 1)
            out.index_copy_(0, self.rest, gammas - y * theta.log())
        return out

    def slopes(self, weight: Tensor) -> Tensor:
        """Return each gene's sum of derivatives, the counts weighted (C,); shape (G,).

        The weights are used up.
        """
        # How much weight the counts y > k of a gene have: each adds its 1/(θ+k).
        if len(self.rest):
            y, theta = self.y, self.theta_rest
            slope = torch.digamma(y + theta) - torch.digamma(theta)
            slope *= weight.index_select(0, self.rest)
            weight.index_fill_(0, self.rest, 0.0)
        beyond = weight.new_zeros(TABULATED * len(self.theta)).index_add_(0, self.place, weight)
        beyond = self.sums.T @ beyond.view(TABULATED, -1)
        out = beyond.div_(self.theta + self.k).sum(0)
        return out.index_add_(0, self.column, slope) if len(self.rest) else out


def _found(value: Tensor, shape: torch.Size) -> NonZeros:
    # A minibatch's own counts know their non-zeros, copies of them do not.
    return nonzeros(value if len(shape) == value.ndim == 2 and value.shape == shape
                    else value.expand(shape).reshape(-1, shape[-1]))  # fmt: skip


def _pick(values: Tensor, place: Tensor) -> Tensor:
    # Several times faster than indexing.
    return values.reshape(-1).index_select(0, place)
