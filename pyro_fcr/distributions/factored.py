"""A Gaussian by the factor of its covariance, with divergences that Pyro lacks."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, constraints, register_kl

__all__ = ["FactoredNormal"]


class FactoredNormal(TorchDistribution):
    r"""z = m + A L ε with ε ~ N(0, I): a Gaussian with covariance A L Lᵀ Aᵀ.

    Parameters
    ----------
    loc
        Shape (..., d): m.
    scale_tril
        Shape (..., d, d): L, lower triangular with a positive diagonal.
    axes
        Shape (d, d): A, any invertible matrix; the identity if ``None``.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": constraints.real_vector,
        "scale_tril": constraints.lower_cholesky,
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        scale_tril: Tensor,
        axes: Tensor | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale_tril, self.axes = loc, scale_tril, axes
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    @property
    def factor(self) -> Tensor:
        """A L, shape (..., d, d)."""
        return self.scale_tril if self.axes is None else self.axes @ self.scale_tril

    @property
    def mean(self) -> Tensor:
        """Shape (..., d)."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Shape (..., d): the diagonal of the covariance."""
        return self.factor.square().sum(-1)

    @property
    def log_determinant(self) -> Tensor:
        """Logarithm of |det A L|, shape (...)."""
        value = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return value if self.axes is None else value + torch.linalg.slogdet(self.axes).logabsdet

    def over(self, columns: Tensor) -> MultivariateNormal:
        """Return the distribution of some dimensions alone.

        Parameters
        ----------
        columns
            Shape (k,), int64: which.
        """
        rows = self.factor[..., columns, :]
        # Without the check for success, which would wait for the device.
        tril = torch.linalg.cholesky_ex(rows @ rows.mT).L
        return MultivariateNormal(self.loc[..., columns], scale_tril=tril, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> FactoredNormal:
        """Return the distribution with another batch shape."""
        shape = torch.Size(batch_shape) + self.event_shape
        tril = self.scale_tril.expand(shape + self.event_shape)
        return FactoredNormal(self.loc.expand(shape), tril, self.axes, validate_args=False)

    def place(self, noise: Tensor) -> Tensor:
        """Return m + A L ε; shape (..., d) as the noise."""
        return self.loc + (self.factor @ noise[..., None]).squeeze(-1)

    def whiten(self, value: Tensor) -> Tensor:
        """Return the noise ε that gives a value; shape (..., d) as the value."""
        centred = (value - self.loc)[..., None]
        if self.axes is not None:
            # Without the check for success, which would wait for the device.
            centred = torch.linalg.inv_ex(self.axes).inverse @ centred
        return torch.linalg.solve_triangular(self.scale_tril, centred, upper=False).squeeze(-1)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw values of shape (*sample_shape, ..., d)."""
        return self.place(torch.randn_like(self.loc.expand(self._extended_shape(sample_shape))))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density; shape (...)."""
        squares = self.whiten(value).square().sum(-1)
        constant = self.event_shape[0] * math.log(2 * math.pi)
        return -0.5 * (squares + constant) - self.log_determinant


@register_kl(FactoredNormal, Independent)
def _kl_independent(q: FactoredNormal, p: Independent) -> Tensor:
    inner = p.base_dist
    if not isinstance(inner, Normal) or p.reinterpreted_batch_ndims != 1:
        raise NotImplementedError
    scaled = (q.variance + (q.loc - inner.loc).square()) / inner.scale.square()
    return (0.5 * (scaled - 1) + inner.scale.log()).sum(-1) - q.log_determinant


@register_kl(FactoredNormal, MultivariateNormal)
def _kl_multivariate(q: FactoredNormal, p: MultivariateNormal) -> Tensor:
    columns = torch.cat([q.factor, (q.loc - p.loc)[..., None]], dim=-1)
    whitened = torch.linalg.solve_triangular(p.scale_tril, columns, upper=False)
    scale = p.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    squares = whitened.square().sum((-2, -1))
    return 0.5 * (squares - q.event_shape[0]) + scale - q.log_determinant
