"""Count distributions over the genes of a cell, evaluated where the counts are."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Gamma, constraints
from torch.nn import functional as F

Shape = torch.Size | list[int] | tuple[int, ...]

__all__ = [
    "NegativeBinomial",
    "Poisson",
    "ZeroInflatedNegativeBinomial",
    "negative_binomial_log_prob",
]


TABULATED = 16
"""Largest count whose log-gamma and digamma differences are read from a table per gene."""

LARGEST_LOG = 80.0
"""Beyond this log-ratio of mean and dispersion exp would overflow float32."""


class _NonZeros(NamedTuple):
    """The non-zero counts of some cells, C of them."""

    place: Tensor
    """Positions among all values, row by row."""

    cell: Tensor
    gene: Tensor
    y: Tensor

    @classmethod
    def of(cls, y: Tensor) -> _NonZeros:
        cell, gene = y.bool().nonzero(as_tuple=True)
        place = cell * y.shape[-1] + gene
        return cls(place, cell, gene, _pick(y, place))

    def pochhammer(self, theta: Tensor, *, slope: bool) -> Tensor:
        """Return log of Γ(y+θ) / Γ(θ) y! at the counts, or its derivative by θ.

        For whole y these are sums over k < y of log (θ+k)/(1+k) and of 1/(θ+k). Most counts are
        small, so a table of few rows serves them all but some, which are evaluated themselves.
        """
        k = torch.arange(TABULATED, dtype=theta.dtype)[:, None]
        terms = (theta + k).reciprocal() if slope else ((theta + k) / (1 + k)).log()
        row = self.y.clamp(1, TABULATED).long() - 1
        out = _pick(terms.cumsum(0), row * len(theta) + self.gene)
        rest = (self.y != row + 1).nonzero().view(-1)
        if len(rest):
            y, theta = self.y[rest], theta[self.gene[rest]]
            out[rest] = (
                torch.digamma(y + theta) - torch.digamma(theta)
                if slope
                else torch.lgamma(y + theta) - torch.lgamma(theta) - torch.lgamma(y + 1)
            )
        return out


def _pick(values: Tensor, place: Tensor) -> Tensor:
    # Several times faster than indexing.
    return values.reshape(-1).index_select(0, place)


class _CellLogProb(torch.autograd.Function):
    """Log-density of each cell's counts, summed over genes, with a closed-form backward.

    With a = log μ − log θ, a gene's density is y (a − softplus a) − θ softplus a plus log-gamma
    terms that vanish where y = 0. Counts are mostly zeros, so everything that y multiplies is
    evaluated at the non-zeros alone, and the dense rest is an exp, a log1p and a matrix-vector
    product; nothing of the size of the counts is made that is not needed. With a gate g, the
    log-odds of a structural zero, a zero's density is log(e^g + NB(0)) − softplus g, and a
    count's that of the negative binomial − softplus g. On an accelerator finding the non-zeros
    would cost a synchronisation, so :func:`_dense_log_prob` is used there.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, log_mean: Tensor, log_theta: Tensor, gate: Tensor | None
    ) -> Tensor:
        theta = log_theta.exp()
        odds = (log_mean - log_theta).clamp_(max=LARGEST_LOG).exp_()
        softplus = odds.log1p()
        at = _NonZeros.of(y)
        log_share = _pick(log_mean, at.place) - _pick(log_theta, at.gene)
        log_share -= _pick(softplus, at.place)
        counted = at.y * log_share + at.pochhammer(theta, slope=False)
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
        out.index_add_(0, at.cell, counted)
        ctx.save_for_backward(odds, softplus, theta, gate, structural, *at)
        return out

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[None, Tensor | None, Tensor | None, Tensor | None]:
        odds, softplus, theta, gate, structural, *found = ctx.saved_tensors
        at = _NonZeros(*found)
        share = odds / (odds + 1)
        # d/d log μ = y (1 − share) − θ share; d/d log θ = −d/d log μ − θ softplus + θ (ψ − ψ).
        grad_nz = _pick(grad, at.cell)
        counted = grad_nz * at.y * (1 - _pick(share, at.place))
        digammas = torch.zeros_like(theta).index_add_(
            0, at.gene, grad_nz * at.pochhammer(theta, slope=True)
        )
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


def _dense_log_prob(y: Tensor, log_mean: Tensor, log_theta: Tensor, gate: Tensor | None) -> Tensor:
    count = negative_binomial_log_prob(y, log_mean, log_theta)
    if gate is not None:
        count = torch.where(y == 0, torch.logaddexp(gate, count), count) - F.softplus(gate)
    return count.sum(-1)


def _cell_log_prob(
    value: Tensor, log_mean: Tensor, log_theta: Tensor, gate: Tensor | None = None
) -> Tensor:
    """Sum the log-densities of cells' counts over genes; shape (...)."""
    if log_mean.device.type != "cpu":
        return _dense_log_prob(value, log_mean, log_theta, gate)
    given = [value, log_mean] if gate is None else [value, log_mean, gate]
    wide = torch.broadcast_tensors(*given)
    y, mean, *gates = (tensor.reshape(-1, wide[0].shape[-1]).contiguous() for tensor in wide)
    out = _CellLogProb.apply(y, mean, log_theta, *(gates or [None]))
    return out.reshape(wide[0].shape[:-1])


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


class NegativeBinomial(TorchDistribution):
    """Negative binomial counts of a cell's genes, by mean and dispersion.

    log p(y) = lgamma(y+θ) − lgamma(θ) − lgamma(y+1) + y log(μ/(μ+θ)) + θ log(θ/(μ+θ)),
    so E y = μ and Var y = μ + μ²/θ.

    Parameters
    ----------
    log_mean
        Shape (..., G): log μ. The last axis is the event.
    log_dispersion
        Shape (G,): log θ per gene, shared by all cells.

    Examples
    --------
    >>> NegativeBinomial(torch.zeros(5, 3), torch.zeros(3)).log_prob(torch.zeros(5, 3)).shape
    torch.Size([5])
    """

    arg_constraints = {
        "log_mean": constraints.real_vector,
        "log_dispersion": constraints.real_vector,
    }
    support = constraints.independent(constraints.nonnegative_integer, 1)
    has_rsample = False

    def __init__(
        self, log_mean: Tensor, log_dispersion: Tensor, *, validate_args: bool | None = None
    ) -> None:
        self.log_mean, self.log_dispersion = log_mean, log_dispersion
        super().__init__(log_mean.shape[:-1], log_mean.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> NegativeBinomial:
        """Return the distribution over a larger batch of cells."""
        log_mean = self.log_mean.expand(torch.Size(batch_shape) + self.event_shape)
        return NegativeBinomial(log_mean, self.log_dispersion, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Sum the genes' log-densities; shape (...)."""
        if self._validate_args:
            self._validate_sample(value)
        return _cell_log_prob(value, self.log_mean, self.log_dispersion)

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw counts through the Gamma-Poisson mixture; shape ``sample_shape`` + (..., G)."""
        theta = self.log_dispersion.exp().expand_as(self.log_mean)
        # Not self.mean: in a subclass that is the mean of the mixture.
        mu = self.log_mean.exp().clamp_min(1e-30)
        rate = Gamma(theta, theta / mu, validate_args=False)
        return torch.poisson(rate.sample(torch.Size(sample_shape)))

    @property
    def mean(self) -> Tensor:
        """Expected counts μ; shape (..., G)."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """Variance μ + μ²/θ; shape (..., G)."""
        return self.mean + self.mean.square() / self.log_dispersion.exp()


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """Negative binomial counts of which a share is replaced by zeros.

    p(y) = π [y = 0] + (1 − π) NB(y; μ, θ) per gene, with π = sigmoid(gate).

    Parameters
    ----------
    log_mean, log_dispersion
        As for :class:`NegativeBinomial`.
    gate
        Shape (..., G): log-odds of a structural zero.
    """

    arg_constraints = {**NegativeBinomial.arg_constraints, "gate": constraints.real_vector}

    def __init__(
        self,
        log_mean: Tensor,
        log_dispersion: Tensor,
        gate: Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.gate = gate
        super().__init__(log_mean, log_dispersion, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> ZeroInflatedNegativeBinomial:
        """Return the distribution over a larger batch of cells."""
        shape = torch.Size(batch_shape) + self.event_shape
        return ZeroInflatedNegativeBinomial(
            self.log_mean.expand(shape),
            self.log_dispersion,
            self.gate.expand(shape),
            validate_args=False,
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Sum the genes' log-densities; shape (...)."""
        if self._validate_args:
            self._validate_sample(value)
        return _cell_log_prob(value, self.log_mean, self.log_dispersion, self.gate)

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw counts; shape ``sample_shape`` + (..., G)."""
        counts = super().sample(sample_shape)
        return counts * torch.bernoulli(torch.sigmoid(-self.gate).expand_as(counts))

    @property
    def mean(self) -> Tensor:
        """Expected counts (1 − π) μ; shape (..., G)."""
        return torch.sigmoid(-self.gate) * self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """Variance (1 − π)(μ + μ²/θ) + π (1 − π) μ²; shape (..., G)."""
        keep, mu = torch.sigmoid(-self.gate), self.log_mean.exp()
        return keep * (mu + mu.square() / self.log_dispersion.exp()) + keep * (1 - keep) * mu**2


class Poisson(TorchDistribution):
    """Poisson counts of a cell's genes, by mean.

    log p(y) = y log μ − μ − lgamma(y+1), whose last term is nothing where y is 0 or 1.

    Parameters
    ----------
    log_mean
        Shape (..., G): log μ. The last axis is the event.
    """

    arg_constraints = {"log_mean": constraints.real_vector}
    support = constraints.independent(constraints.nonnegative_integer, 1)
    has_rsample = False

    def __init__(self, log_mean: Tensor, *, validate_args: bool | None = None) -> None:
        self.log_mean = log_mean
        super().__init__(log_mean.shape[:-1], log_mean.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> Poisson:
        """Return the distribution over a larger batch of cells."""
        log_mean = self.log_mean.expand(torch.Size(batch_shape) + self.event_shape)
        return Poisson(log_mean, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Sum the genes' log-densities; shape (...)."""
        if self._validate_args:
            self._validate_sample(value)
        return (value * self.log_mean - self.log_mean.exp()).sum(-1) - _log_factorials(value)

    @torch.no_grad()
    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Draw counts; shape ``sample_shape`` + (..., G)."""
        shape = torch.Size(sample_shape) + self.log_mean.shape
        return torch.poisson(self.log_mean.exp().expand(shape))

    @property
    def mean(self) -> Tensor:
        """Expected counts μ; shape (..., G)."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """Variance μ; shape (..., G)."""
        return self.mean


def _log_factorials(y: Tensor) -> Tensor:
    if y.device.type != "cpu":
        return torch.lgamma(y + 1).sum(-1)
    flat = y.reshape(-1, y.shape[-1])
    cell, gene = (flat > 1).nonzero(as_tuple=True)
    terms = torch.lgamma(_pick(flat, cell * y.shape[-1] + gene) + 1)
    return flat.new_zeros(len(flat)).index_add_(0, cell, terms).view(y.shape[:-1])
