"""Any two groups of cells, as they are or as they would have been: which genes differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pyro_fcr import arguments
from pyro_fcr.analysis.changes import MIN_CELLS, group_shares, joint_changes
from pyro_fcr.analysis.effects import check_thresholds, described, ranked
from pyro_fcr.errors import DesignError, sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pandas as pd
    from numpy.typing import NDArray

    from pyro_fcr.analysis.contract import Intervened
    from pyro_fcr.analysis.model_error import CounterfactualError
    from pyro_fcr.data import Cells

__all__ = ["Group", "estimate_contrast"]


class Group(NamedTuple):
    """Cells, what is done to them if anything, and labels of replicates if there are some."""

    cells: Cells
    do: Mapping[str, Any] | None
    replicates: NDArray[Any] | None


def estimate_contrast(
    model: Intervened,
    group: Group,
    other: Group,
    *,
    error: Callable[[], CounterfactualError],
    draws: int,
    level: float,
    least: float,
    fdr: float,
    seed: int,
) -> pd.DataFrame:
    """Estimate the log2 fold change of every gene between two groups.

    Groups as they are: measurement and model are joined as for
    :class:`~pyro_fcr.analysis.effects.Effects`, with the two groups as treated and control. Where
    one of them is a counterfactual nothing was measured: the model's change is told, with the
    spread of cells and as far off as the same model's counterfactuals are of measured conditions
    (:class:`~pyro_fcr.analysis.model_error.CounterfactualError`).

    Parameters
    ----------
    model
        A fitted model.
    group, other
        The table tells of the first minus the second.
    error
        Gives that error; asked where a group is a counterfactual.
    draws, level, least, fdr, seed
        As for :func:`~pyro_fcr.analysis.changes.estimate_effects` and ``Effects.genes_of``.

    Raises
    ------
    DesignError
        If a group has too few cells.
    """
    arguments.tails(level)
    arguments.whole(draws, "draws=", least=2)
    check_thresholds(least=least, fdr=fdr)
    rng = np.random.default_rng(seed)
    shape = (draws, 2, 1, group.cells.design.n_genes)
    modelled, residual = np.empty(shape, np.float32), np.empty(shape, np.float32)
    middle, gap, floor = (np.empty(shape[1:]) for _ in range(3))
    for i, side in enumerate((other, group)):
        n = len(side.cells)
        if n < MIN_CELLS:
            raise DesignError(
                sentence(
                    "too few cells to compare",
                    where="differential(group, other)",
                    expected=f"at least {MIN_CELLS} in each group",
                    got=f"{n} in the {('second', 'first')[i]}",
                    hint="take wider groups",
                )
            )
        found = group_shares(model, side.cells, side.replicates, draws, rng, do=side.do, seed=seed)
        middle[i, 0], gap[i, 0], floor[i, 0] = found.middle, found.gap, found.least
        modelled[:, i, 0], residual[:, i, 0] = found.modelled, found.residual
    if group.do is None and other.do is None:
        drawn, change, off, _ = joint_changes(middle, gap, modelled, residual, floor, rng)
        drawn, change, measured = drawn[:, 0, 0], change[0, 0], (change + off)[0, 0]
    else:
        change = (middle[1] - middle[0])[0]
        spread = np.sqrt(error().variance(change))
        drawn = (modelled[:, 1] - modelled[:, 0])[:, 0]
        drawn += spread * rng.standard_normal(drawn.shape)
        measured = np.full_like(change, np.nan)
    table = described(drawn, group.cells.design.genes, level=level, least=least, fdr=fdr)
    table["model"], table["measured"] = change, measured
    return ranked(table)
