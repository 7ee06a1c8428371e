"""A linear map of standardised features of which most are zero before they are standardised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

    from pyro_fcr.nonzeros import NonZeros

__all__ = ["SparseFeatures"]

COLUMNS = 96
"""Outputs that are made at a time: a table of so many columns stays in a core's cache."""


class SparseFeatures(NamedTuple):
    """Features (x − mean) / scale of which x is mostly zero; shape (B, G)."""

    x: NonZeros
    mean: Tensor
    scale: Tensor

    def linear(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Return the features times a matrix (G, K), plus a vector (K,); shape (B, K)."""
        return _Linear.apply(weight, bias, *self)


class _Linear(torch.autograd.Function):
    """Σ_g x_g w_g / scale_g over the non-zeros alone, less what the mean is worth to any cell.

    The sums over rows of a table, and those over columns for the gradient, are embedding bags.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor, x: NonZeros, mean: Tensor, scale: Tensor
    ) -> Tensor:
        ctx.x = x
        ctx.save_for_backward(mean, scale)
        constant = bias - (mean / scale) @ weight
        tables = (part / scale[:, None] for part in weight.split(COLUMNS, 1))
        return torch.cat([_bag(x, table) for table in tables], 1).add_(constant)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        mean, scale = ctx.saved_tensors
        by_gene, d_bias = ctx.x.transposed(), grad.sum(0)
        parts = (_bag(by_gene, part.contiguous()) for part in grad.split(COLUMNS, 1))
        d_weight = torch.cat(list(parts), 1).addr_(mean, d_bias, alpha=-1.0).div_(scale[:, None])
        return d_weight, d_bias, None, None, None


def _bag(x: NonZeros, table: Tensor) -> Tensor:
    return F.embedding_bag(
        x.column, table, x.offsets, mode="sum", per_sample_weights=x.value.to(table.dtype),
        include_last_offset=True,
    )  # fmt: skip
