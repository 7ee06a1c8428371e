"""A prior that can carry interactions and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_fcr.errors import SlotError, sentence
from pyro_fcr.nn import GAIN, Block, ConditionMap, ConditionTable, find_columns
from pyro_fcr.priors.base import Prior
from pyro_fcr.priors.gaussian import SCALE_SPREAD, bounded_exp, raw_scale

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyro_fcr.data import Batch, Design

__all__ = ["CentredTable", "Interaction"]


class CentredTable(ConditionMap):
    r"""A table of treatment and covariate group from which all main effects are taken out.

    .. math:: R = S \odot (\Theta - a - b),\qquad
        \sum_x w_{tx} R_{tx} = 0 \;\forall t,\qquad \sum_t w_{tx} R_{tx} = 0 \;\forall x

    with S the pairs that were seen and a, b the weighted least-squares fit of main effects to
    them: on a full grid with equal weights, double centring. Rows are the control and the single
    treatments; a combination's or dose's value is :math:`\sum_k t_k R_{kx}`, with doses in units
    of training's. So the first sum vanishes for every treatment seen with all groups, the second
    over the control and single treatments at their unit dose. Unseen pairs have no interaction.

    Parameters
    ----------
    design, parents
        As for :class:`~pyro_fcr.nn.ConditionTable`; covariates that are numbers are not read.
    size
        d.
    weights
        ``"levels"``: every seen pair weighs the same; ``"cells"``: by its number of cells.
    """

    dose_unit: Tensor
    groups: Tensor
    weight: Tensor
    solver: Tensor

    def __init__(
        self, design: Design, parents: Iterable[str], size: int, weights: str = "levels"
    ) -> None:
        super().__init__()
        found = find_columns(parents, design, where="Block.parents")
        self.columns = list(found.labels)
        self.active = bool(self.columns) and "treatment" in found.roles
        if not self.active:
            self.size = size
            return
        levels = [list(design.covariates.values())[k] for k in self.columns]
        of_joint = [
            tuple(names.index(group[k]) for k, names in zip(self.columns, levels, strict=True))
            for group in design.covariate_levels
        ]
        groups = sorted(set(of_joint))
        weight = torch.zeros(1 + design.n_treatments, len(groups))
        row_of = {name: 1 + k for k, name in enumerate(design.treatments)}
        for treatment, joint, n in design.condition_counts:
            parts = [row_of[part] for part, _ in design.treatment_keys[treatment]] or [0]
            for row in parts:
                weight[row, groups.index(of_joint[joint])] += n
        weight = weight if weights == "cells" else (weight > 0).float()
        self.register_buffer("dose_unit", torch.tensor(design.dose_unit), persistent=False)
        self.register_buffer("groups", torch.tensor(groups), persistent=False)
        self.register_buffer("weight", weight)
        self.register_buffer("solver", _solver(weight))
        self.table = nn.Parameter(torch.zeros(*weight.shape, size))

    @property
    def extrapolates(self) -> bool:
        """True: where nothing was seen there is no interaction."""
        return True

    def interactions(self) -> Tensor:
        """Return R; shape (1 + T, groups, d), the control first."""
        weighted = self.weight[..., None] * self.table
        per_row = 1 / self.weight.sum(1).clamp_min(1e-12)[:, None]
        rows, groups = weighted.sum(1), weighted.sum(0)
        b = self.solver @ (groups - self.weight.T @ (per_row * rows))
        a = per_row * (rows - self.weight @ b)
        return GAIN * (self.weight > 0)[..., None] * (self.table - a[:, None] - b)

    def codes(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return how much of each row and of each group a cell has; (B, 1 + T) and (B, groups)."""
        dose = batch.treatment / self.dose_unit
        control = (batch.treatment == 0).all(-1, keepdim=True).to(dose.dtype)
        codes = batch.covariates[:, self.columns]
        group = (codes[:, None] == self.groups).all(-1).to(dose.dtype)
        return torch.cat([control, dose], dim=1), group

    def forward(self, batch: Batch) -> Tensor:
        """Return the interaction of each cell's condition; shape (B, d)."""
        if not self.active:
            return batch.library.new_zeros(len(batch), self.size)
        rows, groups = self.codes(batch)
        by_group = (rows @ self.interactions().flatten(1)).unflatten(1, (groups.shape[1], -1))
        return (groups[:, None] @ by_group).squeeze(1)

    @torch.no_grad()
    def refit(self, batch: Batch, target: Tensor) -> None:
        """Set the table to the interactions of the given vectors; their main effects are lost.

        Parameters
        ----------
        batch
            One cell per condition, C of them.
        target
            Shape (C, d).
        """
        if self.active:
            rows, groups = self.codes(batch)
            pairs = (rows[:, :, None] * groups[:, None]).flatten(1).double()
            table = torch.linalg.pinv(pairs, rtol=1e-10) @ (target.double() / GAIN)
            self.table.copy_(table.reshape(self.table.shape))

    @torch.no_grad()
    def zero_unseen(self, batch: Batch) -> None:
        """Count no pair as seen that no training cell has."""
        if self.active:
            rows, groups = self.codes(batch)
            self.weight.mul_(((rows > 0).to(groups.dtype).T @ groups) > 0)
            self.solver.copy_(_solver(self.weight))


def _solver(weight: Tensor) -> Tensor:
    # What is left of the normal equations for the groups once the rows are eliminated.
    w = weight.double()
    reduced = torch.diag(w.sum(0)) - w.T @ (w / w.sum(1, keepdim=True).clamp_min(1e-12))
    return torch.linalg.pinv(reduced, hermitian=True, rtol=1e-10).to(weight.dtype)


class Interaction(Prior):
    """Diagonal Gaussian whose mean is an interaction and cannot be a main effect.

    The mean is double-centred over treatments and covariate groups (:class:`CentredTable`): what
    a treatment does to every cell, or what a kind of cell always is, has no place in it and must
    go to another block. Unseen pairs get the zero interaction. The natural prior of ``z_tx``; in
    a block that does not read both, the mean is zero.

    Parameters
    ----------
    learn_scale
        Whether the scale varies with the condition; otherwise it is 1.
    centre_scale
        Whether the log-scale is, beside a constant, an interaction alone as well.
    weights
        ``"levels"``: every seen pair weighs the same in the centring; ``"cells"``: by its cells.

    Raises
    ------
    SlotError
        If ``weights`` is none of its two.
    """

    def __init__(
        self, learn_scale: bool = True, centre_scale: bool = False, weights: str = "levels"
    ) -> None:
        super().__init__()
        if weights not in ("levels", "cells"):
            raise SlotError(
                sentence(
                    "no such weights",
                    where="priors.Interaction(weights=)",
                    expected="'levels' or 'cells'",
                    got=repr(weights),
                    hint="leave it out",
                )
            )
        self.learn_scale, self.centre_scale, self.weights = learn_scale, centre_scale, weights

    def bind(self, block: Block, design: Design) -> None:
        """Make the centred table and the map of log-scales."""
        self.means = CentredTable(design, block.parents, block.size, self.weights)
        if not self.learn_scale:
            return
        if self.centre_scale:
            self.usual = nn.Parameter(torch.zeros(block.size))
            self.scales: ConditionMap = CentredTable(
                design, block.parents, block.size, self.weights
            )
        else:
            spread = torch.full((block.size,), SCALE_SPREAD)
            self.scales = ConditionTable(design, block.parents, spread)

    @property
    def extrapolates(self) -> bool:
        """True: of a treatment without cells no interaction is known, and none is given."""
        return True

    def forward(self, batch: Batch) -> dist.TorchDistribution:
        """Return N(m, s²) with batch shape (B,) and event shape (d,)."""
        loc = self.means(batch)
        if not self.learn_scale:
            return dist.Normal(loc, 1.0).to_event(1)
        raw = self.scales(batch)
        if self.centre_scale:
            raw = raw + self.usual
        return dist.Normal(loc, bounded_exp(raw)).to_event(1)

    @torch.no_grad()
    def refit(self, batch: Batch, loc: Tensor, scale: Tensor) -> None:
        """Set the tables to the interactions of the given moments.

        Parameters
        ----------
        batch
            One cell per condition, C of them.
        loc, scale
            Shape (C, d).
        """
        self.means.refit(batch, loc)
        if self.learn_scale:
            raw = raw_scale(scale)
            if self.centre_scale:
                self.usual.copy_(raw.mean(0))
                raw = raw - raw.mean(0)
            self.scales.refit(batch, raw)
