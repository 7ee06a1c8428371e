"""Pictures of what blocks hold and share: leakage, interactions, masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyro_fcr import arguments
from pyro_fcr.analysis.plots import given
from pyro_fcr.analysis.plots.style import (
    finish,
    heat,
    house_style,
    own_axes,
    short,
    symbol,
    wrapped,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["interaction", "leakage", "leakage_matrix", "masks"]


def leakage(
    table: pd.DataFrame,
    *,
    title: str | None = None,
    ax: Axes | None = None,
    cmap: str = "cividis",
    show: bool = False,
    save: str | Path | None = None,
) -> Axes:
    """Draw how well fresh classifiers read labels from each block.

    Parameters
    ----------
    table
        One row per block and question with columns ``block``, ``question``, ``score``,
        ``chance``. The colour runs from chance (0) to perfect (1).
    title
        What to write above.
    ax
        Where to draw; a new figure by default.
    cmap
        The colour map.
    show
        Whether to show the figure now, in a notebook or a window.
    save
        A file to write the figure to; its ending says the format.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ArgumentError
        If this is no such table.
    """
    columns = ("block", "question", "score", "chance")
    given.table(table, "leakage(table=)", columns, source="give it a row per block and question")
    blocks = list(dict.fromkeys(table["block"]))
    questions = list(dict.fromkeys(table["question"]))
    share = ((table["score"] - table["chance"]) / (1 - table["chance"])).clip(0, 1)
    grid = np.full((len(blocks), len(questions)), np.nan)
    words = np.full(grid.shape, "", dtype=object)
    for row, value in zip(table.to_dict("records"), share, strict=True):
        place = blocks.index(row["block"]), questions.index(row["question"])
        grid[place] = value
        words[place] = f"{row['score']:.2f}\nchance {row['chance']:.2f}"
    names = [wrapped(question, 48 // len(questions)) for question in questions]
    with house_style():
        ax = own_axes(ax, height=0.75 * len(blocks) + 1.4)
        heat(ax, grid, [symbol(b) for b in blocks], names, words,
              label="share of the way from\nchance to perfect", top=1.0, cmap=cmap)  # fmt: skip
        ax.set_title(title or "")
    return finish(ax, show=show, save=save)


def interaction(
    table: pd.DataFrame,
    *,
    title: str | None = None,
    ax: Axes | None = None,
    cmap: str = "cividis",
    show: bool = False,
    save: str | Path | None = None,
) -> Axes:
    """Draw how strongly each treatment acts on each kind of cell alone.

    Parameters
    ----------
    table
        Treatments in rows, covariates in columns: the size of the interaction contrast of z_tx.
        More than ten columns are drawn as rows where that is narrower.
    title
        What to write above.
    ax
        Where to draw; a new figure by default.
    cmap
        The colour map.
    show
        Whether to show the figure now, in a notebook or a window.
    save
        A file to write the figure to; its ending says the format.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ArgumentError
        If this is no table of numbers.
    """
    source = "give it a row per treatment and a column per covariate"
    values = given.numbers(table, "interaction(table=)", source=source)
    if table.shape[1] > max(10, table.shape[0]):
        table, values = table.T, values.T
    words = np.full(values.shape, "", dtype=object)
    if values.shape[1] <= 12:
        words[:] = [[f"{v:.1f}" if np.isfinite(v) else "–" for v in row] for row in values]
    with house_style():
        longest = max((len(short(str(c))) for c in table.columns), default=0)
        steep = longest * table.shape[1] > 45
        height = max(0.3 * len(table), 0.45) + (0.075 * longest if steep else 0.2) + 0.9
        ax = own_axes(ax, height=height)
        rows, columns = ([short(str(v)) for v in a] for a in (table.index, table.columns))
        heat(ax, values, rows, columns, words, label="interaction\n(cell s.d.)", steep=steep,
             cmap=cmap)  # fmt: skip
        ax.set_title(title or "")
    return finish(ax, show=show, save=save)


def leakage_matrix(
    shares: Mapping[str, float],
    *,
    title: str | None = None,
    ax: Axes | None = None,
    cmap: str = "cividis",
    show: bool = False,
    save: str | Path | None = None,
) -> Axes:
    """Draw what each block tells of each other within conditions.

    Parameters
    ----------
    shares
        ``"leakage.A.B"``: the share of B's variance within conditions that A explains, as
        ``pyro_fcr.analysis.leakage.block_leakage`` returns them or the last row of a history
        holds them; other names are passed over.
    title
        What to write above.
    ax
        Where to draw; a new figure by default.
    cmap
        The colour map.
    show
        Whether to show the figure now, in a notebook or a window.
    save
        A file to write the figure to; its ending says the format.

    Returns
    -------
    matplotlib.axes.Axes
        Blocks that are read in rows, blocks that are told in columns.

    Raises
    ------
    ArgumentError
        If there is no such share.
    """
    found = {}
    for name, share in arguments.mapping(shares, "leakage_matrix(shares=)", of="shares").items():
        parts = str(name).split(".")
        if len(parts) == 3 and parts[0] == "leakage":
            found[parts[1], parts[2]] = float(share)
    if not found:
        raise arguments.refused(
            list(shares), where="leakage_matrix(shares=)", expected="names like leakage.A.B",
            hint="pass fcr.history.iloc[-1] after fit(monitor_leakage=True)",
        )  # fmt: skip
    blocks = list(dict.fromkeys(block for pair in found for block in pair))
    grid = np.array([[found.get((a, b), np.nan) for b in blocks] for a in blocks])
    words = np.full(grid.shape, "", dtype=object)
    for place, value in np.ndenumerate(grid):
        words[place] = f"{value:.2f}" if np.isfinite(value) else ""
    names = [symbol(block) for block in blocks]
    with house_style():
        ax = own_axes(ax, height=0.6 * len(blocks) + 1.2)
        heat(ax, np.clip(grid, 0, None), names, names, words,
             label="share of variance\nthat is told", top=1.0, cmap=cmap)  # fmt: skip
        ax.set(xlabel="told of", ylabel="read from", title=title or "")
    return finish(ax, show=show, save=save)


def masks(
    table: pd.DataFrame,
    *,
    title: str | None = None,
    ax: Axes | None = None,
    cmap: str = "cividis",
    show: bool = False,
    save: str | Path | None = None,
) -> Axes:
    """Draw which components each treatment moves.

    Parameters
    ----------
    table
        Treatments in rows, components in columns: the probability that the treatment moves the
        component, such as ``model.targets()["inclusion"].unstack()``.
    title
        What to write above.
    ax
        Where to draw; a new figure by default.
    cmap
        The colour map.
    show
        Whether to show the figure now, in a notebook or a window.
    save
        A file to write the figure to; its ending says the format.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ArgumentError
        If this is no table of numbers.
    """
    source = "pass fcr.targets()['inclusion'].unstack()"
    values = given.numbers(table, "masks(table=)", source=source)
    words = np.full(values.shape, "", dtype=object)
    if values.shape[1] <= 12 and len(values) <= 40:
        words[:] = [[_probability(v) for v in row] for row in values]
    with house_style():
        ax = own_axes(ax, height=max(0.24 * len(table), 0.6) + 1.1)
        rows, columns = ([short(str(v)) for v in a] for a in (table.index, table.columns))
        steep = sum(map(len, columns)) > 45
        heat(ax, values, rows, columns, words, label="probability", top=1.0,
             steep=steep, cmap=cmap)  # fmt: skip
        ax.set(xlabel="component", title=title or "")
    return finish(ax, show=show, save=save)


def _probability(value: float) -> str:
    if not np.isfinite(value):
        return "–"
    # What is next to impossible is left blank: the eye is for the rest.
    return f"{value:.2f}" if value >= 0.05 else ""
