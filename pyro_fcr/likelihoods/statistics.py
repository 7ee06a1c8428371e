"""What networks are told of the training data before they see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from pyro_fcr.nonzeros import nonzeros

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
    sums: Any = 0.0
    for batch in batches:
        n += len(batch)
        found = likelihood.sparse_features(batch)
        if found is None:
            features, share = likelihood.features(batch), batch.counts / batch.library[:, None]
            values = torch.stack([features.double(), features.double().square(), share.double()])
            sums = sums + values.sum(1)
        else:
            share = nonzeros(batch.counts).value / batch.library.index_select(0, found.row)
            features = found.value.double()
            values = torch.stack([features, features.square(), share.double()])
            empty = values.new_zeros(3, found.n_columns)
            sums = sums + empty.index_add_(1, found.column, values)
    total, squares, rate = sums
    mean = total / n
    scale = (squares / n - mean.square()).clamp_min(0).sqrt().clamp_min(0.1)
    return GeneStatistics(mean.float(), scale.float(), (rate / n).float())
