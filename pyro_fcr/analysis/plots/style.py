"""What every picture shares: colours, sizes, names as they are drawn."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pyro_fcr import arguments
from pyro_fcr.files import whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Palette: TypeAlias = Mapping[str, str] | Sequence[str] | str | None

__all__ = [
    "GREY",
    "PALETTE",
    "WIDTH",
    "check_cmap",
    "colours_of",
    "finish",
    "heat",
    "house_style",
    "legend_of",
    "own_axes",
    "plain",
    "short",
    "symbol",
    "wrapped",
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


@contextmanager
def house_style() -> Iterator[None]:
    """Apply the house style inside a ``with`` block and restore what was set before."""
    with mpl.rc_context(_STYLE):
        yield


_Drawn = TypeVar("_Drawn")


def finish(drawn: _Drawn, *, show: bool, save: str | Path | None) -> _Drawn:
    """Write and show the figure of what was drawn where that is asked, and return the axes."""
    figure: Any = np.ravel(np.asarray(drawn, dtype=object))[0].figure
    with house_style():
        if save is not None:
            _save(figure, save)
        if show:
            _show(figure)
    return drawn


def _save(figure: Any, save: str | Path) -> None:
    formats = figure.canvas.get_supported_filetypes()
    ending = Path(save).suffix[1:].lower() if isinstance(save, str | PathLike) else None
    if ending not in formats:
        raise arguments.refused(
            save, where="save=", hint="save='figures/latents.png'",
            expected="a file's name that ends in ." + ", .".join(formats),
        )  # fmt: skip
    with whole(save) as partial:
        figure.savefig(partial, format=ending)


def _show(figure: Figure) -> None:
    notebook: Any = sys.modules.get("IPython")
    if notebook is not None and notebook.get_ipython() is not None:
        notebook.display.display(figure)
        return
    import matplotlib.pyplot as plt

    # pyplot adopts figures that it makes alone: let it make this one.
    def adopted(*_: Any, **__: Any) -> Figure:
        return figure

    maker: Any = adopted
    plt.figure(FigureClass=maker)
    plt.show()
    plt.close(figure)


def own_axes(ax: Axes | None, *, height: float) -> Axes:
    """Return the axes given, or those of a new figure of one column's width."""
    if ax is not None:
        return ax
    return Figure(figsize=(WIDTH, height), layout="constrained").subplots()


def heat(
    ax: Axes,
    values: NDArray[Any],
    rows: Sequence[str],
    columns: Sequence[str],
    words: NDArray[np.object_],
    *,
    label: str,
    top: float | None = None,
    steep: bool = False,
    cmap: str = "cividis",
) -> None:
    """Draw a matrix with names, words in its cells and a colour bar from 0 to ``top``."""
    check_cmap(cmap)
    finite = values[np.isfinite(values)]
    top = top or (float(finite.max()) if finite.size else 1.0) or 1.0
    colours = mpl.colormaps.get_cmap(cmap).with_extremes(bad="#e8e8e8")
    drawn = ax.imshow(values, cmap=colours, vmin=0, vmax=top, aspect="auto")
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    if steep:
        ax.tick_params(axis="x", labelrotation=90)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    for (i, j), text in np.ndenumerate(words):
        dark = np.dot(drawn.to_rgba(values[i, j])[:3], (0.299, 0.587, 0.114)) < 0.5
        ax.text(j, i, text, ha="center", va="center", color="white" if dark else "black",
                fontsize=8.5)  # fmt: skip
    if ax.figure is not None:
        bar = ax.figure.colorbar(drawn, ax=ax, label=label, fraction=0.06, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.yaxis.set_major_locator(MaxNLocator(3))


def check_cmap(cmap: Any) -> None:
    """Refuse a colour map that matplotlib does not know.

    Raises
    ------
    ArgumentError
        If it does not.
    """
    if isinstance(cmap, str) and cmap not in mpl.colormaps:
        raise arguments.refused(
            cmap, where="cmap=", expected="the name of a colour map of matplotlib's",
            hint="leave it out, or take one of matplotlib.colormaps",
        )  # fmt: skip


def _named(palette: str) -> list[Any]:
    if palette not in mpl.color_sequences:
        raise arguments.refused(
            palette, where="palette=", hint="leave it out",
            expected=f"colours, or a name of matplotlib's: {', '.join(mpl.color_sequences)}",
        )  # fmt: skip
    return mpl.color_sequences[palette]


def colours_of(
    labels: NDArray[Any], order: Sequence[str] | None, palette: Palette = None
) -> dict[str, str]:
    """Return a colour per label; the rarest go without where the palette is too short."""
    names, counts = np.unique(labels.astype(str), return_counts=True)
    if isinstance(palette, Mapping):
        return {name: palette[name] for name in (order or names.tolist()) if name in palette}
    if isinstance(palette, str):
        palette = _named(palette)
    colours = PALETTE if palette is None else palette
    common = set(names[np.argsort(-counts, kind="stable")][: len(colours)])
    kept = [name for name in (order or names.tolist()) if name in common]
    return dict(zip(kept, colours, strict=False))


def legend_of(ax: Axes, colours: Mapping[str, str], labels: NDArray[Any], **options: Any) -> None:
    """Name the colours beside the axes; labels without one are counted as others."""
    handles = [_dot(colour, short(name)) for name, colour in colours.items()]
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


def short(text: str, longest: int = 26) -> str:
    """Return a name cut to so many letters, to be drawn letter by letter."""
    return plain(text if len(text) <= longest else text[: longest - 1] + "…")


def wrapped(text: str, width: int) -> str:
    """Return a name in lines of so many letters."""
    return plain("\n".join(textwrap.wrap(text, width)) or text)


def symbol(block: str) -> str:
    """Return a block's name as a symbol with its index."""
    head, _, tail = block.partition("_")
    return f"$\\mathregular{{{head}_{{{tail}}}}}$" if head.isalpha() and tail.isalpha() else block
