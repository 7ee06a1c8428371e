"""Pictures of how far a fit is to be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_fcr import arguments
from pyro_fcr.analysis.plots import given
from pyro_fcr.analysis.plots.style import (
    GREY,
    PALETTE,
    WIDTH,
    finish,
    house_style,
    own_axes,
    symbol,
    wrapped,
)

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from pyro_fcr.analysis.diagnostics import Importance

__all__ = ["block_use", "importance", "predictive_checks", "stability"]


def importance(
    found: Importance, *, show: bool = False, save: str | Path | None = None
) -> NDArray[np.object_]:
    """Draw how well the guide covers each cell's posterior, and what its bound gains.

    Parameters
    ----------
    found
        What ``model.importance`` returns.
    show
        Whether to show the figure now, in a notebook or a window.
    save
        A file to write the figure to; its ending says the format.

    Returns
    -------
    numpy.ndarray of Axes, shape (2,)
        Pareto k-hat, which should lie below 0.7; the importance-weighted bound above the ELBO.

    Raises
    ------
    ArgumentError
        If this is something else.
    """
    if not hasattr(found, "k_hat"):
        raise arguments.refused(
            type(found), where="importance(found=)", expected="what fcr.importance() returns",
            hint="pass it whole",
        )  # fmt: skip
    with house_style():
        figure = Figure(figsize=(WIDTH, 2.3), layout="constrained")
        axes = figure.subplots(1, 2)
        k_hat = found.k_hat[np.isfinite(found.k_hat)]
        bad = float(np.mean(k_hat > 0.7)) if len(k_hat) else 0.0
        panels = (
            (k_hat, "Pareto k-hat", f"above 0.7: {100 * bad:.0f} % of cells"),
            (found.bound - found.elbo, "bound above the ELBO, nats", "what weighting gains"),
        )
        for ax, (values, label, title) in zip(axes, panels, strict=True):
            ax.hist(values, bins=30, color=PALETTE[0])
            ax.set(xlabel=label, title=title)
            ax.xaxis.set_major_locator(MaxNLocator(4))
            ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes[0].axvline(0.7, color=PALETTE[5], lw=1.2, ls="--")
        axes[0].set_ylabel("cells")
    return finish(axes, show=show, save=save)


def block_use(
    table: pd.DataFrame,
    *,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool = False,
    save: str | Path | None = None,
) -> Axes:
    """Draw how much each block tells of the single cell, beyond its condition.

    Parameters
    ----------
    table
        What ``model.block_use`` returns.
    title
        What to write above.
    ax
        Where to draw; a new figure by default.
    show
        Whether to show the figure now, in a notebook or a window.
    save
        A file to write the figure to; its ending says the format.

    Returns
    -------
    matplotlib.axes.Axes
        Prior and posterior of a block that is not used overlap by 1.

    Raises
    ------
    ArgumentError
        If this is another table.
    """
    columns = ("information", "overlap", "used", "size")
    given.table(table, "block_use(table=)", columns, source="pass fcr.block_use()")
    with house_style():
        ax = own_axes(ax, height=0.4 * len(table) + 0.9)
        places = np.arange(len(table))
        ax.barh(places, table["information"], height=0.6, color=PALETTE[0])
        for place, row in enumerate(table.itertuples()):
            ax.text(row.information, place, f"  overlap {row.overlap:.2f}, uses {row.used} of "
                    f"{row.size}", va="center", fontsize=8.5)  # fmt: skip
        ax.set_yticks(places, [symbol(str(name)) for name in table.index])
        ax.invert_yaxis()
        # Room for the words behind the longest bar.
        ax.set(xlim=(0, 1.75 * max(float(table["information"].max()), 1e-3)),
               xlabel="nats per cell beyond the condition", title=title or "")  # fmt: skip
    return finish(ax, show=show, save=save)


def predictive_checks(
    table: pd.DataFrame, *, show: bool = False, save: str | Path | None = None
) -> NDArray[np.object_]:
    """Draw what was observed against what the fitted model would have produced, check by check.

    Parameters
    ----------
    table
        What ``model.predictive_checks`` returns.
    show
        Whether to show the figure now, in a notebook or a window.
    save
        A file to write the figure to; its ending says the format.

    Returns
    -------
    numpy.ndarray of Axes
        The bar spans the replicates, the line marks what was observed; ``r`` is the agreement
        over genes, or over pairs of them.

    Raises
    ------
    ArgumentError
        If this is another table.
    """
    columns = ("observed", "low", "high", "agreement")
    given.table(table, "predictive_checks(table=)", columns, source="pass fcr.predictive_checks()")
    with house_style():
        rows = -(-len(table) // 2)
        figure = Figure(figsize=(WIDTH, 0.95 * rows), layout="constrained")
        axes = figure.subplots(rows, 2, squeeze=False).ravel()
        for ax in axes[len(table) :]:
            ax.set_axis_off()
        for ax, (name, row) in zip(axes, table.iterrows(), strict=False):
            seen, low, high = (float(row[k]) for k in ("observed", "low", "high"))
            reach = max(high - low, abs(seen - (low + high) / 2), 0.02 * abs(seen), 1e-6)
            ax.barh(0, high - low, left=low, height=0.5, color=PALETTE[4])
            ax.plot([low, high], [0, 0], color=PALETTE[0], marker="|", ms=8, lw=1.2)
            ax.axvline(seen, color="black", lw=1.2)
            r = float(row["agreement"])
            ax.set_title(wrapped(str(name), 30) + (f", r = {r:.2f}" if np.isfinite(r) else ""),
                         fontsize=8.5)  # fmt: skip
            ax.set(xlim=(min(low, seen) - reach, max(high, seen) + reach), ylim=(-0.6, 0.6),
                   yticks=[])  # fmt: skip
            ax.xaxis.set_major_locator(MaxNLocator(3, prune="both"))
            ax.spines["left"].set_visible(False)
    return finish(axes[: len(table)], show=show, save=save)


def stability(
    table: pd.DataFrame,
    *,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool = False,
    save: str | Path | None = None,
) -> Axes:
    """Draw how far fits from different seeds agree, block by block.

    Parameters
    ----------
    table
        What ``pf.stability`` returns.
    title
        What to write above.
    ax
        Where to draw; a new figure by default.
    show
        Whether to show the figure now, in a notebook or a window.
    save
        A file to write the figure to; its ending says the format.

    Returns
    -------
    matplotlib.axes.Axes
        A dot per pair of fits, a line at their mean: 1 is the same.

    Raises
    ------
    ArgumentError
        If this is another table.
    """
    given.table(
        table, "stability(table=)", ("block", "r2", "mcc"), source="pass pf.stability(...)"
    )
    measures = {"r2": ("whole block (R²)", PALETTE[0]), "mcc": ("single components", PALETTE[1])}
    blocks = list(dict.fromkeys(table["block"]))
    with house_style():
        ax = own_axes(ax, height=0.45 * len(blocks) + 1.1)
        for i, (column, (label, colour)) in enumerate(measures.items()):
            for place, block in enumerate(blocks):
                values = table.loc[table["block"] == block, column].to_numpy(float)
                height = np.full(len(values), place + 0.16 * (2 * i - 1))
                ax.plot(values, height, ls="", marker="os"[i], ms=4, color=colour,
                        label=label if not place else None)  # fmt: skip
                ax.plot([values.mean()], height[:1], marker="|", ms=13, color=colour)
        ax.axvline(1, color=GREY, lw=0.8)
        ax.set_yticks(range(len(blocks)), [symbol(str(name)) for name in blocks])
        ax.set(ylim=(len(blocks) - 0.5, -0.5), xlabel="agreement between fits",
               title=title or "")  # fmt: skip
        ax.set_xlim(min(0.0, *ax.get_xlim()), 1.03)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, handletextpad=0.2)
    return finish(ax, show=show, save=save)
