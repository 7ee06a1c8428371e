"""Pictures of what treatments do to genes: intervals, dose by dose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_fcr.analysis.plots import given
from pyro_fcr.analysis.plots.style import (
    GREY,
    WIDTH,
    colours_of,
    finish,
    house_style,
    own_axes,
    short,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from pyro_fcr.analysis.plots.style import Palette

__all__ = ["dose_response", "intervals"]

_DASHES = ("-", "--", "-.", ":")


def intervals(
    tables: Mapping[str, pd.DataFrame],
    genes: Sequence[str],
    *,
    title: str | None = None,
    label: str = "log2 fold change",
    ax: Axes | None = None,
    palette: Palette = None,
    show: bool = False,
    save: str | Path | None = None,
) -> Axes:
    """Draw estimates with their intervals, gene by gene, several groups beside one another.

    Parameters
    ----------
    tables
        By group: a table by gene with columns ``lfc``, ``low`` and ``high``, as
        ``Effects.genes_of`` and ``Effects.compare`` return them.
    genes
        The genes to draw, from top to bottom.
    title
        What to write above.
    label
        What the numbers are.
    ax
        Where to draw; a new figure by default.
    palette
        Colours by group, or in their order; safe to the colour-blind by default.
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
        If these are no such tables by group, or a gene is missing from one.
    """
    for group, told in given.named(tables, "intervals(tables=)", of="a table").items():
        where = f"intervals(tables=)['{group}']"
        given.table(told, where, ("lfc", "low", "high"), source="as Effects.genes_of gives it")
        given.chosen(genes, told.index, "intervals(genes=)", f"genes of the table '{group}'")
    places = np.arange(len(genes), dtype=float)
    steps = (np.arange(len(tables)) - (len(tables) - 1) / 2) * 0.7 / max(len(tables), 1)
    with house_style():
        ax = own_axes(ax, height=0.8 + len(genes) * max(0.2, 0.13 * len(tables)))
        ax.axvline(0, color=GREY, lw=0.8, zorder=0)
        names = [str(name) for name in tables]
        colours = colours_of(np.asarray(names), names, palette)
        for step, name, table in zip(steps, names, tables.values(), strict=True):
            rows = table.loc[list(genes)]
            middle = rows["lfc"].to_numpy()
            reach = np.abs(rows[["low", "high"]].to_numpy() - middle[:, None]).T
            ax.errorbar(middle, places + step, xerr=reach, fmt="o", ms=3.5, lw=1.4,
                        label=short(name), color=colours.get(name, GREY))  # fmt: skip
        ax.set_yticks(places, [short(str(gene)) for gene in genes])
        ax.set(ylim=(len(genes) - 0.4, -0.6), xlabel=label, title=title or "")
        if len(tables) > 1:
            ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(len(tables), 3))
    return finish(ax, show=show, save=save)


def dose_response(
    table: pd.DataFrame,
    genes: Sequence[str] | None = None,
    *,
    measured: Sequence[float] = (),
    palette: Palette = None,
    show: bool = False,
    save: str | Path | None = None,
) -> NDArray[np.object_]:
    """Draw log fold changes over doses with their bands, one panel per gene.

    Parameters
    ----------
    table
        What ``model.dose_response`` returns: columns ``covariate``, ``dose``, ``gene``, ``lfc``,
        ``low``, ``high``.
    genes
        The genes to draw; the first six of the table by default.
    measured
        Doses that the data hold, marked at the bottom: what lies between them is interpolated.
    palette
        Colours by group, or in their order; safe to the colour-blind by default.
    show
        Whether to show the figure now, in a notebook or a window.
    save
        A file to write the figure to; its ending says the format.

    Returns
    -------
    numpy.ndarray of Axes

    Raises
    ------
    ArgumentError
        If this is no such table, or a gene is missing from it.
    """
    columns = ("covariate", "dose", "gene", "lfc", "low", "high")
    given.table(table, "dose_response(table=)", columns, source="pass fcr.dose_response(...)")
    there = list(dict.fromkeys(table["gene"]))
    chosen = there[:6] if genes is None else list(genes)
    given.chosen(chosen, there, "dose_response(genes=)", "genes of the table")
    groups = [str(group) for group in dict.fromkeys(table["covariate"])]
    colours = colours_of(np.asarray(groups), groups, palette)
    doses = np.sort(table["dose"].unique())
    positive = doses[doses > 0]
    wide = len(positive) > 1 and positive[-1] > 20 * positive[0]
    with house_style():
        across = min(2, len(chosen))
        rows = -(-len(chosen) // across)
        key = 0.2 * -(-len(groups) // 3) + 0.1 if len(groups) > 1 else 0.0
        figure = Figure(figsize=(WIDTH, 2.0 * rows + key + 0.2), layout="constrained")
        axes = figure.subplots(rows, across, squeeze=False, sharex=True).ravel()
        for ax in axes[len(chosen) :]:
            ax.set_axis_off()
        for place, (ax, gene) in enumerate(zip(axes, chosen, strict=False)):
            ax.axhline(0, color=GREY, lw=0.8, zorder=0)
            for i, group in enumerate(groups):
                rows_of = table[
                    (table["gene"] == gene) & (table["covariate"].astype(str) == group)
                ]
                rows_of = rows_of.sort_values("dose")
                colour, dash = colours.get(group, GREY), _DASHES[i % len(_DASHES)]
                ax.fill_between(rows_of["dose"], rows_of["low"], rows_of["high"], color=colour,
                                alpha=0.18, lw=0)  # fmt: skip
                ax.plot(rows_of["dose"], rows_of["lfc"], color=colour, ls=dash, lw=1.5,
                        label=short(group))  # fmt: skip
            if wide:
                scale = {"linthresh": positive[0]} if doses[0] <= 0 else {}
                ax.set_xscale("symlog" if scale else "log", **scale)
            else:
                ax.xaxis.set_major_locator(MaxNLocator(4))
            if len(measured):
                ax.plot(measured, np.zeros(len(measured)), ls="", marker="|", ms=7, color="black",
                        transform=ax.get_xaxis_transform(), clip_on=False)  # fmt: skip
            ax.set_title(short(str(gene)))
            ax.set_ylabel("log2 fold change" if place % across == 0 else "")
            if place >= len(chosen) - across:
                ax.set_xlabel("dose")
                ax.tick_params(labelbottom=True)
        if len(groups) > 1:
            handles, names = axes[0].get_legend_handles_labels()
            figure.legend(handles, names, loc="outside upper center", ncols=min(3, len(groups)))
    return finish(axes[: len(chosen)], show=show, save=save)
