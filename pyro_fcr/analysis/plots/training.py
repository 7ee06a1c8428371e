"""Pictures of a training run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_fcr import arguments
from pyro_fcr.analysis.plots import given
from pyro_fcr.analysis.plots.style import GREY, PALETTE, WIDTH, finish, house_style, plain, symbol

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

__all__ = ["history"]


def history(
    table: pd.DataFrame,
    *,
    show: bool = False,
    save: str | Path | None = None,
) -> NDArray[np.object_]:
    """Draw the training curves, one panel for each kind of term.

    Parameters
    ----------
    table
        What ``model.fit`` returns. Solid: training cells; dashed: validation cells; grey: chance.
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
        If this is no history.
    """
    where, source = "history(table=)", "pass fcr.history, or what fcr.fit returned"
    panels = _panels(given.table(table, where, source=source))
    if not panels:
        expected = "a table of terms, epoch by epoch"
        raise arguments.refused(list(table.columns), where=where, expected=expected, hint=source)
    with house_style():
        rows = -(-len(panels) // 2)
        figure = Figure(figsize=(WIDTH, 2.5 * rows), layout="constrained")
        axes = figure.subplots(rows, 2, squeeze=False).ravel()
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        for ax, (title, (unit, columns)) in zip(axes, panels.items(), strict=False):
            for i, (label, column) in enumerate(columns.items()):
                colour = PALETTE[i % len(PALETTE)]
                dot = "o" if len(table) == 1 else None
                ax.plot(table.index, table[column], color=colour, lw=1.2, label=label, marker=dot)
                held_out = f"valid.{column}"
                if held_out in table:
                    values = table[held_out].dropna()
                    ax.plot(values.index, values, color=colour, lw=1.2, ls="--")
            if title == "discriminator accuracy":
                ax.axhline(0.5, color=GREY, lw=0.8)
            curves = table[list(columns.values())].to_numpy()
            positive = curves[np.isfinite(curves)]
            if positive.size and positive.min() > 0 and positive.max() > 30 * positive.min():
                ax.set_yscale("log")
            if len(columns) > 1:
                ax.legend(loc="best", handlelength=1.2, labelspacing=0.2, frameon=True,
                          framealpha=0.8, edgecolor="none", borderpad=0.1)  # fmt: skip
            ax.set(title=title, xlabel="epoch", ylabel=unit)
            ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return finish(axes[: len(panels)], show=show, save=save)


def _panels(table: pd.DataFrame) -> dict[str, tuple[str, dict[str, str]]]:
    """Return the panels that a history has: title, then unit and columns by label."""
    norms = {"usual": "gradient_norm", "largest": "gradient_norm.max"}
    skipped = {"epoch", "step", "learning_rate", "seconds", "loss", "counts", *norms.values()}
    columns = [c for c in table.columns if not c.startswith("valid.") and table[c].notna().any()]
    kl = {symbol(c[3:]): c for c in columns if c.startswith("kl.")}
    accuracy = {c.removeprefix("accuracy."): c for c in columns if c.startswith("accuracy.")}
    other = [c for c in columns if c not in {*skipped, *kl.values(), *accuracy.values()}]
    made = {
        "loss": ("nats per cell", {"loss": "loss"} if "loss" in columns else {}),
        "divergence from prior": ("nats per cell", kl),
        "independence and heads": ("unweighted", {_spoken(c): c for c in other}),
        "discriminator accuracy": ("accuracy", accuracy),
        "gradient norm": ("", {label: c for label, c in norms.items() if c in columns}),
    }
    return {title: panel for title, panel in made.items() if panel[1]}


def _spoken(term: str) -> str:
    return plain(term).replace("_vs_", ", ").replace("_head", " head")
