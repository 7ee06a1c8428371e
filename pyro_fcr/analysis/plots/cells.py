"""Pictures of latents: one block, or all of them."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pyro_fcr import arguments
from pyro_fcr.analysis.plots import given
from pyro_fcr.analysis.plots.style import (
    GREY,
    PALETTE,
    WIDTH,
    check_cmap,
    colours_of,
    finish,
    house_style,
    legend_of,
    own_axes,
    plain,
    short,
    symbol,
)
from pyro_fcr.errors import DesignError, sentence

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike, NDArray

    from pyro_fcr.analysis.plots.style import Palette

__all__ = ["latents", "overview", "principal_axes"]


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
    legend_loc: Literal["right margin", "on data"] | None = "right margin",
    order: Sequence[str] | None = None,
    palette: Palette = None,
    cmap: str = "cividis",
    size: float | None = None,
    basis: Literal["pca", "umap"] = "pca",
    show: bool = False,
    save: str | Path | None = None,
) -> Axes:
    """Draw one block's cells on its first two principal components, or on a UMAP of it.

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
    legend_loc
        Where to name the colours: beside the axes, on the middle of each label's cells, nowhere.
    order
        The labels in the order of the palette; by default that of a categorical's categories,
        else sorted.
    palette
        Colours by label, in the order of the labels, or by matplotlib's name as ``"Set2"``; safe
        to the colour-blind by default.
    cmap
        The colour map of numbers.
    size
        Area of a dot in square points; by default smaller where cells are many.
    basis
        ``"pca"`` keeps distances and spreads; ``"umap"`` (needs umap-learn) shows neighbours,
        and its distances mean nothing.
    show
        Whether to show the figure now, in a notebook or a window.
    save
        A file to write the figure to; its ending says the format.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    DesignError
        If umap-learn is asked for and not installed.
    ArgumentError
        If ``frame`` is no block's latents, ``color`` has no value for each of its cells, or
        ``basis``, ``cmap`` or ``palette`` is not known.
    """
    if not isinstance(frame, pd.DataFrame | np.ndarray):
        raise arguments.refused(
            type(frame), where="latents(frame=)", expected="one block's latents, a row per cell",
            hint="fcr.latents(adata) gives a frame for every block",
        )  # fmt: skip
    if color is not None and np.shape(color) != (len(frame),):
        raise arguments.refused(
            color, where="latents(color=)", expected=f"one value for each of {len(frame)} cells",
            hint="pass the column, as adata.obs['cell_type']",
        )  # fmt: skip
    given.chosen([basis], ["pca", "umap"], "latents(basis=)", "'pca' or 'umap'")
    check_cmap(cmap)
    with house_style():
        ax = own_axes(ax, height=3.6)
        xy = principal_axes(frame) if basis == "pca" else _umap(frame)
        area = float(np.clip(6000 / max(len(xy), 1), 1.5, 14)) if size is None else size
        # Cells of one label must not all lie on top of another's.
        shuffled = np.random.default_rng(0).permutation(len(xy))
        x, y = xy[shuffled].T
        dots: dict[str, Any] = {"s": area, "linewidths": 0, "alpha": 0.75, "rasterized": True}
        if color is None:
            ax.scatter(x, y, color=PALETTE[0], **dots)
        elif _is_number(color):
            values = np.asarray(color, dtype=float)[shuffled]
            drawn = ax.scatter(x, y, c=values, cmap=cmap, **dots)
            if legend_loc is not None and ax.figure is not None:
                ax.figure.colorbar(
                    drawn, ax=ax, label=plain(str(getattr(color, "name", "") or ""))
                )
        else:
            labels = np.asarray(color).astype(str)
            colours = colours_of(labels, order or _categories(color), palette)
            points = [colours.get(label, GREY) for label in labels[shuffled]]
            ax.scatter(x, y, c=points, **dots)
            if legend_loc == "on data":
                _name_middles(ax, xy, labels, colours)
            elif legend_loc is not None:
                legend_of(ax, colours, labels, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        axis = "PC" if basis == "pca" else "UMAP"
        ax.set(xlabel=f"{axis} 1", ylabel=f"{axis} 2", xticks=[], yticks=[], title=title or "")
    return finish(ax, show=show, save=save)


def overview(
    latents_by_block: Mapping[str, pd.DataFrame],
    obs: pd.DataFrame,
    *,
    color: str | Sequence[str],
    palette: Palette = None,
    axes: NDArray[np.object_] | None = None,
    show: bool = False,
    save: str | Path | None = None,
) -> NDArray[np.object_]:
    """Draw every block once for each of some labels: what it tells apart and what lies mixed.

    Parameters
    ----------
    latents_by_block
        What ``model.latents(adata)`` returns.
    obs
        The same cells' labels.
    color
        Columns of ``obs``, such as ``["treatment", "cell_type"]``: a column of pictures each.
    palette
        Colours by label, or in the order of the labels; safe to the colour-blind by default.
    axes
        Shape (blocks, colourings); a new figure with its legends by default.
    show
        Whether to show the figure now, in a notebook or a window.
    save
        A file to write the figure to; its ending says the format.

    Returns
    -------
    numpy.ndarray of Axes, shape (blocks, colourings)

    Raises
    ------
    ArgumentError
        If these are no latents by block, or ``obs`` has no such column or other cells.
    """
    blocks = list(
        given.named(latents_by_block, "overview(latents_by_block=)", of="a block's latents")
    )
    given.table(obs, "overview(obs=)", source="pass adata.obs")
    names = given.chosen([color] if isinstance(color, str) else color, obs.columns,
                         "overview(color=)", "columns of obs")  # fmt: skip
    with house_style():
        if axes is None:
            key = max(_key_height(colours_of(_text(obs[n]), None, palette)) for n in names)
            figure = Figure(figsize=(WIDTH, 2.1 * len(blocks) + key), layout="constrained")
            ratios = [2.1] * len(blocks) + [key]
            grid = figure.subplots(len(blocks) + 1, len(names), height_ratios=ratios,
                                   squeeze=False)  # fmt: skip
            axes = grid[:-1]
            for ax, name in zip(grid[-1], names, strict=True):
                ax.set_axis_off()
                colours = colours_of(_text(obs[name]), _categories(obs[name]), palette)
                legend_of(ax, colours, _text(obs[name]), title=short(name), loc="upper center")
        for row, block in zip(axes, blocks, strict=True):
            for ax, name in zip(row, names, strict=True):
                values = obs[name]
                kept = values if isinstance(values.dtype, pd.CategoricalDtype) else _text(values)
                title = f"{symbol(block)} by {short(name)}"
                latents(latents_by_block[block], kept, title=title, ax=ax, palette=palette,
                        legend_loc=None)  # fmt: skip
    return finish(axes, show=show, save=save)


def _text(values: pd.Series) -> NDArray[Any]:
    return values.astype(str).to_numpy()


def _key_height(colours: Mapping[str, str]) -> float:
    return 0.17 * (len(colours) + 2) + 0.15


def _categories(color: Any) -> list[str] | None:
    """Return the categories that occur, in their order, as scanpy colours them."""
    dtype = getattr(color, "dtype", None)
    if not isinstance(dtype, pd.CategoricalDtype):
        return None
    there = set(np.asarray(color).astype(str))
    return [str(name) for name in dtype.categories if str(name) in there]


def _name_middles(
    ax: Axes, xy: NDArray[Any], labels: NDArray[Any], colours: Mapping[str, str]
) -> None:
    for name in colours:
        x, y = np.median(xy[labels == name], axis=0)
        # A halo drowns among dark dots: the name stands on a ground of its own.
        ground = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5}
        ax.text(x, y, short(name), ha="center", va="center", fontsize=8.5, fontweight="bold",
                bbox=ground)  # fmt: skip


def _umap(frame: ArrayLike) -> NDArray[np.float64]:
    try:
        umap = import_module("umap")
    except ImportError:
        raise DesignError(
            sentence(
                "UMAP is not installed",
                where="latents(basis=)",
                expected="the package umap-learn",
                got="none",
                hint="pip install umap-learn, or basis='pca'",
            )
        ) from None
    x = np.asarray(frame, dtype=float)
    with warnings.catch_warnings():
        # A seed costs UMAP its threads, and it says so.
        warnings.filterwarnings("ignore", message="n_jobs value")
        mapper = umap.UMAP(n_neighbors=min(15, len(x) - 1), random_state=0)
        return np.asarray(mapper.fit_transform(x), dtype=float)


def _is_number(values: ArrayLike) -> bool:
    dtype = getattr(values, "dtype", None)
    if isinstance(dtype, pd.CategoricalDtype):
        return False
    return np.asarray(values).dtype.kind in "fiu"
