"""What a likelihood promises."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch

from pyro_fcr.nn import Part
from pyro_fcr.nonzeros import nonzeros

if TYPE_CHECKING:
    from pyro.distributions import TorchDistribution
    from torch import Tensor

    from pyro_fcr.data import Batch
    from pyro_fcr.nonzeros import NonZeros

__all__ = ["Likelihood", "log_mean_counts"]


class Likelihood(Part):
    """The distribution of a cell's genes given what the decoder made of its latents."""

    channels: ClassVar[int] = 1
    """How many decoder outputs the likelihood reads per gene."""

    reads_counts: ClassVar[bool] = True
    """Whether observations must be non-negative integers."""

    def bind(self, n_genes: int) -> None:
        """Make the parameters that belong to genes; nothing by default."""

    @abstractmethod
    def forward(self, decoded: Tensor, batch: Batch) -> TorchDistribution:
        """Return the distribution of the observations.

        Parameters
        ----------
        decoded
            Shape (..., B, ``channels`` · G): the decoder's output.
        batch
            B cells.

        Returns
        -------
        TorchDistribution
            Batch shape (..., B), event shape (G,).
        """

    def start(self, rate: Tensor) -> Tensor:
        """Return the decoder output that gives every cell the mean profile.

        Parameters
        ----------
        rate
            Shape (G,): the genes' mean share of a cell's library.

        Returns
        -------
        Tensor
            Shape (``channels`` · G,).
        """
        logits = torch.log(rate + 1e-7)
        padding = logits.new_zeros((self.channels - 1) * len(logits))
        return torch.cat([logits - logits.mean(), padding])

    def features(self, batch: Batch) -> Tensor:
        """Return what encoders read of a cell, shape (B, G): log1p of counts per 10⁴ molecules."""
        return torch.log1p(batch.counts * _per_molecule(batch)[:, None])

    def sparse_features(self, batch: Batch) -> NonZeros | None:
        """Return the features at the non-zero counts, if all others are zero; else nothing.

        A subclass with ``features`` of its own has none unless it says which.
        """
        own = type(self).features is not Likelihood.features
        if own or batch.device.type != "cpu" or batch.counts.requires_grad:
            return None
        found = nonzeros(batch.counts)
        per_molecule = _per_molecule(batch).index_select(0, found.row)
        return found.with_values(per_molecule.mul_(found.value).log1p_())


def _per_molecule(batch: Batch) -> Tensor:
    return 1e4 / batch.library.clamp_min(1.0)


def log_mean_counts(decoded: Tensor, batch: Batch) -> Tensor:
    """Return log μ: the library size shared among the genes by a softmax; shape (..., B, G)."""
    return decoded.log_softmax(-1) + batch.library.log()[:, None]
