"""Count distributions over the genes of a cell, evaluated where the counts are."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Gamma, constraints
from torch.nn import functional as F

Shape = torch.Size | list[int] | tuple[int, ...]

__all__ = ["NegativeBinomial", "ZeroInflatedNegativeBinomial", "negative_binomial_log_prob"]


class _CellLogProb(torch.autograd.Function):
    """Log-density of each cell's counts, summed over genes, with a closed-form backward.

    With a = log μ − log θ, a gene's density is y (a − softplus a) − θ softplus a plus log-gamma
    terms that vanish where y = 0. Counts are mostly zeros, so everything that y multiplies is
    evaluated at the non-zeros alone, and the dense rest is one softplus and a matrix-vector
    product; nothing of the size of the counts is made that is not needed. On an accelerator
    finding the non-zeros would cost a synchronisation, so there the log-gammas are dense.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, log_mean: Tensor, log_theta: Tensor) -> Tensor:
        theta = log_theta.exp()
        a = log_mean - log_theta
        softplus = F.softplus(a)
        out = -(softplus @ theta)
        cell: Tensor | None = None
        gene: Tensor | None = None
        if y.device.type == "cpu":
            cell, gene = y.nonzero(as_tuple=True)
            y_nz, theta_nz = y[cell, gene], theta[gene]
            part = y_nz * (a[cell, gene] - softplus[cell, gene])
            part += torch.lgamma(y_nz + theta_nz) - torch.lgamma(theta_nz)
            out.index_add_(0, cell, part - torch.lgamma(y_nz + 1))
        else:
            part = y * (a - softplus) + torch.lgamma(y + theta) - torch.lgamma(theta)
            out += (part - torch.lgamma(y + 1)).sum(-1)
        ctx.save_for_backward(y, a, softplus, theta, cell, gene)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor]:
        y, a, softplus, theta, cell, gene = ctx.saved_tensors
        share = torch.sigmoid(a)
        # d/d log μ = y (1 − share) − θ share; d/d log θ = −d/d log μ − θ softplus + θ (ψ − ψ).
        if cell is None:
            digammas = grad @ (torch.digamma(y + theta) - torch.digamma(theta))
            d_mean = (y * (1 - share) - theta * share) * grad[:, None]
        else:
            y_nz, theta_nz, grad_nz = y[cell, gene], theta[gene], grad[cell]
            at_nz = grad_nz * y_nz * (1 - share[cell, gene])
            digammas = torch.zeros_like(theta).index_add_(
                0, gene, grad_nz * (torch.digamma(y_nz + theta_nz) - torch.digamma(theta_nz))
            )
            d_mean = share.mul_(-theta).mul_(grad[:, None])
            d_mean[cell, gene] += at_nz
        d_theta = theta * (digammas - grad @ softplus) - d_mean.sum(0)
        return None, d_mean, d_theta


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
        value, log_mean = torch.broadcast_tensors(value, self.log_mean)
        genes = value.shape[-1]
        by_cell = _CellLogProb.apply(
            value.reshape(-1, genes), log_mean.reshape(-1, genes), self.log_dispersion
        )
        return by_cell.reshape(log_mean.shape[:-1])

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
        count = negative_binomial_log_prob(value, self.log_mean, self.log_dispersion)
        present = F.logsigmoid(-self.gate) + count
        structural = torch.where(value == 0, F.logsigmoid(self.gate), -torch.inf)
        return torch.logaddexp(present, structural).sum(-1)

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
