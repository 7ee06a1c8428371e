"""What is done to a model's parts between optimiser steps, from where all its cells lie."""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from pyro_fcr.infer import gauge
from pyro_fcr.nn import ConditionMap

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from pyro_fcr.data import Cells
    from pyro_fcr.infer.objective import Objective
    from pyro_fcr.infer.schedule import Plan

    Moments: TypeAlias = Mapping[str, tuple[np.ndarray, np.ndarray]]

__all__ = ["Milestones"]


class Milestones:
    """Axes fixed, globals' posteriors settled, tables of conditions completed.

    Parameters
    ----------
    model, guide
        The two halves, as the user sees them.
    objective
        What is trained: the halves with penalties and heads around them.
    aligned
        Blocks whose gauge is fixed by joint diagonalisation.
    cells
        The training cells.
    moments
        Gives posterior means and standard deviations of cells by block, each of shape (N, d).
    """

    def __init__(
        self,
        model: Any,
        guide: Any,
        objective: Objective,
        *,
        aligned: Collection[str],
        cells: Cells,
        moments: Callable[[Cells], Moments],
    ) -> None:
        self.model, self.guide, self.aligned = model, guide, aligned
        self.readers = objective.parts
        self.cells, self.moments = cells, moments
        self.condition = torch.from_numpy(cells.condition_id)
        self.tables = [m for m in objective.modules() if isinstance(m, ConditionMap)]
        # A cell of each, and of each batch.
        kinds = np.stack([cells.condition_id, cells.batch_id])
        _, first = np.unique(kinds, axis=1, return_index=True)
        self.conditions = cells.batch(first)

    def begin(self) -> None:
        """Before the first step, forget what no training condition informs."""
        conditions = self.conditions.to(self._device)
        for part in (*self.tables, self.model.decoder):
            part.zero_unseen(conditions)

    def by_step(self, plan: Plan) -> dict[int, Callable[[], None]]:
        """Return what is to be done once so many steps are."""
        held = self.model.conditionals()
        turning = [name for name, one in held.items() if self._has_axes(one)]
        turned = {block.name for name in turning for block in held[name].blocks}
        diagonal = [name for name in self.aligned if name not in turned]
        found: dict[int, list[Callable[[], None]]] = {}

        def at(fraction: float, act: Callable[[], None]) -> None:
            found.setdefault(max(1, round(fraction * plan.steps)), []).append(act)

        if diagonal:
            at(plan.align, lambda: self.align(diagonal))
        if turning and plan.align <= 1:
            for share in gauge.TURNS:
                at(share * plan.align, lambda: self.align(turning))
        if self._settling():
            for share in gauge.SETTLED:
                at(share, self.settle)

        def reached(step: int) -> None:
            for act in found[step]:
                act()

        return {step: partial(reached, step) for step in found}

    def finish(self) -> None:
        """After the last step, complete the tables and settle the globals once more."""
        conditions = self.conditions.to(self._device)
        for table in self.tables:
            table.complete(conditions)
        self.settle()

    def align(self, names: Collection[str]) -> None:
        """Turn blocks onto the axes that their priors can tell apart (:func:`gauge.align`)."""
        found, held = self.moments(self.cells), self.model.conditionals()
        ends = itertools.accumulate(block.size for block in self.model.blocks)
        columns = {
            block.name: slice(end - block.size, end)
            for block, end in zip(self.model.blocks, ends, strict=True)
        }
        for one in (held[name] for name in names):
            (block,) = one.blocks
            gauge.align(
                block.name,
                prior=one.prior,
                encoder=getattr(self.guide, "locals", self.guide),
                decoder=self.model.decoder,
                columns=columns[block.name],
                moments=self._evidence(one, found),
                condition=self.condition,
                batch=self.cells.batch,
                device=self._device,
                readers=self.readers,
            )

    def settle(self, **options: Any) -> None:
        """Set posteriors of globals that have one in closed form (:func:`gauge.settle`).

        Parameters
        ----------
        **options
            For the priors.
        """
        if not (settling := self._settling()):
            return
        found = self.moments(self.cells)
        for one in settling:
            gauge.settle(
                one.prior,
                moments=self._evidence(one, found),
                condition=self.condition,
                batch=self.cells.batch,
                **options,
            )

    def _settling(self) -> list[Any]:
        return [one for one in self.model.conditionals().values() if hasattr(one.prior, "settle")]

    def _has_axes(self, one: Any) -> bool:
        # A block is turned onto its own prior's axes; onto those of effects that are added to it
        # only where its own prior does not mind.
        own = [self.model.priors[block.name] for block in one.blocks]
        free = not one.added or (len(own) == 1 and own[0].isotropic)
        return free and hasattr(one.prior, "axes")

    def _evidence(self, one: Any, found: Moments) -> tuple[torch.Tensor, torch.Tensor]:
        """Return posterior means and variances (N, d) of the latents that a prior is about."""
        both = zip(*(found[block.name] for block in one.blocks), strict=True)
        mean, sd = (torch.from_numpy(np.concatenate(parts, axis=1)) for parts in both)
        if one.added:
            mean = mean + gauge.carried(one.prior, self.condition, self.cells.batch)
        return mean, sd.square()

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device
