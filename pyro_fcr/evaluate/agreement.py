"""Whether restarts find the same factors: the one recovery score that real data allow."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pyro_fcr.errors import DesignError, sentence
from pyro_fcr.evaluate.recovery import kernel_r2, mcc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike

__all__ = ["restart_agreement"]


def restart_agreement(
    runs: Sequence[Mapping[str, ArrayLike]],
    condition: ArrayLike,
    *,
    max_cells: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Agreement of the blocks of every pair of runs, within condition.

    Agreement is necessary for identifiability, not sufficient: runs can share an error.

    Parameters
    ----------
    runs
        Two or more fits that differ in nothing but their seed: blocks (cells, d) by name, of the
        same held-out cells.
    condition
        (treatment, covariate) as one label (cells,).
    max_cells
        Cells the kernel probes see, drawn evenly over conditions.
    seed
        Seed of halves and subsample.

    Returns
    -------
    table
        A row per (block, pair): ``mcc`` (matched components, as in `mcc`, for a block that should
        be identified component by component) and ``r2`` (kernel ridge, for one identified as a
        block), each the mean over both directions.

    Raises
    ------
    DesignError
        Fewer than two runs, or runs that do not share their blocks.

    Examples
    --------
    >>> z = np.random.default_rng(0).normal(size=(40, 2))
    >>> table = restart_agreement([{"z_tx": z}, {"z_tx": -z[:, ::-1]}], ["a"] * 40)
    >>> table["mcc"].round(3).tolist()
    [1.0]
    """
    if len(runs) < 2 or any(set(run) != set(runs[0]) for run in runs):
        raise DesignError(
            sentence(
                "runs cannot be compared",
                where="runs",
                expected="two or more with the same blocks",
                got=f"{len(runs)}: {[sorted(run) for run in runs][:3]}",
                hint="pass model.latents of several seeds",
            )
        )
    rows = []
    for (i, one), (j, two) in combinations(enumerate(runs), 2):
        for block in one:
            pairs = ((one[block], two[block]), (two[block], one[block]))
            rows.append(
                {
                    "block": block,
                    "first": i,
                    "second": j,
                    "mcc": float(np.mean([mcc(a, b, condition, seed=seed) for a, b in pairs])),
                    "r2": float(
                        np.mean(
                            [
                                kernel_r2(a, b, condition, max_cells=max_cells, seed=seed)
                                for a, b in pairs
                            ]
                        )
                    ),
                }
            )
    return pd.DataFrame(rows)
