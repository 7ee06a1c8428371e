"""Pictures of a fitted model: every function draws on axes it is given, or on its own figure.

Figures never pass through pyplot, so none is kept alive behind the caller's back, and matplotlib's
settings are changed inside a context alone.
"""

from __future__ import annotations

import textwrap
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "PALETTE",
    "counterfactual",
    "evaluation",
    "history",
    "house_style",
    "interaction",
    "intervals",
    "latents",
    "leakage",
    "overview",
    "plain",
    "principal_axes",
]

PALETTE = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442",
    "#332288", "#999933", "#882255", "#44AA99", "#AA4499", "#117733", "#DDCC77", "#661100",
)  # fmt: skip
"""Okabe and Ito's eight colours, then eight of Paul Tol's muted ones: safe to the colour-blind."""

GREY = "#9a9a9a"
WIDTH = 5.0
"""Width of a figure in inches: one column, still readable when shrunk to a phone."""

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.titlelocation": "left",
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "svg.fonttype": "path",
    "svg.hashsalt": "pyro_fcr",
}

_METRICS = {
    "pearson_change_top100": "Pearson of the change,\ntop 100 DE genes",
    "pearson_change_top20": "Pearson of the change,\ntop 20 DE genes",
    "pearson_change": "Pearson of the change,\nall genes",
    "r2_top100": "R² of the means,\ntop 100 DE genes",
    "r2": "R² of the means,\nall genes",
    "energy_distance": "Energy distance\n(lower is better)",
}


@contextmanager
def house_style() -> Iterator[None]:
    """Apply the house style inside a ``with`` block and restore what was set before."""
    with mpl.rc_context(_STYLE):
        yield


def principal_axes(frame: ArrayLike) -> NDArray[np.float64]:
    """Project rows on their first two principal components.

    Parameters
    ----------
    frame
        Shape (N, d); with d = 1 the second coordinate is zero.

    Returns
    -------
    Shape (N, 2).

    Examples
    --------
    >>> principal_axes([[0.0, 1.0], [0.0, 3.0]]).round(3).tolist()
    [[1.0, 0.0], [-1.0, 0.0]]
    """
    x = np.asarray(frame, dtype=float)
    x = x - x.mean(axis=0)
    _, _, axes = np.linalg.svd(x, full_matrices=False)
    # A component's sign is arbitrary: fix it, so that the same latents give the same picture.
    strongest = np.abs(axes).argmax(axis=1)
    axes = axes * np.where(axes[np.arange(len(axes)), strongest] < 0, 1.0, -1.0)[:, None]
    scores = np.zeros((len(x), 2))
    kept = min(2, len(axes))
    scores[:, :kept] = x @ axes[:kept].T
    return scores


def latents(
    frame: pd.DataFrame,
    color: ArrayLike | None = None,
    *,
    title: str | None = None,
    ax: Axes | None = None,
    legend: bool = True,
    order: Sequence[str] | None = None,
) -> Axes:
    """Draw one block's cells on its first two principal components.

    Parameters
    ----------
    frame
        Latents of a block, one row per cell.
    color
        One value per cell: labels take the palette, numbers a colour map.
    title
        What to write above.
    ax
        Where to draw; a new figure by default.
    legend
        Whether to name the colours.
    order
        The labels in the order of the palette; sorted by default.

    Returns
    -------
    matplotlib.axes.Axes
    """
    with house_style():
        ax = _axes(ax, height=3.6)
        xy = principal_axes(frame)
        size = float(np.clip(6000 / max(len(xy), 1), 1.5, 14))
        # Cells of one label must not all lie on top of another's.
        shuffled = np.random.default_rng(0).permutation(len(xy))
        x, y = xy[shuffled].T
        dots: dict[str, Any] = {"s": size, "linewidths": 0, "alpha": 0.75, "rasterized": True}
        if color is None:
            ax.scatter(x, y, color=PALETTE[0], **dots)
        elif _is_number(color):
            values = np.asarray(color, dtype=float)[shuffled]
            drawn = ax.scatter(x, y, c=values, cmap="cividis", **dots)
            if legend and ax.figure is not None:
                ax.figure.colorbar(
                    drawn, ax=ax, label=plain(str(getattr(color, "name", "") or ""))
                )
        else:
            labels = np.asarray(color).astype(str)
            colours = _colours(labels, order)
            points = [colours.get(label, GREY) for label in labels[shuffled]]
            ax.scatter(x, y, c=points, **dots)
            if legend:
                _legend(ax, colours, labels, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        ax.set(xlabel="PC 1", ylabel="PC 2", xticks=[], yticks=[], title=title or "")
    return ax


def overview(
    latents_by_block: Mapping[str, pd.DataFrame],
    obs: pd.DataFrame,
    *,
    treatment: str,
    covariate: str | Sequence[str],
    axes: NDArray[np.object_] | None = None,
) -> NDArray[np.object_]:
    """Draw every block twice, coloured by treatment and by covariate.

    Parameters
    ----------
    latents_by_block
        What ``model.latents(adata)`` returns.
    obs
        The same cells' labels.
    treatment, covariate
        Columns of ``obs``; several covariates are joined.
    axes
        Shape (blocks, 2); a new figure by default.

    Returns
    -------
    numpy.ndarray of Axes, shape (blocks, 2)
    """
    names = [covariate] if isinstance(covariate, str) else list(covariate)
    joined = obs[names].astype(str).agg(" | ".join, axis=1).to_numpy()
    colourings = {treatment: obs[treatment].astype(str).to_numpy(), " | ".join(names): joined}
    blocks = list(latents_by_block)
    with house_style():
        if axes is None:
            shown = max(len(_colours(labels, None)) for labels in colourings.values())
            key = 0.17 * (shown + 1) + 0.15
            figure = Figure(figsize=(WIDTH, 2.1 * len(blocks) + key), layout="constrained")
            ratios = [2.1] * len(blocks) + [key]
            grid = figure.subplots(len(blocks) + 1, 2, height_ratios=ratios, squeeze=False)
            axes = grid[:-1]
            for ax, (name, labels) in zip(grid[-1], colourings.items(), strict=True):
                ax.set_axis_off()
                _legend(ax, _colours(labels, None), labels, title=_short(name), loc="upper center")
        for row, block in zip(axes, blocks, strict=True):
            for ax, (name, labels) in zip(row, colourings.items(), strict=True):
                title = f"{_symbol(block)} by {_short(name)}"
                latents(latents_by_block[block], labels, title=title, ax=ax, legend=False)
    return axes


def history(table: pd.DataFrame) -> NDArray[np.object_]:
    """Draw the training curves, one panel for each kind of term.

    Parameters
    ----------
    table
        What ``model.fit`` returns. Solid: training cells; dashed: validation cells.

    Returns
    -------
    numpy.ndarray of Axes
    """
    panels = _panels(table)
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
            curves = table[list(columns.values())].to_numpy()
            positive = curves[np.isfinite(curves)]
            if positive.size and positive.min() > 0 and positive.max() > 30 * positive.min():
                ax.set_yscale("log")
            if len(columns) > 1:
                ax.legend(loc="best", handlelength=1.2, labelspacing=0.2)
            ax.set(title=title, xlabel="epoch", ylabel=unit)
            ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return axes[: len(panels)]


def leakage(table: pd.DataFrame, *, title: str | None = None, ax: Axes | None = None) -> Axes:
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

    Returns
    -------
    matplotlib.axes.Axes
    """
    blocks = list(dict.fromkeys(table["block"]))
    questions = list(dict.fromkeys(table["question"]))
    share = ((table["score"] - table["chance"]) / (1 - table["chance"])).clip(0, 1)
    grid = np.full((len(blocks), len(questions)), np.nan)
    words = np.full(grid.shape, "", dtype=object)
    for row, value in zip(table.to_dict("records"), share, strict=True):
        place = blocks.index(row["block"]), questions.index(row["question"])
        grid[place] = value
        words[place] = f"{row['score']:.2f}\nchance {row['chance']:.2f}"
    with house_style():
        ax = _axes(ax, height=0.75 * len(blocks) + 1.2)
        _heat(ax, grid, [_symbol(b) for b in blocks], [_wrapped(q, 22) for q in questions], words,
              label="share of the way from\nchance to perfect", top=1.0)  # fmt: skip
        ax.set_title(title or "")
    return ax


def interaction(table: pd.DataFrame, *, title: str | None = None, ax: Axes | None = None) -> Axes:
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

    Returns
    -------
    matplotlib.axes.Axes
    """
    if table.shape[1] > max(10, table.shape[0]):
        table = table.T
    values = table.to_numpy(dtype=float)
    words = np.full(values.shape, "", dtype=object)
    if values.shape[1] <= 12:
        words[:] = [[f"{v:.1f}" if np.isfinite(v) else "–" for v in row] for row in values]
    with house_style():
        longest = max((len(_short(str(c))) for c in table.columns), default=0)
        steep = longest * table.shape[1] > 45
        height = max(0.3 * len(table), 0.45) + (0.075 * longest if steep else 0.2) + 0.9
        ax = _axes(ax, height=height)
        rows, columns = ([_short(str(v)) for v in a] for a in (table.index, table.columns))
        _heat(ax, values, rows, columns, words, label="interaction\n(cell s.d.)", steep=steep)
        ax.set_title(title or "")
    return ax


def intervals(
    tables: Mapping[str, pd.DataFrame],
    genes: Sequence[str],
    *,
    title: str | None = None,
    label: str = "log2 fold change",
    ax: Axes | None = None,
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

    Returns
    -------
    matplotlib.axes.Axes
    """
    places = np.arange(len(genes), dtype=float)
    steps = (np.arange(len(tables)) - (len(tables) - 1) / 2) * 0.7 / max(len(tables), 1)
    with house_style():
        ax = _axes(ax, height=0.8 + len(genes) * max(0.2, 0.13 * len(tables)))
        ax.axvline(0, color=GREY, lw=0.8, zorder=0)
        for step, colour, (name, table) in zip(steps, PALETTE, tables.items(), strict=False):
            rows = table.loc[list(genes)]
            middle = rows["lfc"].to_numpy()
            reach = np.abs(rows[["low", "high"]].to_numpy() - middle[:, None]).T
            ax.errorbar(middle, places + step, xerr=reach, fmt="o", ms=3.5, lw=1.4, color=colour,
                        label=_short(str(name)))  # fmt: skip
        ax.set_yticks(places, [_short(str(gene)) for gene in genes])
        ax.set(ylim=(len(genes) - 0.4, -0.6), xlabel=label, title=title or "")
        if len(tables) > 1:
            ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(len(tables), 3))
    return ax


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

    Returns
    -------
    matplotlib.axes.Axes
    """
    x, y = np.asarray(observed, dtype=float), np.asarray(predicted, dtype=float)
    marked = np.asarray([] if highlight is None else highlight, dtype=int)
    with house_style():
        ax = _axes(ax, height=4.2)
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
    return ax


def evaluation(
    table: pd.DataFrame, *, metrics: Sequence[str] | None = None
) -> NDArray[np.object_]:
    """Draw the model beside the baselines, one panel per metric.

    Parameters
    ----------
    table
        What ``model.evaluate`` returns. A reconstruction is drawn hollow: it has read the cells.
    metrics
        Columns to draw.

    Returns
    -------
    numpy.ndarray of Axes
    """
    chosen = [name for name in (metrics or _METRICS) if name in table]
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
                if method.startswith("reconstruction"):
                    look = {"facecolor": "none", "edgecolor": GREY, "hatch": "////"}
                ax.barh(place, value, height=0.7, **look)
            ax.set_yticks(places, [_wrapped(_method(m), 16) for m in methods])
            ax.axvline(0, color="black", lw=0.6)
            _room_for_numbers(ax, places, values)
            ax.set_title(_METRICS.get(metric, metric))
            ax.xaxis.set_major_locator(MaxNLocator(3, prune="upper"))
        axes[0].invert_yaxis()
    return axes[: len(chosen)]


def _room_for_numbers(ax: Axes, places: NDArray[Any], values: NDArray[Any]) -> None:
    finite = values[np.isfinite(values)]
    low, high = min(0.0, *finite, 0.0), max(0.0, *finite, 0.0)
    span = (high - low) or 1.0
    ax.set_xlim(low - (0.32 * span if low < 0 else 0), high + 0.32 * span)
    for place, value in zip(places, values, strict=True):
        text = f"{value:.2f}" if np.isfinite(value) else "none"
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
    """Name the strongest genes whose label would not fall on another's."""
    height, width = 0.045 * (span[1] - span[0]), 0.16 * (span[1] - span[0])
    taken: list[tuple[float, float]] = []
    for g in marked:
        if len(taken) == named:
            break
        if all(abs(y[g] - b) > height or abs(x[g] - a) > width for a, b in taken):
            taken.append((x[g], y[g]))
            left = x[g] > span[0] + 0.75 * (span[1] - span[0])
            ax.annotate(
                plain(str(genes[g])),
                (x[g], y[g]),
                xytext=(-4 if left else 4, 0),
                textcoords="offset points",
                ha="right" if left else "left",
                va="center",
                fontsize=8,
                path_effects=[Stroke(linewidth=2, foreground="white"), Normal()],
            )


def _heat(
    ax: Axes,
    values: NDArray[Any],
    rows: Sequence[str],
    columns: Sequence[str],
    words: NDArray[np.object_],
    *,
    label: str,
    top: float | None = None,
    steep: bool = False,
) -> None:
    finite = values[np.isfinite(values)]
    top = top or (float(finite.max()) if finite.size else 1.0) or 1.0
    colours = mpl.colormaps["cividis"].with_extremes(bad="#e8e8e8")
    drawn = ax.imshow(values, cmap=colours, vmin=0, vmax=top, aspect="auto")
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    if steep:
        ax.tick_params(axis="x", labelrotation=90)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    for (i, j), text in np.ndenumerate(words):
        dark = np.isfinite(values[i, j]) and values[i, j] < 0.6 * top
        ax.text(j, i, text, ha="center", va="center", color="white" if dark else "black",
                fontsize=8.5)  # fmt: skip
    if ax.figure is not None:
        bar = ax.figure.colorbar(drawn, ax=ax, label=label, fraction=0.06, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.yaxis.set_major_locator(MaxNLocator(3))


def _panels(table: pd.DataFrame) -> dict[str, tuple[str, dict[str, str]]]:
    """Return the panels that a history has: title, then unit and columns by label."""
    skipped = {"epoch", "step", "learning_rate", "seconds", "loss", "gradient_norm", "counts"}
    columns = [c for c in table.columns if not c.startswith("valid.") and table[c].notna().any()]
    kl = {_symbol(c[3:]): c for c in columns if c.startswith("kl.")}
    accuracy = {c.removeprefix("accuracy."): c for c in columns if c.startswith("accuracy.")}
    other = [c for c in columns if c not in {*skipped, *kl.values(), *accuracy.values()}]
    made = {
        "loss": ("nats per cell", {"loss": "loss"} if "loss" in columns else {}),
        "divergence from prior": ("nats per cell", kl),
        "independence and heads": ("unweighted", {_spoken(c): c for c in other}),
        "discriminator accuracy": ("accuracy", accuracy),
        "gradient norm": ("", {"gradient": "gradient_norm"} if "gradient_norm" in columns else {}),
    }
    return {title: panel for title, panel in made.items() if panel[1]}


def _axes(ax: Axes | None, *, height: float) -> Axes:
    if ax is not None:
        return ax
    return Figure(figsize=(WIDTH, height), layout="constrained").subplots()


def _is_number(values: ArrayLike) -> bool:
    dtype = getattr(values, "dtype", None)
    if isinstance(dtype, pd.CategoricalDtype):
        return False
    return np.asarray(values).dtype.kind in "fiu"


def _colours(labels: NDArray[Any], order: Sequence[str] | None) -> dict[str, str]:
    """Return a colour per label; the rarest go without where the palette is too short."""
    names, counts = np.unique(labels.astype(str), return_counts=True)
    common = set(names[np.argsort(-counts, kind="stable")][: len(PALETTE)])
    kept = [name for name in (order or names.tolist()) if name in common]
    return dict(zip(kept, PALETTE, strict=False))


def _legend(ax: Axes, colours: Mapping[str, str], labels: NDArray[Any], **options: Any) -> None:
    handles = [_dot(colour, _short(name)) for name, colour in colours.items()]
    others = len(set(labels.astype(str)) - set(colours))
    if others:
        handles.append(_dot(GREY, f"{others} others"))
    ax.legend(handles=handles, handletextpad=0.1, labelspacing=0.25, **options)


def _dot(colour: str, label: str) -> Line2D:
    return Line2D([], [], ls="", marker="o", ms=5, color=colour, label=label)


def plain(text: str) -> str:
    """Return a name as matplotlib draws it letter by letter."""
    # A dollar sign must not start a formula, nor an underscore hide a name from the legend.
    hidden = "\u200a" if text.startswith("_") else ""
    return hidden + text.replace("$", r"\$")


def _short(text: str, longest: int = 26) -> str:
    return plain(text if len(text) <= longest else text[: longest - 1] + "…")


def _wrapped(text: str, width: int) -> str:
    return plain("\n".join(textwrap.wrap(text, width)) or text)


def _symbol(block: str) -> str:
    head, _, tail = block.partition("_")
    return f"$\\mathregular{{{head}_{{{tail}}}}}$" if head.isalpha() and tail.isalpha() else block


def _spoken(term: str) -> str:
    return plain(term).replace("_vs_", ", ").replace("_head", " head")


def _method(name: str) -> str:
    return name.replace("_", " ").removesuffix(" (reads the test cells)")
