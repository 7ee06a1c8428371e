"""A Bernoulli whose draws let gradients through."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence, register_kl

__all__ = ["StraightThroughBernoulli"]


class StraightThroughBernoulli(dist.Bernoulli):
    r"""Bernoulli draws with the gradient of their relaxation (straight-through estimator).

    A draw is zero or one, with exactly the Bernoulli's probabilities,

    .. math:: m = \mathbb 1[l + \varepsilon > 0], \qquad
              \tilde m = \operatorname{sigmoid}\bigl((l + \varepsilon) / \tau\bigr), \qquad
              \varepsilon \sim \operatorname{Logistic}(0, 1),

    and its derivative by the logits :math:`l` is that of the concrete relaxation
    :math:`\tilde m` (Maddison et al. 2017, arXiv 1611.00712; Jang et al. 2017, arXiv
    1611.01144; straight-through: Bengio et al. 2013, arXiv 1308.3432). Since the draws are those
    of a Bernoulli, the divergence to a Bernoulli prior is the Bernoullis' own, and registered.

    Parameters
    ----------
    probs, logits
        One of the two, of any shape.
    temperature
        Of the relaxation behind the gradient: lower is less biased and noisier.

    Examples
    --------
    >>> q = StraightThroughBernoulli(logits=torch.zeros(3))
    >>> q.has_rsample, float(kl_divergence(q, dist.Bernoulli(0.5)).abs().max())
    (True, 0.0)
    """

    has_rsample = True

    def __init__(
        self,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        *,
        temperature: float = 0.5,
        validate_args: bool | None = None,
    ) -> None:
        self.temperature = temperature
        super().__init__(probs=probs, logits=logits, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> StraightThroughBernoulli:
        """Return the distribution with another batch shape."""
        new = self._get_checked_instance(StraightThroughBernoulli, _instance)
        new.temperature = self.temperature
        return super().expand(batch_shape, new)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw zeros and ones, shape ``sample_shape`` + batch shape."""
        shape = self._extended_shape(torch.Size(sample_shape))
        eps = torch.finfo(self.logits.dtype).eps
        uniform = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        uniform = uniform.clamp(eps, 1 - eps)
        raised = self.logits + uniform.log() - (-uniform).log1p()
        relaxed = torch.sigmoid(raised / self.temperature)
        return (raised > 0).to(relaxed) + (relaxed - relaxed.detach())

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw as :meth:`rsample` does, without a gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)


@register_kl(StraightThroughBernoulli, Bernoulli)
def _kl_straight_through(q: StraightThroughBernoulli, p: Bernoulli) -> Tensor:
    return kl_divergence(Bernoulli(logits=q.logits), Bernoulli(logits=p.logits))
