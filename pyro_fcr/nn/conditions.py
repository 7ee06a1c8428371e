"""Embeddings of what a cell is and of what was done to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pyro_fcr.data import Batch

__all__ = ["ConditionEmbedding", "one_hot_covariates"]


def one_hot_covariates(covariates: Tensor, n_levels: Sequence[int]) -> Tensor:
    """Return the concatenated one-hot rows of all covariates.

    Parameters
    ----------
    covariates
        Shape (B, K): level codes.
    n_levels
        Number of levels of each of the K covariates.

    Returns
    -------
    Tensor
        Shape (B, sum of ``n_levels``), float32.
    """
    if not n_levels:
        return covariates.new_zeros((len(covariates), 0), dtype=torch.float32)
    codes = (F.one_hot(covariates[:, k], n) for k, n in enumerate(n_levels))
    return torch.cat(tuple(codes), dim=-1).float()


class ConditionEmbedding(nn.Module):
    """Features of a condition: of its treatments, of its covariates, or of both and their product.

    A treatment's embedding is linear in its dose-weighted multi-hot row, so that combinations
    add and the control is the zero vector; several covariates pass through a hidden layer, so
    that they condition jointly. Where both are read, the element-wise product of the two
    embeddings carries the interaction (Mao et al. 2024, the prior of z_tx).

    Parameters
    ----------
    parents
        Which of ``"treatment"``, ``"covariates"``, ``"batch"`` to read.
    n_treatments
        Number of treatment columns, T.
    n_levels
        Number of levels of each covariate.
    n_batches
        Number of technical batches.
    size
        Width of each embedding.
    """

    def __init__(
        self,
        parents: Iterable[str],
        *,
        n_treatments: int,
        n_levels: Sequence[int],
        n_batches: int = 1,
        size: int = 32,
    ) -> None:
        super().__init__()
        self.parents = tuple(sorted(parents))
        self.n_levels, self.n_batches = tuple(n_levels), n_batches
        if "treatment" in self.parents:
            self.treatment = nn.Linear(n_treatments, size, bias=False)
            nn.init.normal_(self.treatment.weight)
        if "covariates" in self.parents:
            self.covariates: nn.Module = nn.Linear(sum(n_levels), size, bias=False)
            nn.init.normal_(self.covariates.weight)
            if len(n_levels) > 1:
                self.covariates = nn.Sequential(self.covariates, nn.GELU(), nn.Linear(size, size))
        if "batch" in self.parents:
            self.batch = nn.Embedding(n_batches, size)
        self.interacts = {"treatment", "covariates"} <= set(self.parents)
        self.n_features = size * (len(self.parents) + self.interacts)

    def forward(self, batch: Batch) -> Tensor:
        """Return the features of each cell's condition; shape (B, ``n_features``)."""
        parts: list[Tensor] = []
        if "batch" in self.parents:
            parts.append(self.batch(batch.batch))
        if "covariates" in self.parents:
            parts.append(self.covariates(one_hot_covariates(batch.covariates, self.n_levels)))
        if "treatment" in self.parents:
            parts.append(self.treatment(batch.treatment))
        if self.interacts:
            parts.append(parts[-1] * parts[-2])
        return torch.cat(parts, dim=-1)
