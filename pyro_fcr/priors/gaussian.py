"""The conditional Gaussian prior of identifiable VAEs and of FCR."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyro.distributions as dist
import torch
from torch import nn

from pyro_fcr.nn import ConditionEmbedding
from pyro_fcr.priors.base import Block, Prior

if TYPE_CHECKING:
    from pyro_fcr.data import Batch, Design

__all__ = ["Gaussian", "bounded_exp"]


def bounded_exp(raw: torch.Tensor, bound: float = 3.0) -> torch.Tensor:
    """Return a scale between exp(-bound) and exp(bound), equal to exp(raw) near zero."""
    return torch.exp(bound * torch.tanh(raw / bound))


class Gaussian(Prior):
    """Diagonal Gaussian whose mean and scale are learned functions of the block's parents.

    p(z | condition) = N(m(condition), diag s(condition)²). Both moments vary: with a fixed
    variance the interaction contrasts lose half their rank and with it the identifiability of
    z_tx (Mao et al. 2024, arXiv 2410.22472).

    Parameters
    ----------
    embedding
        Width of the embeddings of treatment and covariates.
    learn_scale
        Whether the scale varies with the condition; otherwise it is 1.
    """

    def __init__(self, embedding: int = 32, learn_scale: bool = True) -> None:
        super().__init__()
        self.embedding, self.learn_scale = embedding, learn_scale

    def bind(self, block: Block, design: Design) -> None:
        """Size the embedding for the design's categories and the head for the block."""
        self.condition = ConditionEmbedding(
            block.parents,
            n_treatments=design.n_treatments,
            n_levels=tuple(design.n_levels.values()),
            n_batches=design.n_batches,
            size=self.embedding,
        )
        self.head = nn.Linear(self.condition.n_features, 2 * block.size)
        nn.init.normal_(self.head.weight, std=0.5 * self.condition.n_features**-0.5)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: Batch) -> dist.TorchDistribution:
        """Return N(m, s²) with batch shape (B,) and event shape (d,)."""
        loc, raw = self.head(self.condition(batch)).chunk(2, dim=-1)
        scale = bounded_exp(raw) if self.learn_scale else torch.ones_like(raw)
        return dist.Normal(loc, scale).to_event(1)
