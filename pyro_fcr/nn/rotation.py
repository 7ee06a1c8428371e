"""Rotating a matrix of effects to sparsity."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["sparse_rotation"]

WIDTHS = (1.0, 0.5, 0.25, 0.12, 0.06)
"""Of the criterion, from broad to sharp, in units of a row's length: broad ones have few local
optima, sharp ones know what is zero."""

RESTARTS, ITERATIONS = 32, 60


def sparse_rotation(effect_td: Tensor, noise: float) -> Tensor:
    r"""Return the rotation of the columns in which a matrix has the most entries near zero.

    It minimises :math:`\sum_{tj} \log(1 + (E R^\top)_{tj}^2 / \tau^2)` over orthogonal
    :math:`R` by minorisation and polar decompositions, from many starts, with :math:`\tau`
    falling (a robust relative of the rotations of factor analysis: Jennrich 2006).

    Parameters
    ----------
    effect_td
        Shape (T, d).
    noise
        Standard error of an entry: :math:`\tau` falls to twice that.

    Returns
    -------
    Tensor
        Shape (d, d), float64, orthogonal: ``effect_td @ R.T`` is sparse. Order and signs are
        those that change the columns least.
    """
    effect = effect_td.double()
    d = effect.shape[1]
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(RESTARTS, d, d, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(draws)[0]
    turn[0] = torch.eye(d, dtype=torch.float64)
    length = effect.square().sum(1).mean().sqrt()
    for width in WIDTHS:
        tau = max(float(width * length), 2 * noise)
        for _ in range(ITERATIONS):
            x = effect @ turn
            # What is left of x - tau^2 rho'(x) / 2: the majoriser's linear term.
            u, _, v = torch.linalg.svd(effect.T @ (x**3 / (tau**2 + x**2)))
            turn = u @ v
    cost = (1 + (effect @ turn / tau).square()).log().sum((1, 2))
    return _in_place(turn[cost.argmin()].T)


def _in_place(rotation: Tensor) -> Tensor:
    # Greedy: each row goes where it points most.
    left = rotation.abs().clone()
    out = torch.empty_like(rotation)
    for _ in range(len(rotation)):
        row, column = divmod(int(left.argmax()), left.shape[1])
        out[column] = rotation[row] * rotation[row, column].sign()
        left[row], left[:, column] = -1.0, -1.0
    return out
