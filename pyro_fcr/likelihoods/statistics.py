"""What networks are told of the training data before they see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from pyro_fcr.data import Batch
    from pyro_fcr.likelihoods.base import Likelihood

__all__ = ["GeneStatistics", "gene_statistics"]


class GeneStatistics(NamedTuple):
    """Per-gene moments over the training cells, each of shape (G,)."""

    mean: Tensor
    """Mean of what the encoders read."""

    scale: Tensor
    """Its standard deviation, at least 0.1."""

    rate: Tensor
    """Mean share of a cell's library (mean intensity where the library is 1)."""


@torch.no_grad()
def gene_statistics(likelihood: Likelihood, batches: Iterable[Batch]) -> GeneStatistics:
    """Accumulate the moments over batches of cells.

    Parameters
    ----------
    likelihood
        Says what encoders read of a cell.
    batches
        The training cells, each once.
    """
    n = 0
    total = squares = rate = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        features = likelihood.features(batch).double()
        n += len(batch)
        total = total + features.sum(0)
        squares = squares + features.square().sum(0)
        rate = rate + (batch.counts / batch.library[:, None]).double().sum(0)
    mean = total / n
    scale = (squares / n - mean.square()).clamp_min(0).sqrt().clamp_min(0.1)
    return GeneStatistics(mean.float(), scale.float(), (rate / n).float())
