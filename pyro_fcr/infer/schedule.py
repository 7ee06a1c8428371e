"""Schedules: pure functions of the step, so that a resumed run needs no state of theirs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyro_fcr import arguments
from pyro_fcr.errors import FitError, sentence

__all__ = ["Plan", "Settled"]

HEAD_START_SHARE = 0.1
"""Share of the steps over which the head start of blocks that read fewer labels ends."""


@dataclass(frozen=True)
class Plan:
    """How long to train and how the annealed quantities move.

    Parameters
    ----------
    steps
        Number of optimiser steps.
    learning_rate
        Peak of the one-cycle learning rate.
    rise
        Fraction of the steps over which the learning rate rises to its peak; it then falls to
        zero along a cosine.
    kl_warmup
        Fraction of the steps over which the weight of the cells' divergences rises to 1.
    penalty_warmup
        Fraction of the steps over which the penalties' weight rises to its full value.
    align
        Fraction of the steps after which the gauge of the blocks is fixed; see
        :mod:`pyro_fcr.infer.gauge`.
    head_start
        Factor, at the first step, on the divergence of blocks that read more labels than another
        block does; it falls to 1 over a tenth of the steps. What a block of fewer labels can hold
        finds its place there first; afterwards the ELBO does not mind, and would leave it where
        it is.
    clip
        Largest gradient norm, in nats per cell.
    weight_decay
        Decoupled weight decay of networks' weight matrices and tables of conditions.
    """

    steps: int
    learning_rate: float = 5e-3
    rise: float = 0.15
    kl_warmup: float = 0.01
    penalty_warmup: float = 0.2
    align: float = 0.5
    head_start: float = 4.0
    clip: float = 200.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a plan without steps, shares and weights that are none, and a time before all."""
        for name, least, most in (
            ("learning_rate", 0.0, math.inf),
            ("kl_warmup", 0.0, 1.0),
            ("penalty_warmup", 0.0, 1.0),
            ("head_start", 1.0, math.inf),
            ("weight_decay", 0.0, math.inf),
        ):
            arguments.number(getattr(self, name), f"fit({name}=)", least=least, most=most)
        if self.steps < 1:
            raise FitError(
                sentence(
                    "nothing to train",
                    where="fit",
                    expected="at least one step",
                    got=f"{self.steps}",
                    hint="raise max_epochs",
                )
            )
        if not self.align >= 0:
            raise FitError(
                sentence(
                    "no time for the gauge",
                    where="fit(align_at=)",
                    expected="at least 0, a share of the steps",
                    got=str(self.align),
                    hint="more than 1 leaves the gauge as it is found",
                )
            )

    def rate(self, step: int) -> float:
        """Return the learning rate at a step (0-based)."""
        rise = max(1, round(self.rise * self.steps))
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        progress = (step - rise) / max(1, self.steps - rise)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def kl_weight(self, step: int) -> float:
        """Return the weight of the cells' divergences at a step."""
        return _ramp(step, self.kl_warmup * self.steps)

    def ramp(self, step: int) -> float:
        """Return the factor on the penalties' weights at a step."""
        return _ramp(step, self.penalty_warmup * self.steps)

    def price(self, step: int) -> float:
        """Return the factor on the divergences of the blocks that read more than another."""
        share = min(1.0, step / (HEAD_START_SHARE * self.steps))
        return self.head_start + (1.0 - self.head_start) * share


class Settled:
    """Tells when every watched quantity has stopped moving.

    The total ELBO is flat long before the factors separate, so each block's divergence is
    watched on its own: training has settled when, over ``patience`` evaluations, none of them
    moved by more than ``tolerance`` of its size.

    Parameters
    ----------
    patience
        Number of evaluations to look back.
    tolerance
        Largest relative change that counts as still.
    """

    def __init__(self, *, patience: int = 5, tolerance: float = 0.01) -> None:
        self.patience, self.tolerance = patience, tolerance
        self.settled = False
        self._seen: list[dict[str, float]] = []

    def update(self, values: dict[str, float]) -> bool:
        """Add an evaluation and tell whether everything has settled, now or before."""
        self._seen = [*self._seen, dict(values)][-(self.patience + 1) :]
        still = len(self._seen) > self.patience and all(
            max(past[name] for past in self._seen) - min(past[name] for past in self._seen)
            <= self.tolerance * max(abs(value), _size(name))
            for name, value in values.items()
        )
        self.settled = self.settled or still
        return self.settled


def _size(name: str) -> float:
    # A leakage is a share of 1 and ends near zero, where no relative change is small.
    return 1.0 if name.startswith("leakage.") else 0.01


def _ramp(step: int, length: float) -> float:
    return 1.0 if length <= 0 else min(1.0, (step + 1) / length)
