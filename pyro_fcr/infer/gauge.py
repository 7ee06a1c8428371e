"""Fixing the gauge of a block: the axes in which its components are independent everywhere.

Within a block an encoder can settle on rotated axes: the ELBO is nearly flat along the rotation
and a mean-field posterior makes the wrong axes a local optimum. Yet a block whose prior is a
diagonal Gaussian with other variances in other conditions has one set of axes in which *all*
conditions' covariances are diagonal, up to order and scale (the second-order part of the
identifiability of conditional priors, Khemakhem et al. 2020; Mao et al. 2024). It is found
directly, by joint diagonalisation, and absorbed into encoder, decoder and prior, after which
training goes on.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pyro_fcr.data import Batch

__all__ = [
    "SETTLED",
    "TURNS",
    "align",
    "carried",
    "condition_moments",
    "joint_diagonaliser",
    "settle",
]

TURNS = (0.4, 0.8)
"""When a block is turned onto its prior's own axes, as shares of the time of alignment: once the
conditions have parted, and again when the network has settled on the first axes."""

SETTLED = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""When the globals' posteriors are settled, as fractions of the steps; also after the last."""

log = logging.getLogger(__name__)


def condition_moments(
    mean_nd: Tensor, variance_nd: Tensor, condition_n: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the moments of the aggregate posterior in every condition that has enough cells.

    Parameters
    ----------
    mean_nd, variance_nd
        Shape (N, d): posterior means and variances.
    condition_n
        Shape (N,), int64: each cell's condition.

    Returns
    -------
    tuple of Tensor
        Condition codes (C,), numbers of cells (C,), means (C, d) and covariances (C, d, d) in
        float64, of the conditions with at least 2d + 1 cells.
    """
    mean, variance = mean_nd.double(), variance_nd.double()
    codes, index, counts = condition_n.unique(return_inverse=True, return_counts=True)
    n, d = len(codes), mean.shape[1]
    size = counts.double()
    centre = mean.new_zeros(n, d).index_add_(0, index, mean) / size[:, None]
    residual = mean - centre[index]
    products = residual[:, :, None] * residual[:, None, :]
    covariance = mean.new_zeros(n, d, d).index_add_(0, index, products) / size[:, None, None]
    spread = mean.new_zeros(n, d).index_add_(0, index, variance) / size[:, None]
    enough = counts > 2 * d
    covariance = covariance + torch.diag_embed(spread)
    return codes[enough], size[enough], centre[enough], covariance[enough]


def joint_diagonaliser(covariance_cdd: Tensor, weight_c: Tensor) -> Tensor:
    r"""Return the matrix that makes all covariances as diagonal as one matrix can.

    It minimises Pham's criterion, twice the Gaussian likelihood ratio against diagonality,

    .. math:: \sum_c w_c \left[\log\det\operatorname{diag}(A S_c A^\top)
              - \log\det(A S_c A^\top)\right],

    which is zero when every :math:`A S_c A^\top` is diagonal (Pham 2001). Rows are scaled so
    that the pooled variance of each component is what it was on average.

    Parameters
    ----------
    covariance_cdd
        Shape (C, d, d): positive definite.
    weight_c
        Shape (C,): numbers of cells.

    Returns
    -------
    Tensor
        Shape (d, d), float64. Where there is nothing to choose, it whitens the pooled covariance.
    """
    covariance = covariance_cdd.double()
    weight = (weight_c / weight_c.sum()).double()
    d = covariance.shape[-1]
    pooled = (weight[:, None, None] * covariance).sum(0)
    # Whitened first: the criterion does not change, the search becomes well scaled.
    whitener = torch.linalg.inv(torch.linalg.cholesky(pooled))
    white = whitener @ covariance @ whitener.T
    turn = torch.eye(d, dtype=torch.float64).requires_grad_(True)
    search = torch.optim.LBFGS(
        [turn],
        max_iter=500,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    @torch.no_grad()
    def criterion() -> Tensor:
        projected = turn @ white
        spread = (projected * turn).sum(-1)
        share = (weight[:, None] / spread)[..., None]
        turn.grad = 2 * (share * projected).sum(0) - 2 * torch.linalg.inv(turn).T
        return (weight @ spread.log()).sum() - 2 * torch.linalg.slogdet(turn).logabsdet

    search.step(criterion)
    found = turn.detach() @ whitener
    scale = torch.diagonal(found @ pooled @ found.T).sqrt()
    return found / scale[:, None] * torch.diagonal(pooled).mean().sqrt()


def align(
    name: str,
    *,
    prior: Any,
    encoder: Any,
    decoder: Any,
    columns: slice,
    moments: tuple[Tensor, Tensor],
    condition: Tensor,
    batch: Callable[[Tensor], Batch],
    device: torch.device,
    readers: Iterable[Any] = (),
) -> bool:
    """Turn a block onto the axes its prior can tell apart, in encoder, decoder and prior alike.

    Parameters
    ----------
    name
        The block.
    prior
        Its prior; needs ``refit(batch, loc, scale)`` or ``settle(batch, size, loc, variance)``.
        Its own ``axes(batch, size, loc, covariance)`` finds the matrix to turn by; without it
        the jointly diagonal axes are taken.
    encoder
        The guide of the blocks; needs ``turn(name, matrix, variance)``.
    decoder
        Needs ``turn(columns, inverse)``.
    columns
        The block's columns among the decoder's latents.
    moments
        Posterior means and variances of the training cells, each of shape (N, d), on the CPU.
    condition
        Shape (N,), int64, on the CPU: each cell's condition.
    batch
        Gives the cells at some positions as a batch: one cell stands for its condition.
    device
        Where the parts live. The axes are found on the CPU, in float64.
    readers
        Penalties and heads; ``turn(name, inverse)`` of each is called.

    Returns
    -------
    bool
        Whether it was done: parts without these methods keep the gauge they found.
    """
    adapts = hasattr(prior, "refit") or hasattr(prior, "settle")
    if not (adapts and hasattr(encoder, "turn") and hasattr(decoder, "turn")):
        log.info("%s: its prior, guide or decoder cannot be turned; the gauge is left", name)
        return False
    codes, size, centre, covariance = condition_moments(*moments, condition)
    if len(codes) < 2:
        log.info("%s: fewer than two conditions have enough cells; the gauge is left", name)
        return False
    first = torch.stack([(condition == code).nonzero()[0, 0] for code in codes])
    if hasattr(prior, "axes"):
        matrix = prior.axes(batch(first), size, centre, covariance)
    else:
        matrix = joint_diagonaliser(covariance, size)
    inverse = torch.linalg.inv(matrix)
    if not (torch.isfinite(matrix).all() and torch.isfinite(inverse).all()):
        log.info("%s: no finite axes; the gauge is left", name)
        return False
    encoder.turn(name, matrix.float().to(device), moments[1].mean(0).float().to(device))
    decoder.turn(columns, inverse.float().to(device))
    for reader in readers:
        reader.turn(name, inverse.float().to(device))
    if hasattr(prior, "settle"):
        turned = moments[0].double() @ matrix.T, moments[1].double() @ matrix.square().T
        settle(prior, moments=turned, condition=condition, batch=batch, dense=True)
    else:
        variance = torch.diagonal(matrix @ covariance @ matrix.T, dim1=1, dim2=2)
        prior.refit(batch(first).to(device), centre @ matrix.T, variance.sqrt())
    return True


def carried(prior: Any, condition: Tensor, batch: Callable[[Tensor], Batch]) -> Tensor:
    """Return what a decoder adds to each cell's latents by a prior's posterior mean.

    Parameters
    ----------
    prior
        Needs ``expected(batch)``.
    condition, batch
        As for :func:`align`.

    Returns
    -------
    Tensor
        Shape (N, d).
    """
    codes, index = condition.unique(return_inverse=True)
    first = torch.stack([(condition == code).nonzero()[0, 0] for code in codes])
    return prior.expected(batch(first))[index]


def settle(
    prior: Any,
    *,
    moments: tuple[Tensor, Tensor],
    condition: Tensor,
    batch: Callable[[Tensor], Batch],
    **options: Any,
) -> None:
    """Set the posterior of a prior's globals to its optimum given the cells' posteriors.

    Parameters
    ----------
    prior
        Needs ``settle(batch, size, loc, variance)``.
    moments, condition, batch
        As for :func:`align`.
    **options
        For the prior.
    """
    mean, variance = (values.double() for values in moments)
    codes, index, counts = condition.unique(return_inverse=True, return_counts=True)
    size = counts.double()
    centre = mean.new_zeros(len(codes), mean.shape[1]).index_add_(0, index, mean) / size[:, None]
    first = torch.stack([(condition == code).nonzero()[0, 0] for code in codes])
    prior.settle(batch(first), size, centre, variance.mean(0), **options)
