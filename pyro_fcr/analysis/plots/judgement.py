"""Pictures of how a model stands: predictions, baselines, calibration."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import MaxNLocator
from scipy.stats import binom

from pyro_fcr import arguments
from pyro_fcr.analysis.plots import given
from pyro_fcr.analysis.plots.style import (
    GREY,
    PALETTE,
    WIDTH,
    finish,
    house_style,
    own_axes,
    plain,
    symbol,
    wrapped,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike, NDArray

__all__ = ["counterfactual", "coverage", "evaluation", "rank_histogram"]

YARDSTICKS = (
    "reconstruction", "half of the test cells", "interpolated half", "training cells",
)  # fmt: skip
"""How rows begin that are no prediction: they have read cells of the condition."""

_METRICS = {
    "pearson_change_top100": "Pearson of the change,\ntop 100 DE genes",
    "pearson_change_top20": "Pearson of the change,\ntop 20 DE genes",
    "pearson_change": "Pearson of the change,\nall genes",
    "r2_top100": "R² of the means,\ntop 100 DE genes",
    "r2": "R² of the means,\nall genes",
    "energy_distance": "Energy distance\n(lower is better)",
}


def counterfactual(
    predicted: ArrayLike,
    observed: ArrayLike,
    *,
    genes: Sequence[str] | None = None,
    highlight: ArrayLike | None = None,
    named: int = 8,
    title: str | None = None,
    quantity: str = "change against control",
    ax: Axes | None = None,
    show: bool = False,
    save: str | Path | None = None,
) -> Axes:
    """Draw the predicted against the observed value of every gene.

    Parameters
    ----------
    predicted, observed
        Shape (G,).
    genes
        The genes' names.
    highlight
        Positions of the differentially expressed genes, strongest first.
    named
        How many of those to name.
    title
        What to write above.
    quantity
        What the numbers are, for the axes' labels.
    ax
        Where to draw; a new figure by default.
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
        If these are not of the same genes.
    """
    x, y = np.asarray(observed, dtype=float), np.asarray(predicted, dtype=float)
    for name, values in (("observed", x), ("genes", y if genes is None else np.asarray(genes))):
        if y.ndim != 1 or values.shape != y.shape:
            raise arguments.refused(
                values.shape, where=f"counterfactual({name}=)",
                expected=f"as many genes as predicted values, which have shape {y.shape}",
                hint="give one row of the same genes for each",
            )  # fmt: skip
    marked = np.asarray([] if highlight is None else highlight, dtype=int)
    with house_style():
        ax = own_axes(ax, height=4.2)
        low, high = min(x.min(), y.min()), max(x.max(), y.max())
        margin = 0.06 * (high - low or 1.0)
        span = (low - margin, high + margin)
        ax.plot(span, span, color=GREY, lw=0.8, zorder=1)
        ax.scatter(x, y, s=6, color=GREY, linewidths=0, rasterized=True, label="other genes")
        if len(marked):
            ax.scatter(x[marked], y[marked], s=12, color=PALETTE[5], linewidths=0,
                       label=f"top {len(marked)} DE genes")  # fmt: skip
            ax.legend(loc="upper left", handletextpad=0.2)
        if genes is not None:
            _name_points(ax, x, y, marked, genes, named, span)
        ax.set(xlim=span, ylim=span, xlabel=f"observed {quantity}",
               ylabel=f"predicted {quantity}", title=title or "")  # fmt: skip
        ax.set_aspect("equal", adjustable="box")
    return finish(ax, show=show, save=save)


def evaluation(
    table: pd.DataFrame,
    *,
    metrics: Sequence[str] | None = None,
    show: bool = False,
    save: str | Path | None = None,
) -> NDArray[np.object_]:
    """Draw the model beside the baselines, one panel per metric.

    Parameters
    ----------
    table
        What ``model.evaluate`` returns. What is no prediction, a reconstruction or the noise
        ceiling, is drawn hollow.
    metrics
        Columns to draw.
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
        If this is no such table, or a metric is missing from it.
    """
    where, source = "evaluation(table=)", "pass fcr.evaluate(adata, split)"
    given.table(table, where, source=source)
    asked = [name for name in _METRICS if name in table] if metrics is None else metrics
    chosen = given.chosen(asked, table.columns, "evaluation(metrics=)", "columns of the table")
    if not chosen:
        given.table(table, where, tuple(_METRICS), source=source)
    methods = [str(name) for name in table.index]
    with house_style():
        rows = -(-len(chosen) // 2)
        height = rows * (0.24 * len(methods) + 0.9)
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots(rows, 2, squeeze=False, sharey=True).ravel()
        for ax in axes[len(chosen) :]:
            ax.set_axis_off()
        places = np.arange(len(methods))
        for ax, metric in zip(axes, chosen, strict=False):
            values = table[metric].to_numpy(dtype=float)
            for place, method, value in zip(places, methods, values, strict=True):
                look: dict[str, Any] = {"color": PALETTE[0] if place == 0 else GREY}
                if method.startswith(YARDSTICKS):
                    look = {"facecolor": "none", "edgecolor": GREY, "hatch": "////"}
                ax.barh(place, value, height=0.7, **look)
            ax.set_yticks(places, [wrapped(_method(m), 18) for m in methods])
            ax.axvline(0, color="black", lw=0.6)
            _room_for_numbers(ax, places, values)
            ax.set_title(_METRICS.get(metric, metric))
            ax.xaxis.set_major_locator(MaxNLocator(3, prune="upper"))
        axes[0].invert_yaxis()
    return finish(axes[: len(chosen)], show=show, save=save)


def rank_histogram(
    ranks: Mapping[str, ArrayLike],
    *,
    draws: int,
    bins: int = 20,
    show: bool = False,
    save: str | Path | None = None,
) -> NDArray[np.object_]:
    """Draw the ranks of simulation-based calibration, one panel per block.

    Parameters
    ----------
    ranks
        By block, ranks from 0 to ``draws``, as ``model.simulated_ranks`` returns them.
    draws
        Draws L that a truth was ranked among.
    bins
        Bars; the grey band holds 99 % of them where the posterior is right. A hill says that it
        is too wide, a valley that it is too narrow.
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
        If these are no ranks by block, or beyond the draws.
    """
    for name, found in given.named(ranks, "rank_histogram(ranks=)", of="ranks").items():
        _within(found, draws, f"rank_histogram(ranks=)['{name}']", "ranks",
                hint="give the draws they were ranked among")  # fmt: skip
    with house_style():
        figure = Figure(figsize=(WIDTH, 2.1), layout="constrained")
        axes = figure.subplots(1, len(ranks), squeeze=False, sharey=True).ravel()
        for ax, (name, found) in zip(axes, ranks.items(), strict=True):
            values = np.ravel(np.asarray(found))
            edges = np.linspace(-0.5, draws + 0.5, min(bins, draws + 1) + 1)
            # Bins hold unequal numbers of ranks unless they divide L + 1: count each's own.
            chance = np.histogram(np.arange(draws + 1), edges)[0] / (draws + 1)
            expected = np.maximum(len(values) * chance, 1e-12)
            low, high = binom.ppf([[0.005], [0.995]], len(values), chance) / expected
            ax.fill_between(edges, np.append(low, low[-1]), np.append(high, high[-1]),
                            step="post", color="#d9d9d9", lw=0)  # fmt: skip
            ax.stairs(np.histogram(values, edges)[0] / expected, edges, color=PALETTE[0], lw=1.4)
            ax.axhline(1, color="black", lw=0.6)
            ax.set(title=symbol(name), xlabel="rank", xlim=(-0.5, draws + 0.5))
            ax.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        # The panels share it: it is set once all of them are drawn.
        axes[0].set(ylabel="share against uniform", ylim=(0, None))
    return finish(axes, show=show, save=save)


def coverage(
    positions: Mapping[str, ArrayLike],
    *,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool = False,
    save: str | Path | None = None,
) -> Axes:
    """Draw how often central intervals hold the truth, against how often they should.

    Parameters
    ----------
    positions
        By name, where the truth lies in its distribution, 0 to 1: PIT values, or ranks as
        ``(ranks + 0.5) / (draws + 1)``.
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
        Below the diagonal intervals are too narrow, above it too wide.

    Raises
    ------
    ArgumentError
        If these are no positions from 0 to 1 by name.
    """
    for name, values in given.named(positions, "coverage(positions=)", of="positions").items():
        _within(values, 1, f"coverage(positions=)['{name}']", "positions",
                hint="ranks become positions as (ranks + 0.5) / (draws + 1)")  # fmt: skip
    levels = np.linspace(0, 1, 101)
    with house_style():
        ax = own_axes(ax, height=3.4)
        ax.plot([0, 1], [0, 1], color=GREY, lw=0.8)
        for i, (name, values) in enumerate(positions.items()):
            reach = 2 * np.abs(np.ravel(np.asarray(values, dtype=float)) - 0.5)
            held = np.searchsorted(np.sort(reach), levels, side="right") / len(reach)
            ax.plot(levels, held, color=PALETTE[i % len(PALETTE)], lw=1.5,
                    ls=("-", "--", "-.", ":")[i % 4], label=symbol(name))  # fmt: skip
        ax.legend(loc="upper left")
        ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the interval",
               ylabel="share of truths inside", title=title or "")  # fmt: skip
        ax.set_aspect("equal", adjustable="box")
    return finish(ax, show=show, save=save)


def _within(values: ArrayLike, top: float, where: str, what: str, *, hint: str) -> None:
    found = np.ravel(np.asarray(values, dtype=float))
    if not found.size or not (found.min() >= 0 and found.max() <= top):
        span = f"{found.min():g} to {found.max():g}" if found.size else "none"
        expected = f"{what} from 0 to {top:g}"
        raise arguments.refused(span, where=where, expected=expected, hint=hint)


def _room_for_numbers(ax: Axes, places: NDArray[Any], values: NDArray[Any]) -> None:
    finite = values[np.isfinite(values)]
    low, high = min(0.0, *finite, 0.0), max(0.0, *finite, 0.0)
    span = (high - low) or 1.0
    ax.set_xlim(low - (0.42 * span if low < 0 else 0), high + 0.32 * span)
    for place, value in zip(places, values, strict=True):
        text = f"{value:.2f}".replace("-", "−") if np.isfinite(value) else "none"
        value = value if np.isfinite(value) else 0.0
        side = -1 if value < 0 else 1
        ax.annotate(text, (value, place), xytext=(3 * side, 0), textcoords="offset points",
                    va="center", ha="left" if side > 0 else "right", fontsize=8)  # fmt: skip


def _name_points(
    ax: Axes,
    x: NDArray[Any],
    y: NDArray[Any],
    marked: NDArray[Any],
    genes: Sequence[str],
    named: int,
    span: tuple[float, float],
) -> None:
    """Name the strongest genes whose label would not fall on another's, nor over the edge."""
    height, letter = 0.045 * (span[1] - span[0]), 0.021 * (span[1] - span[0])
    taken: list[tuple[float, float, float]] = []
    for g in marked:
        if len(taken) == named:
            break
        name = str(genes[g])
        reach = letter * (len(name) + 1)
        left = x[g] + reach > span[1]
        start = x[g] - reach if left else x[g]
        if any(abs(y[g] - b) < height and start < c and a < start + reach for a, b, c in taken):
            continue
        taken.append((start, y[g], start + reach))
        ax.annotate(
            plain(name),
            (x[g], y[g]),
            xytext=(-4 if left else 4, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=8,
            path_effects=[Stroke(linewidth=2, foreground="white"), Normal()],
        )


def _method(name: str) -> str:
    kind = re.search(r"\((noise ceiling|ceiling|positive control)\)$", name)
    return kind[1] if kind else name.replace("_", " ").removesuffix(" (reads the test cells)")
