"""A prior that reads what treatments are, and so can speak of treatments without cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyro.distributions as dist
import torch

from pyro_fcr.nn import FeatureTable
from pyro_fcr.priors.base import Prior
from pyro_fcr.priors.gaussian import SCALE_SPREAD, bounded_exp, loc_spread, raw_scale

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from pyro_fcr.data import Batch, Design
    from pyro_fcr.nn import Block

__all__ = ["TreatmentFeatures"]


class TreatmentFeatures(Prior):
    r"""Diagonal Gaussian whose treatment effects are functions of the treatments' features.

    .. math:: m(t, x) = m_0 + a_x + \sum_k t_k \left(g(f_k) + h_x(f_k)\right)

    and log-scales alike, with :math:`f_k` the vector that ``Schema(treatment_features=...)``
    gives treatment k: a chemical fingerprint, an embedding of the perturbed gene. A treatment
    that has features but no cells can then be asked for by
    ``counterfactual(do={"treatment": ...})``. Combinations add, weighted by dose
    (:class:`~pyro_fcr.nn.FeatureTable`).

    Parameters
    ----------
    learn_scale
        Whether the scale varies with the condition; otherwise it is 1.
    hidden
        Widths of the hidden layers of g and h. Linear maps, the default, need fewer treatments
        to learn from.
    """

    def __init__(self, learn_scale: bool = True, hidden: Sequence[int] = ()) -> None:
        super().__init__()
        self.learn_scale, self.hidden = learn_scale, tuple(hidden)

    def bind(self, block: Block, design: Design) -> None:
        """Make the maps from features to means and log-scales."""
        start = torch.tensor([loc_spread(block)] * block.size + [SCALE_SPREAD] * block.size)
        self.table = FeatureTable(design, block.parents, start, hidden=self.hidden)

    def forward(self, batch: Batch) -> dist.TorchDistribution:
        """Return N(m, s²) with batch shape (B,) and event shape (d,)."""
        loc, raw = self.table(batch).chunk(2, dim=-1)
        scale = bounded_exp(raw) if self.learn_scale else torch.ones_like(raw)
        return dist.Normal(loc, scale).to_event(1)

    def refit(self, batch: Batch, loc: Tensor, scale: Tensor) -> None:
        """Set the maps, by least squares, so that the conditions have the given moments.

        Parameters
        ----------
        batch
            One cell per condition, C of them.
        loc, scale
            Shape (C, d).
        """
        self.table.refit(batch, torch.cat([loc, raw_scale(scale)], dim=1))
