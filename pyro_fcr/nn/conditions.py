"""Maps from conditions to vectors; above all the table of main effects and interactions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_fcr.nn.labels import find_columns

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyro_fcr.data import Batch, Design

__all__ = ["ConditionMap", "ConditionTable"]

GAIN = 5.0
"""A table is stored divided by this, which under Adam multiplies its learning rate: priors must
keep up with encoders, or the encoders learn to live with stale ones."""


class ConditionMap(nn.Module, ABC):
    """A vector per condition: what a prior reads its parameters from."""

    @property
    def extrapolates(self) -> bool:
        """Whether it can tell what a treatment does that no training cell had."""
        return False

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Return the vector of each cell's condition; shape (B, d)."""

    def refit(self, batch: Batch, target: Tensor) -> None:
        """Fit the map by least squares so that the batch's conditions have the given vectors.

        Parameters
        ----------
        batch
            One cell per condition, C of them.
        target
            Shape (C, d).
        """
        weights = [p for p in self.parameters() if p.requires_grad]
        search = torch.optim.LBFGS(weights, max_iter=300, line_search_fn="strong_wolfe")
        wanted = target.to(weights[0].dtype)

        def misfit() -> Tensor:
            search.zero_grad()
            value = (self(batch) - wanted).square().mean()
            value.backward()
            return value

        with torch.enable_grad():
            search.step(misfit)
        search.zero_grad()

    def zero_unseen(self, batch: Batch) -> None:
        """Before training, forget what no training condition informs; nothing by default.

        Parameters
        ----------
        batch
            All training conditions, a cell of each at least, and of each batch.
        """

    def complete(self, batch: Batch) -> None:
        """After training, fill in what no training condition informed; nothing by default.

        Parameters
        ----------
        batch
            All training conditions, a cell of each at least.
        """


class ConditionTable(ConditionMap):
    r"""A vector per condition: intercept, main effects and, where both are read, interactions.

    .. math:: \eta(t, x) = \eta_0 + a_x + \sum_k t_k (b_k + C_{k x})

    with :math:`t` the dose-weighted multi-hot row in units of training's doses
    (``Design.dose_unit``), so that the data's unit means nothing to the prior. Combinations of
    treatments add, and the control (:math:`t = 0`) has neither main effect nor interaction.
    Interactions start at zero: a combination of treatment and covariate that was never seen falls
    back on its main effects. Beside covariates, treatments' main effects start at zero too, so
    that what a treatment does to every kind of cell finds its place in a block that reads
    treatments alone. With several covariates, :math:`a_x` holds each covariate's effect and one
    per joint combination, which for an unseen combination is zero as well. A continuous covariate
    acts linearly: it is a column like a level's, with the standardised number for its code.

    Parameters
    ----------
    design
        Gives the numbers of treatments, levels and batches.
    parents
        What to read, as a :class:`~pyro_fcr.nn.Block` names its parents.
    start
        Shape (d,): standard deviation of each column's main effects at the start.
    """

    dose_unit: Tensor

    def __init__(self, design: Design, parents: Iterable[str], start: Tensor) -> None:
        super().__init__()
        found = find_columns(parents, design, where="Block.parents")
        self.labels, self.numbers = found.labels, list(found.numbers)
        self.every = len(found.labels) == design.n_covariates
        self.parents = found.roles | ({"covariates"} if self.labels or self.numbers else set())
        self.n_levels = tuple(list(design.n_levels.values())[k] for k in self.labels)
        joint = design.n_covariate_levels if self.every else math.prod(self.n_levels)
        self.n_joint = joint if len(self.n_levels) > 1 else 0
        self.n_batches, size = design.n_batches, len(start)
        self.n_covariates = sum(self.n_levels) + self.n_joint + len(self.numbers)
        start = start / GAIN
        # The design is saved with the model, so the weights need not hold it.
        self.register_buffer("dose_unit", torch.tensor(design.dose_unit), persistent=False)
        self.intercept = nn.Parameter(torch.zeros(size))
        if "covariates" in self.parents:
            table = torch.randn(self.n_covariates, size) * start
            table[sum(self.n_levels) :][: self.n_joint] = 0
            self.covariates = nn.Parameter(table)
        if "treatment" in self.parents:
            table = torch.randn(design.n_treatments, size) * start
            self.treatment = nn.Parameter(table * ("covariates" not in self.parents))
        if "batch" in self.parents:
            self.batch = nn.Parameter(torch.randn(self.n_batches, size) * start)
        if {"treatment", "covariates"} <= self.parents:
            shape = (design.n_treatments, self.n_covariates, size)
            self.interaction = nn.Parameter(torch.zeros(shape))

    @property
    def extrapolates(self) -> bool:
        """Whether treatments are not read: a row that was never trained tells nothing."""
        return "treatment" not in self.parents

    def forward(self, batch: Batch) -> Tensor:
        """Return the vector of each cell's condition; shape (B, d)."""
        out = self.intercept.expand(len(batch), -1)
        if "batch" in self.parents:
            out = out + self.batch[batch.batch]
        treatment = batch.treatment / self.dose_unit
        if "treatment" in self.parents:
            out = out + treatment @ self.treatment
        if "covariates" in self.parents:
            levels = self.levels(batch)
            out = out + levels @ self.covariates
            if "treatment" in self.parents:
                by_level = treatment @ self.interaction.flatten(1)
                by_level = by_level.unflatten(1, self.interaction.shape[1:])
                out = out + (levels[:, None] @ by_level).squeeze(1)
        return GAIN * out

    @torch.no_grad()
    def refit(self, batch: Batch, target: Tensor) -> None:
        """Set the tables so that the batch's conditions have the given vectors.

        Of all tables that fit, the one with the smallest interactions is taken: what main
        effects can carry, they carry.

        Parameters
        ----------
        batch
            One cell per condition, C of them.
        target
            Shape (C, d).
        """
        treatment = batch.treatment / self.dose_unit
        ones = treatment.new_ones(len(batch), 1)
        columns = {"intercept": ones}
        if "batch" in self.parents:
            columns["batch"] = F.one_hot(batch.batch, self.n_batches)
        if "treatment" in self.parents:
            columns["treatment"] = treatment
        if "covariates" in self.parents:
            columns["covariates"] = self.levels(batch)
            if "treatment" in self.parents:
                products = treatment[:, :, None] * columns["covariates"][:, None]
                columns["interaction"] = products.flatten(1)
        # The minimum-norm solution spends little on columns that are scaled up.
        cost = {name: 1.0 if name == "interaction" else 100.0 for name in columns}
        features = torch.cat([cost[name] * value.double() for name, value in columns.items()], 1)
        solution = torch.linalg.pinv(features, rtol=1e-10) @ (target.double() / GAIN)
        parts = solution.split([value.shape[1] for value in columns.values()])
        for name, part in zip(columns, parts, strict=True):
            table = getattr(self, name)
            table.copy_((cost[name] * part).reshape(table.shape))

    @torch.no_grad()
    def zero_unseen(self, batch: Batch) -> None:
        """Zero the main effects that no training condition informs."""
        if "batch" in self.parents:
            seen = F.one_hot(batch.batch, self.n_batches).any(0)
            self.batch.mul_(seen[:, None])
        if "treatment" in self.parents:
            seen = (batch.treatment != 0).any(0)
            self.treatment.mul_(seen[:, None])
        if "covariates" in self.parents:
            offset = 0
            for k, n in zip(self.labels, self.n_levels, strict=True):
                seen = F.one_hot(batch.covariates[:, k], n).any(0)
                self.covariates[offset : offset + n].mul_(seen[:, None])
                offset += n

    @torch.no_grad()
    def complete(self, batch: Batch) -> None:
        """Give combinations that training never saw the interaction their level usually has.

        A level that answers weakly to the treatments it was seen with will answer weakly to the
        others. So the interaction of an unseen pair is the mean over the level's seen pairs,
        shrunk towards zero by what a one-way random-effects model finds: by between / (between +
        within / n), with moment estimates for each column. Nothing seen is changed.

        Parameters
        ----------
        batch
            All training conditions, a cell of each at least.
        """
        if not {"treatment", "covariates"} <= self.parents:
            return
        levels = self.levels(batch)
        seen = ((batch.treatment != 0).to(levels.dtype).T @ levels.abs() > 0)[..., None]
        n = seen.sum(0)
        mean = (self.interaction * seen).sum(0) / n.clamp_min(1)
        freedom = (n - 1).clamp_min(0).sum()
        if freedom == 0:
            return
        within = ((self.interaction - mean).square() * seen).sum((0, 1)) / freedom
        known = n > 0
        share = known.sum().clamp_min(1)
        noise = within * (known / n.clamp_min(1)).sum(0) / share
        between = ((mean.square() * known).sum(0) / share - noise).clamp_min(0)
        shrunk = mean * between / (between + within / n.clamp_min(1)).clamp_min(1e-12)
        self.interaction.copy_(torch.where(seen, self.interaction, shrunk))

    def levels(self, batch: Batch) -> Tensor:
        """Return the code of each cell's covariates; shape (B, ``n_covariates``)."""
        levels = list(zip(self.labels, self.n_levels, strict=True))
        codes = [F.one_hot(batch.covariates[:, k], n) for k, n in levels]
        if self.n_joint:
            joint = batch.covariate_id
            if not self.every:
                joint = torch.zeros_like(joint)
                for k, n in levels:
                    joint = joint * n + batch.covariates[:, k]
            codes.append(F.one_hot(joint.clamp_min(0), self.n_joint) * (joint >= 0)[:, None])
        if self.numbers:
            codes.append(batch.continuous[:, self.numbers])
        return torch.cat(codes, dim=-1).to(self.intercept.dtype)
