"""Sparse mechanisms: which latents each treatment moves, and what those do to genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pyro_fcr.analysis import plots
from pyro_fcr.analysis.programs import gene_programs
from pyro_fcr.analysis.report.blocks import block_moments
from pyro_fcr.analysis.report.page import rows
from pyro_fcr.analysis.targets import sparse_priors

if TYPE_CHECKING:
    from pyro_fcr.analysis.contract import Reported
    from pyro_fcr.analysis.report.page import Page
    from pyro_fcr.data import Cells

__all__ = ["show_programs", "show_targets"]

DRAWN_TREATMENTS, LISTED_TARGETS, LISTED_GENES = 40, 100, 8

LEVEL = 0.10
"""Nominal false discovery rate of the listed targets."""

PSEUDOCOUNT = 10.0
"""Molecules per 10⁴ that a gene needs to be heard among a latent's genes."""


def show_targets(page: Page, model: Reported) -> None:
    """Show the masks of the first block with sparse effects, where there is one."""
    name, block = _sparse_block(model)
    if block is None:
        return
    table = model.targets(name, level=LEVEL)
    inclusion = table["inclusion"].unstack(sort=False)
    strongest = inclusion.max(axis=1).sort_values(ascending=False).index[:DRAWN_TREATMENTS]
    drawn = inclusion.loc[strongest]
    # Treatments that move the same component stand together; those that move none, at the end.
    first = np.where(drawn.max(axis=1) >= 0.5, drawn.to_numpy().argmax(1), drawn.shape[1])
    drawn = drawn.iloc[np.lexsort([-drawn.max(axis=1), first])]
    drawn.columns = [name.removeprefix(f"{block}_") for name in drawn.columns]
    axes = plots.masks(drawn)
    axes.set_xlabel(f"component of {block}")
    page.draw("masks", axes, "Probability that each treatment moves each component; those that "
              "are selected are in the table.")  # fmt: skip
    chosen = table[table["selected"]].sort_values("inclusion", ascending=False)
    left_out = max(0, inclusion.shape[0] - len(drawn))
    page.words["targets"] = (
        f"{len(chosen)} of {len(table):,} pairs of treatment and component are selected, of which "
        f"at most a tenth are expected to be wrong; "
        f"{chosen.index.get_level_values(0).nunique()} of {len(inclusion)} treatments move "
        f"anything." + (f" The picture leaves out the {left_out} least sure." if left_out else "")
    )
    notes = {
        "inclusion": "Posterior probability that the treatment moves the component",
        "shift": "In standard deviations of an untreated cell, if it does",
    }
    listed = chosen.drop(columns="selected").reset_index()
    page.tables["targets"] = rows(listed, most=LISTED_TARGETS, notes=notes)


def show_programs(page: Page, model: Reported, cells: Cells) -> None:
    """Show the genes that each component of that block moves most."""
    _, block = _sparse_block(model)
    if block is None:
        return
    change = gene_programs(
        model.model, block_moments(model, cells), cells, block, model.device,
        pseudocount=PSEUDOCOUNT,
    )  # fmt: skip
    listed = []
    for name in change:
        ordered = change[name].sort_values(ascending=False)
        largest = float(np.abs(change[name]).max())
        listed.append((name, _told(ordered.head(LISTED_GENES)),
                       _told(ordered[::-1].head(LISTED_GENES)), largest))  # fmt: skip
    columns = ["component", "genes up", "genes down", "largest change"]
    notes = {"largest change": "log2 fold change per standard deviation of the component"}
    page.tables["programs"] = rows(pd.DataFrame(listed, columns=columns), most=40, notes=notes)


def _told(genes: pd.Series) -> str:
    return ", ".join(str(name) for name in genes.index)


def _sparse_block(model: Reported) -> tuple[str | None, str | None]:
    """Return the name of the first prior with sparse effects on one block alone, and the block."""
    held = sparse_priors(model.model).items()
    alone = ((name, one.blocks[0].name) for name, one in held if len(one.blocks) == 1)
    return next(alone, (None, None))
