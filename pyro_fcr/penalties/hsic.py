"""Conditional HSIC: a label must not be readable from a block's posterior means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch.autograd.function import once_differentiable

from pyro_fcr.penalties.base import Penalty, find_block, find_label, find_told

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from pyro_fcr.data import Batch, Design
    from pyro_fcr.nn import Block

__all__ = ["ConditionalHSIC"]

RIDGE = 0.05
"""Shrinkage of the within-condition correlation before whitening: small batches are noisy."""

CELLS = 512
"""Cells compared pairwise at a time: the cost stays linear in the batch."""

LEAST_RUN = 128
"""Cells whose pairs are at least taken together: fewer would cost more calls than pairs."""

NONLINEAR_SHARE = 4.0
"""Weight of the Gaussian kernels beside the linear one, which is unbounded."""


class ConditionalHSIC(Penalty):
    r"""block ⊥ label | given, by the Hilbert-Schmidt independence criterion within strata.

    For cells i, j of the same stratum of ``given``,

    .. math:: \frac1B \sum_s \frac1{n_s} \sum_{i \ne j \in s} k(w_i, w_j)\,
              \left[l(a_i, a_j) - \bar l_s\right],

    with w the block's posterior means, whitened by their pooled covariance within condition
    (so that a shift too small for the decoder to notice weighs as much as a classifier would
    make of it), k a linear kernel (Hotelling's statistic) and Gaussian kernels of several
    widths, and l the chi-square kernel of the label, centred in its stratum, with
    :math:`\bar l_s` its mean over pairs. The criterion is zero on average when labels are
    shuffled within strata; a negative value is a match beyond chance and is not rewarded
    (Gretton et al. 2008; conditioning on a discrete variable is exact by stratification).

    It reads posterior *means*, since those are what a user analyses and what a classifier would
    be trained on; draws hide small shifts under posterior noise.

    Parameters
    ----------
    block
        The latent block.
    label
        What must not be readable: ``"treatment"``, ``"covariates"`` (jointly), ``"batch"``, or
        one covariate by its column's name; several are taken jointly.
    given
        The label within whose strata it must not, or several, jointly. Strata of a handful of
        cells per batch tell little: with several covariates take one at a time.
    """

    reads: ClassVar[Literal["draw", "mean", "posterior"]] = "mean"

    def __init__(
        self, block: str, label: str | Sequence[str], *, given: str | Sequence[str]
    ) -> None:
        super().__init__()
        self.block = block
        self.label = label if isinstance(label, str) else tuple(label)
        self.given = given if isinstance(given, str) else tuple(given)

    def bind(self, blocks: Sequence[Block], design: Design) -> None:
        """Learn the numbers of groups."""
        where = type(self).__name__
        find_block(self.block, blocks, where=where)
        self._label = find_told(self.label, design, where=where)
        self._given = find_label(self.given, design, where=where)

    def forward(self, z: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the criterion, at least 0; a scalar without unit."""
        label, stratum = self._label.of(batch), self._given.of(batch)
        n_parts = -(-len(batch) // CELLS)
        split = (part.tensor_split(n_parts) for part in (z[self.block], label, stratum))
        parts = [self._criterion(*part) for part in zip(*split, strict=True)]
        linear, gaussian = torch.stack(parts).mean(0).clamp_min(0.0)
        return linear + NONLINEAR_SHARE * gaussian

    def _criterion(self, values: Tensor, label: Tensor, stratum: Tensor) -> Tensor:
        # One group more than training saw: where a cell of new data has a label it did not.
        n_label, n_given = self._label.n_groups + 1, self._given.n_groups + 1
        stratum, order = (stratum % n_given).sort(stable=True)
        values, group = values[order], stratum * n_label + label[order] % n_label
        size, sums = _sums(group, values, n_given * n_label)
        by_stratum = size.view(n_given, n_label)
        sizes, labels = by_stratum.sum(1).clamp_min(1.0), (by_stratum > 0).sum(1)
        centre = sums.view(n_given, n_label, -1).sum(1) / sizes[:, None]
        residual = values - (sums / size.clamp_min(1.0)[:, None])[group]
        # Each group's mean costs a degree of freedom: groups of one tell nothing of the spread.
        freedom = len(values) - (size > 0).sum()
        whitened = _whiten(values - centre[stratum], residual, freedom)
        enough = freedom >= 2 * values.shape[1]
        # The chi-square kernel of two cells of a stratum is 1 / share − 1 where they have one
        # label, else −1. What a pair scores on average when labels are shuffled within the stratum
        # is taken off: otherwise the criterion would be biased downwards, and the penalty would
        # allow that much dependence.
        expected = (1 - labels) / (sizes - 1).clamp_min(1.0)
        constant = (1 + expected) / sizes / len(values)
        alike = 1 / size.clamp_min(1.0) / len(values)

        def pairs(run: slice) -> Tensor:
            own, within = group[run], stratum[run]
            weights = _equal(own, own, values).mul_(alike[own])
            weights.addcmul_(_equal(within, within, values), constant[within], value=-1.0)
            return weights.fill_diagonal_(0.0)

        return enough * _PairSums.apply(whitened, pairs, _runs(by_stratum.sum(1)))


def _runs(sizes: Tensor) -> list[slice]:
    """Return cells sorted by stratum as runs of whole strata: no pair reaches beyond its run."""
    # Elsewhere the sizes would cost a synchronisation.
    if sizes.device.type != "cpu":
        return [slice(None)]
    runs, start, end = [], 0, 0
    for size in sizes.int().tolist():
        end += size
        if end - start >= LEAST_RUN:
            runs.append(slice(start, end))
            start = end
    return [*runs, slice(start, end)] if end > start else runs


def _sums(group: Tensor, values: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the groups' numbers of cells (n,), and their values' sums (n, d)."""
    size = values.new_zeros(n).index_add_(0, group, values.new_ones(len(group)))
    return size, values.new_zeros(n, values.shape[1]).index_add(0, group, values)


def _equal(left: Tensor, right: Tensor, like: Tensor) -> Tensor:
    # As numbers throughout: several times faster than by way of booleans.
    left, right = left.to(like.dtype), right.to(like.dtype)
    return torch.eq(left[:, None], right, out=like.new_empty(len(left), len(right)))


class _PairSums(torch.autograd.Function):
    """Sums over pairs, weighted by p: of products, and of Gaussian kernels of the distances.

    The weights are symmetric and zero beyond a run. The kernels have squared widths 4d, 2d and d
    (a whitened pair is 2d apart on average): each is the square of the one before. The gradients
    of both are made while their parts are at hand, since what autograd keeps and repeats of these
    matrices of pairs would be most of a small step's time.
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, pairs: Callable[[slice], Tensor], runs: Sequence[slice]
    ) -> Tensor:
        d = values.shape[1]
        squares, ones = values.square().sum(1, keepdim=True), values.new_ones(len(values), 1)
        # Minus a pair's squared distance over 4d, in one product.
        left = torch.cat([2.0 * values, -squares, -ones], 1).div_(4.0 * d)
        right, padded = torch.cat([values, ones, squares], 1), torch.cat([values, ones], 1)
        by_product, by_distance = torch.empty_like(values), torch.empty_like(padded)
        gaussian = values.new_zeros(())
        for run in runs:
            weights = pairs(run)
            # Rounding may make a distance negative.
            wide = (left[run] @ right[run].T).clamp_max_(0.0).exp_()
            middle = wide.square()
            narrow = middle.square()
            weighted = wide.mul_(weights)
            gaussian += weighted.sum() + torch.dot(weights.view(-1), middle.view(-1))
            gaussian += torch.dot(weights.view(-1), narrow.view(-1))
            # d kernels / d distance, times −12 d.
            slope = weighted.addcmul_(weights, middle, value=2.0)
            slope.addcmul_(weights, narrow, value=4.0)
            by_distance[run] = (padded[run].T @ slope).T
            by_product[run] = (values[run].T @ weights).T
        slope = by_distance[:, :d] - by_distance[:, d:] * values
        ctx.save_for_backward(2.0 * by_product, slope.div_(3.0 * d))
        return torch.stack([(by_product * values).sum(), gaussian / 3.0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        by_product, by_distance = ctx.saved_tensors
        return grad[0] * by_product + grad[1] * by_distance, None, None


def _whiten(values: Tensor, residual: Tensor, freedom: Tensor) -> Tensor:
    """Return values whitened by the covariance of their residuals.

    Parameters
    ----------
    values, residual
        Shape (B, d).
    freedom
        Scalar: the residuals' degrees of freedom.
    """
    residual = residual / freedom.clamp_min(1).sqrt()
    scale = residual.square().sum(0).add(1e-12).sqrt()
    standard = residual / scale
    correlation = standard.T @ standard
    eye = torch.eye(values.shape[1], dtype=values.dtype, device=values.device)
    factor, _ = torch.linalg.cholesky_ex((1 - RIDGE) * correlation + RIDGE * eye)
    return torch.linalg.solve_triangular(factor, (values / scale).T, upper=False).T
