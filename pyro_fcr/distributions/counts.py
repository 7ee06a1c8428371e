"""Count distributions over the genes of a cell, by log-mean and log-dispersion."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Gamma, constraints

from pyro_fcr.distributions.densities import cell_log_prob, log_factorials, shared_log_prob

Shape = torch.Size | list[int] | tuple[int, ...]

__all__ = [
    "NegativeBinomial",
    "Poisson",
    "SharedNegativeBinomial",
    "ZeroInflatedNegativeBinomial",
]


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
        return cell_log_prob(value, self.log_mean, self.log_dispersion)

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


class SharedNegativeBinomial(NegativeBinomial):
    """Negative binomial counts with a library that a softmax shares among the genes.

    log μ = log library + log softmax(logits): the :class:`NegativeBinomial` of that log-mean,
    whose density is evaluated without making it.

    Parameters
    ----------
    logits
        Shape (..., G).
    log_library
        Shape (...): in log molecules.
    log_dispersion
        Shape (G,): log θ per gene, shared by all cells.
    """

    arg_constraints = {
        "logits": constraints.real_vector,
        "log_library": constraints.real,
        "log_dispersion": constraints.real_vector,
    }

    def __init__(
        self,
        logits: Tensor,
        log_library: Tensor,
        log_dispersion: Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.logits, self.log_dispersion = logits, log_dispersion
        self.log_library = log_library.expand(logits.shape[:-1])
        TorchDistribution.__init__(
            self, logits.shape[:-1], logits.shape[-1:], validate_args=validate_args
        )

    @cached_property
    def log_mean(self) -> Tensor:  # type: ignore[override]
        """Log-mean, log μ; shape (..., G)."""
        return self.logits.log_softmax(-1) + self.log_library[..., None]

    def expand(self, batch_shape: Shape, _instance: Any = None) -> SharedNegativeBinomial:
        """Return the distribution over a larger batch of cells."""
        shape = torch.Size(batch_shape)
        return SharedNegativeBinomial(
            self.logits.expand(shape + self.event_shape),
            self.log_library.expand(shape),
            self.log_dispersion,
            validate_args=False,
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Sum the genes' log-densities; shape (...)."""
        if self.logits.device.type != "cpu":
            return super().log_prob(value)
        if self._validate_args:
            self._validate_sample(value)
        return shared_log_prob(value, self.logits, self.log_library, self.log_dispersion)


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
        return cell_log_prob(value, self.log_mean, self.log_dispersion, self.gate)

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
        return (value * self.log_mean - self.log_mean.exp()).sum(-1) - log_factorials(value)

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
