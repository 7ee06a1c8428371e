"""Priors whose treatment effects follow a curve of the dose, with Bayesian parameters."""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import TYPE_CHECKING

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_fcr.nn import Block, ConditionTable
from pyro_fcr.priors.base import Prior
from pyro_fcr.priors.gaussian import SCALE_SPREAD, bounded_exp, loc_spread

if TYPE_CHECKING:
    from pyro_fcr.data import Batch, Design

__all__ = ["DoseResponse", "weigh", "weigh_by_level"]

log = logging.getLogger(__name__)


def weigh(weights: Tensor, table: Tensor) -> Tensor:
    """Return each cell's weighted sum of a table's rows.

    A table drawn for S particles at once has a one where the cells' axis will be.

    Parameters
    ----------
    weights
        Shape (B, F).
    table
        Shape (F, d), or (S, 1, F, d).

    Returns
    -------
    Tensor
        Shape (B, d), or (S, B, d).
    """
    return (weights.unsqueeze(-2) @ table).squeeze(-2)


def weigh_by_level(weights: Tensor, levels: Tensor, table: Tensor) -> Tensor:
    """Return each cell's sum of a table's entries, weighted by row and by level.

    Parameters
    ----------
    weights
        Shape (B, F).
    levels
        Shape (B, L).
    table
        Shape (F, L, d), or (S, 1, F, L, d).

    Returns
    -------
    Tensor
        Shape (B, d), or (S, B, d).
    """
    by_level = weigh(weights, table.flatten(-2)).unflatten(-1, table.shape[-2:])
    return (levels.unsqueeze(-2) @ by_level).squeeze(-2)


class DoseResponse(Prior):
    r"""Diagonal Gaussian whose mean answers each treatment by a curve of its dose.

    .. math:: m(t, x) = m_0 + a_x + \sum_k f_{k}(t_k / u_k;\, x),\qquad f_k(0) = 0

    with :math:`u_k` the design's dose unit of treatment k, so that the data's unit means
    nothing, and :math:`a_x` and the log-scales of the table of conditions. Combinations add.
    Subclasses make the curve's parameters, ``PyroSample`` attributes, in :meth:`bind_response`
    and write :meth:`response`. In a block whose parents have no treatment there is no curve.

    Parameters
    ----------
    learn_scale
        Whether the scale varies with the condition; otherwise it is 1.
    """

    dose_unit: Tensor

    def __init__(self, learn_scale: bool = True) -> None:
        super().__init__()
        self.learn_scale = learn_scale
        self.reads_treatment = True

    def bind(self, block: Block, design: Design) -> None:
        """Make the tables, then the curve's parameters."""
        self.reads_treatment = "treatment" in block.parents
        self.register_buffer("dose_unit", torch.tensor(design.dose_unit), persistent=False)
        spread = torch.full((block.size,), loc_spread(block))
        self.base = ConditionTable(design, block.parents - {"treatment"}, spread)
        if self.learn_scale:
            start = torch.full((block.size,), SCALE_SPREAD)
            self.scales = ConditionTable(design, block.parents, start)
        if self.reads_treatment:
            n_levels = self.base.n_covariates if "covariates" in self.base.parents else 0
            self.bind_response(block.size, design, n_levels)
        else:
            log.info("%s: no treatment among its parents, so no response in its prior", block.name)

    @abstractmethod
    def bind_response(self, size: int, design: Design, n_levels: int) -> None:
        """Make the curve's parameters.

        Parameters
        ----------
        size
            Dimensions of the block, d.
        design
            The experiment: T treatments.
        n_levels
            Columns of the covariates' codes, L; 0 where the block does not read covariates.
        """

    @abstractmethod
    def response(self, dose: Tensor, levels: Tensor | None) -> Tensor:
        """Return what the treatments add to each cell's mean.

        Parameters
        ----------
        dose
            Shape (B, T): doses in units of training's; 0 where a treatment was not given.
        levels
            Shape (B, L): codes of the covariates, or None where the block does not read them.

        Returns
        -------
        Tensor
            Shape (B, d); leading axes of drawn parameters are kept.
        """

    @property
    def extrapolates(self) -> bool:
        """Whether treatments are not read: of one without cells the curve is any at all."""
        return not self.reads_treatment

    def forward(self, batch: Batch) -> dist.TorchDistribution:
        """Return N(m, s²) with batch shape (B,) and event shape (d,)."""
        loc = self.base(batch)
        if self.reads_treatment:
            levels = self.base.levels(batch) if "covariates" in self.base.parents else None
            loc = loc + self.response(batch.treatment / self.dose_unit, levels)
        scale = bounded_exp(self.scales(batch)) if self.learn_scale else loc.new_ones(())
        return dist.Normal(loc, scale).to_event(1)
