"""Likelihoods of molecule counts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from pyro_fcr.distributions import Poisson as PoissonCounts
from pyro_fcr.distributions import SharedNegativeBinomial
from pyro_fcr.distributions import ZeroInflatedNegativeBinomial as ZeroInflatedCounts
from pyro_fcr.likelihoods.base import Likelihood, log_mean_counts

if TYPE_CHECKING:
    import pyro.distributions as dist
    from torch import Tensor

    from pyro_fcr.data import Batch

__all__ = ["NegativeBinomial", "Poisson", "ZeroInflatedNegativeBinomial"]

LOG_DISPERSION_RANGE = (-8.0, 12.0)
"""Beyond these, lgamma differences lose their digits in float32."""


class NegativeBinomial(Likelihood):
    """y ~ NB(library · softmax(decoded), θ_gene), with the library size observed.

    Gene-wise log θ is learned, starts at 1 and is kept where float32 can evaluate it.
    """

    def bind(self, n_genes: int) -> None:
        """Make one log-dispersion per gene."""
        self.log_dispersion = nn.Parameter(torch.ones(n_genes))

    def forward(self, decoded: Tensor, batch: Batch) -> dist.TorchDistribution:
        """Return the counts' distribution; event shape (G,)."""
        log_theta = self.log_dispersion.clamp(*LOG_DISPERSION_RANGE)
        return SharedNegativeBinomial(decoded.float(), batch.library.log(), log_theta)


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """The negative binomial with a decoded probability of a structural zero per cell and gene."""

    channels = 2

    def forward(self, decoded: Tensor, batch: Batch) -> dist.TorchDistribution:
        """Return the counts' distribution; event shape (G,)."""
        logits, gate = decoded.float().chunk(2, dim=-1)
        log_theta = self.log_dispersion.clamp(*LOG_DISPERSION_RANGE)
        return ZeroInflatedCounts(log_mean_counts(logits, batch), log_theta, gate - 3.0)


class Poisson(Likelihood):
    """y ~ Poisson(library · softmax(decoded)): no dispersion beyond sampling noise."""

    def forward(self, decoded: Tensor, batch: Batch) -> dist.TorchDistribution:
        """Return the counts' distribution; event shape (G,)."""
        return PoissonCounts(log_mean_counts(decoded.float(), batch))
