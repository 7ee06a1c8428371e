"""Treatment effects drawn from a population: what is rare shrinks to what is common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
from pyro.nn import PyroSample

from pyro_fcr.priors.dose_response import DoseResponse, weigh, weigh_by_level

if TYPE_CHECKING:
    from torch import Tensor

    from pyro_fcr.data import Design

__all__ = ["Hierarchical"]


class Hierarchical(DoseResponse):
    r"""Treatment effects are draws of a population that is learned beside them.

    .. math::
        \beta_k \sim N(\mu, \operatorname{diag} \tau^2),\quad
        \mu \sim N(0, 1),\quad \tau \sim \text{HalfNormal}(1),\qquad
        m(t, x) = m_0 + a_x + \sum_k t_k (\beta_k + \gamma_{kx})

    with interactions :math:`\gamma_{kx} \sim N(0, \tau_\gamma^2)` where the block also reads
    covariates. A treatment with few cells is drawn to the population mean, by
    :math:`\tau^2 / (\tau^2 + s^2/n)` of its own cells' mean for n cells. Globals: ``location``
    μ, ``spread`` τ, ``deviation`` and, with covariates, ``interaction_spread`` and
    ``interaction_deviation``.

    Parameters
    ----------
    centred
        Whether ``deviation`` is the effect itself. By default it is (β − μ)/τ: with few cells
        the posterior then has no funnel. With many cells for every treatment, the centred
        form suits a factorised guide better.
    interaction_scale
        Scale of the half-normal prior of :math:`\tau_\gamma`.
    learn_scale
        Whether the block's scale varies with the condition; otherwise it is 1.
    """

    location: Any
    spread: Any
    deviation: Any
    interaction_spread: Any
    interaction_deviation: Any

    def __init__(
        self,
        centred: bool = False,
        interaction_scale: float = 0.3,
        learn_scale: bool = True,
    ) -> None:
        super().__init__(learn_scale=learn_scale)
        self.centred, self.interaction_scale = centred, interaction_scale

    def bind_response(self, size: int, design: Design, n_levels: int) -> None:
        """Make the population and its members."""
        n = design.n_treatments
        self.location = PyroSample(dist.Normal(0.0, 1.0).expand([size]).to_event(1))
        self.spread = PyroSample(dist.HalfNormal(1.0).expand([size]).to_event(1))
        if self.centred:
            self.deviation = PyroSample(lambda prior: prior.population(n))
        else:
            self.deviation = PyroSample(dist.Normal(0.0, 1.0).expand([n, size]).to_event(2))
        if n_levels:
            scale = dist.HalfNormal(self.interaction_scale)
            self.interaction_spread = PyroSample(scale.expand([size]).to_event(1))
            shape = [n, n_levels, size]
            self.interaction_deviation = PyroSample(
                dist.Normal(0.0, 1.0).expand(shape).to_event(3)
            )

    def population(self, n: int) -> dist.TorchDistribution:
        """Return the distribution of n treatments' effects; event shape (n, d)."""
        loc, scale = self.location.unsqueeze(-2), self.spread.unsqueeze(-2)
        return dist.Normal(loc.expand(*loc.shape[:-2], n, -1), scale).to_event(2)

    def members(self) -> Tensor:
        """Return β; shape (T, d), leading axes of drawn parameters kept."""
        if self.centred:
            return self.deviation
        return self.location.unsqueeze(-2) + self.spread.unsqueeze(-2) * self.deviation

    def response(self, dose: Tensor, levels: Tensor | None) -> Tensor:
        """Return the dose-weighted sum of the effects; shape (B, d)."""
        out = weigh(dose, self.members())
        if levels is not None:
            spread = self.interaction_spread.unsqueeze(-2).unsqueeze(-2)
            out = out + weigh_by_level(dose, levels, spread * self.interaction_deviation)
        return out
