"""Sparse rotation finds the axes that a random rotation hid."""

from __future__ import annotations

import torch

from pyro_fcr.nn import sparse_rotation


def hidden(shift: float, noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    effect = torch.zeros(60, 8, dtype=torch.float64)
    for row in effect:
        order = torch.randperm(8, generator=generator)
        row[order[: 1 + int(torch.randint(2, (1,), generator=generator))]] = shift
    effect *= torch.where(torch.rand(60, 8, generator=generator) < 0.5, -1.0, 1.0)
    effect += noise * torch.randn(60, 8, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64))[0]
    return effect @ turn, turn


def test_the_axes_are_found() -> None:
    effect, turn = hidden(shift=1.0, noise=0.1)
    found = sparse_rotation(effect, 0.1) @ turn.T
    torch.testing.assert_close(found @ found.T, torch.eye(8, dtype=torch.float64))
    assert found.abs().max(1).values.min() > 0.98
    assert len(set(found.abs().argmax(1).tolist())) == 8


def test_axes_that_are_right_stay() -> None:
    effect, turn = hidden(shift=2.0, noise=0.01)
    found = sparse_rotation(effect @ turn.T, 0.01)
    assert (found.diagonal() > 0.99).all()
