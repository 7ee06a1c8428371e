"""A prior with heavy tails."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pyro.distributions as dist
import torch
from torch import nn

from pyro_fcr.errors import SlotError, sentence
from pyro_fcr.nn import Block, condition_map
from pyro_fcr.priors.base import Prior
from pyro_fcr.priors.gaussian import SCALE_SPREAD, bounded_exp, loc_spread

if TYPE_CHECKING:
    from pyro_fcr.data import Batch, Design

__all__ = ["StudentT"]


class StudentT(Prior):
    """Independent Student-t components whose location and scale vary by condition.

    For outlying cells, which a Gaussian's mean and scale would follow. Its divergence has no
    closed form; draws stand in.

    Parameters
    ----------
    df
        Degrees of freedom; where they are learned, their start. More than 2, so that the
        variance exists.
    learn_df
        Whether each dimension learns its degrees of freedom, between 2 and 2 + 20 (df − 2).
    condition
        How the condition is read: ``"table"``, ``"embedding"``, ``"mlp"`` or ``"features"``.

    Raises
    ------
    SlotError
        If ``df`` is not more than 2.
    """

    def __init__(self, df: float = 5.0, learn_df: bool = False, condition: str = "table") -> None:
        super().__init__()
        if not (df > 2 and math.isfinite(df)):
            raise SlotError(
                sentence(
                    "degrees of freedom without a variance",
                    where="priors.StudentT(df=)",
                    expected="a finite number above 2",
                    got=repr(df),
                    hint="5 is the default",
                )
            )
        self.df, self.learn_df, self.condition = df, learn_df, condition

    def bind(self, block: Block, design: Design) -> None:
        """Make the map of locations and log-scales."""
        start = torch.tensor([loc_spread(block)] * block.size + [SCALE_SPREAD] * block.size)
        self.table = condition_map(self.condition, design, block.parents, start)
        if self.learn_df:
            self.raw_df = nn.Parameter(torch.zeros(block.size))

    def forward(self, batch: Batch) -> dist.TorchDistribution:
        """Return the t distribution with batch shape (B,) and event shape (d,)."""
        loc, raw = self.table(batch).chunk(2, dim=-1)
        df = loc.new_full((), self.df)
        if self.learn_df:
            df = 2 + (self.df - 2) * bounded_exp(self.raw_df)
        return dist.StudentT(df, loc, bounded_exp(raw)).to_event(1)
