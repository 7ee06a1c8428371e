"""An energy-based conditional prior whose components depend on one another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints, kl_divergence, register_kl
from torch.distributions.independent import Independent

from pyro_fcr.nn import ConditionTable
from pyro_fcr.priors.base import Prior
from pyro_fcr.priors.gaussian import bounded_exp

if TYPE_CHECKING:
    from pyro_fcr.data import Batch, Design
    from pyro_fcr.nn import Block

__all__ = ["NonFactorised", "Tilted"]

PROPOSALS = 64
"""Draws from the Gaussian part among which a draw of the tilted density is chosen."""


class NonFactorised(Prior):
    r"""An exponential family with learned, non-factorised statistics, fitted by score matching.

    .. math:: \log p(z \mid d) = \langle T(z), \lambda(d) \rangle
              + \langle (z, z^2), \eta(d) \rangle - \log Z(d)

    with a network T and tables λ and η over the conditions d (the prior of NFinVAE: Aliee et al.
    2023, arXiv 2307.00558; its identifiability is that of non-factorised priors, Lu et al., ICLR
    2022). Z is unknown, so likelihood cannot fit T, λ and η. They learn from score matching alone
    (Hyvärinen 2005), on posterior draws held fixed; the encoders learn from the log-density with
    T, λ and η held fixed. Neither gradient reaches the other side.

    What keeps it stable:

    - η is that of a Gaussian with mean m(d) and bounded scale s(d): the quadratic term confines z,
      so the density is normalisable for any T;
    - T is bounded by tanh and λ so that :math:`|\langle T, \lambda \rangle| \le` ``bound``: with
      the Gaussian part normalised, the log-density is within ``bound`` nats of a normalised one;
    - each direction's score is weighted by s², held fixed: the criterion is then without unit and
      its minimum the same;
    - λ starts at zero, where the prior is a Gaussian, and ``curvature`` weighs the squared second
      derivatives of ⟨T, λ⟩, which score matching rewards for sharp peaks between the draws.

    Draws choose one of 64 draws of the Gaussian part with weight exp⟨T, λ⟩ (importance
    resampling): its weights differ by at most exp(2 · ``bound``).

    Parameters
    ----------
    features
        Number of statistics in T.
    width
        Hidden width of T.
    bound
        Largest deviation from the Gaussian part, in nats.
    curvature
        Weight of the squared second derivatives.
    """

    normalised: ClassVar[bool] = False

    def __init__(
        self, features: int = 16, width: int = 64, bound: float = 4.0, curvature: float = 0.1
    ) -> None:
        super().__init__()
        self.features, self.width = features, width
        self.bound, self.curvature = bound, curvature

    def bind(self, block: Block, design: Design) -> None:
        """Make the network and the tables."""
        spread = 0.5 if len(block.parents) == 1 else 0.3
        start = torch.cat([torch.full((block.size,), spread), torch.full((block.size,), 0.05)])
        self.gaussian = ConditionTable(design, block.parents, start)
        self.tilt = ConditionTable(design, block.parents, torch.zeros(self.features))
        self.statistics = Statistics(block.size, self.features, self.width)

    def forward(self, batch: Batch) -> TorchDistribution:
        """Return the density with its parameters held fixed; batch (B,), event (d,).

        Its ``log_prob`` is unnormalised, within ``bound`` nats.
        """
        with torch.no_grad():
            loc, scale = self._moments(batch)
            weight = self._weight(batch)
        return Tilted(dist.Normal(loc, scale).to_event(1), self.statistics, weight)

    def own_loss(self, z: Tensor, batch: Batch) -> Tensor:
        r"""Return the score-matching loss, shape (B,), without unit.

        .. math:: \sum_j s_j^2 \left[\partial_j^2 \log p + \tfrac12 (\partial_j \log p)^2\right]
                  + \kappa \sum_j \left(s_j^2\, \partial_j^2 \langle T, \lambda \rangle\right)^2

        with :math:`s_j^2` the Gaussian part's variances, held fixed, and κ the ``curvature``.

        Parameters
        ----------
        z
            Shape (B, d): posterior draws.
        batch
            B cells.
        """
        loc, scale = self._moments(batch)
        first, second = self.statistics.derivatives(z.detach(), self._weight(batch))
        precision, unit = scale.pow(-2), scale.detach().square()
        score = first - (z.detach() - loc) * precision
        matching = unit * (second - precision + 0.5 * score.square())
        return (matching + self.curvature * (unit * second).square()).sum(-1)

    def _moments(self, batch: Batch) -> tuple[Tensor, Tensor]:
        loc, raw = self.gaussian(batch).chunk(2, dim=-1)
        return loc, bounded_exp(raw)

    def _weight(self, batch: Batch) -> Tensor:
        return self.bound / self.features * torch.tanh(self.tilt(batch))


class Statistics(nn.Module):
    """T(z) = tanh(V tanh(W z + b) + c), with its first two derivatives in closed form.

    Parameters
    ----------
    size
        d, latent dimensions.
    features
        Number of statistics, m.
    width
        Hidden width.
    """

    def __init__(self, size: int, features: int, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(size, width), nn.Linear(width, features)

    def forward(self, z: Tensor) -> Tensor:
        """Return T, shape (..., m), for z of shape (..., d); its parameters are held fixed."""
        hidden = torch.tanh(_fixed(self.inner, z))
        return torch.tanh(_fixed(self.outer, hidden))

    def derivatives(self, z: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return ∂_j and ∂²_j of ⟨T(z), weight⟩, each of shape (B, d).

        Parameters
        ----------
        z
            Shape (B, d).
        weight
            Shape (B, m).
        """
        hidden = torch.tanh(self.inner(z))
        value = torch.tanh(self.outer(hidden))
        slope = (1 - hidden.square())[:, :, None] * self.inner.weight
        bend = (-2 * hidden * (1 - hidden.square()))[:, :, None] * self.inner.weight.square()
        slope, bend = self.outer.weight @ slope, self.outer.weight @ bend
        # The chain rule through the outer tanh; slope and bend have shape (B, m, d).
        steep = (1 - value.square())[:, :, None]
        bend = steep * bend - 2 * (value[:, :, None] * steep) * slope.square()
        return _weighted(weight, steep * slope), _weighted(weight, bend)


class Tilted(TorchDistribution):
    """N(z; m, s²) · exp⟨T(z), λ⟩, unnormalised.

    Parameters
    ----------
    base
        The Gaussian part: batch shape (B,), event shape (d,).
    statistics
        T, bounded by one.
    weight
        λ, shape (B, m).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = False

    def __init__(
        self, base: dist.TorchDistribution, statistics: Statistics, weight: Tensor
    ) -> None:
        self.base, self.statistics, self.weight = base, statistics, weight
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Tilted:
        """Return the same density for more cells."""
        shape = torch.Size(batch_shape)
        weight = self.weight.expand(*shape, self.weight.shape[-1])
        return Tilted(self.base.expand(shape), self.statistics, weight)

    def tilt(self, z: Tensor) -> Tensor:
        """Return ⟨T(z), λ⟩, shape (...)."""
        return (self.statistics(z) * self.weight).sum(-1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return the log-density up to log Z, which is at most Σ|λ| in size."""
        return self.base.log_prob(z) + self.tilt(z)

    def _proposals(self) -> tuple[Tensor, Tensor]:
        drawn = self.base.sample((PROPOSALS,))
        return drawn, torch.softmax(self.tilt(drawn), dim=0)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return draws by importance resampling from the Gaussian part."""
        shape, batch = torch.Size(sample_shape), self.batch_shape
        out = []
        for _ in range(shape.numel()):
            drawn, weight = self._proposals()
            chosen = torch.multinomial(weight.flatten(1).T, 1).T.reshape(1, *batch, 1)
            out.append(drawn.gather(0, chosen.expand(1, *drawn.shape[1:]))[0])
        return torch.stack(out).reshape(shape + batch + self.event_shape)

    @property
    def mean(self) -> Tensor:
        """The mean, by importance sampling."""
        drawn, weight = self._proposals()
        return (weight[..., None] * drawn).sum(0)

    @property
    def variance(self) -> Tensor:
        """The variance, by importance sampling."""
        drawn, weight = self._proposals()
        mean = (weight[..., None] * drawn).sum(0)
        return (weight[..., None] * (drawn - mean).square()).sum(0)


def _fixed(layer: nn.Linear, z: Tensor) -> Tensor:
    return nn.functional.linear(z, layer.weight.detach(), layer.bias.detach())


def _weighted(weight: Tensor, values: Tensor) -> Tensor:
    return (weight[:, None] @ values).squeeze(1)


@register_kl(Independent, Tilted)
def _kl(q: Any, p: Tilted) -> Tensor:
    # The Gaussian part analytically; only the tilt at a draw.
    return kl_divergence(q, p.base) - p.tilt(q.rsample())
