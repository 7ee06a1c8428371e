"""The likelihood of intensities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyro.distributions as dist
import torch
from torch import nn

from pyro_fcr.likelihoods.base import Likelihood

if TYPE_CHECKING:
    from torch import Tensor

    from pyro_fcr.data import Batch

__all__ = ["Normal"]


class Normal(Likelihood):
    """y ~ N(decoded, σ_gene²), for intensities such as mass cytometry or log-ratios."""

    reads_counts = False

    def bind(self, n_genes: int) -> None:
        """Make one log-scale per gene."""
        self.log_scale = nn.Parameter(torch.zeros(n_genes))

    def forward(self, decoded: Tensor, batch: Batch) -> dist.TorchDistribution:
        """Return the intensities' distribution; event shape (G,)."""
        return dist.Normal(decoded.float(), self.log_scale.clamp(-6, 6).exp()).to_event(1)

    def start(self, rate: Tensor) -> Tensor:
        """Return the genes' mean intensities; shape (G,)."""
        return rate

    def features(self, batch: Batch) -> Tensor:
        """Return the intensities as they are; shape (B, G)."""
        return batch.counts
