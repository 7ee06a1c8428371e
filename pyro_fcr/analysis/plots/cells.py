"""Pictures of latents: one block, or all of them."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pyro_fcr.analysis.plots.style import (
    GREY,
    PALETTE,
    WIDTH,
    colours_of,
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

    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike, NDArray

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
    legend: bool = True,
    order: Sequence[str] | None = None,
    basis: Literal["pca", "umap"] = "pca",
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
    legend
        Whether to name the colours.
    order
        The labels in the order of the palette; sorted by default.
    basis
        ``"pca"`` keeps distances and spreads; ``"umap"`` (needs umap-learn) shows neighbours,
        and its distances mean nothing.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    DesignError
        If umap-learn is asked for and not installed.
    """
    with house_style():
        ax = own_axes(ax, height=3.6)
        xy = principal_axes(frame) if basis == "pca" else _umap(frame)
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
            colours = colours_of(labels, order)
            points = [colours.get(label, GREY) for label in labels[shuffled]]
            ax.scatter(x, y, c=points, **dots)
            if legend:
                legend_of(ax, colours, labels, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        axis = "PC" if basis == "pca" else "UMAP"
        ax.set(xlabel=f"{axis} 1", ylabel=f"{axis} 2", xticks=[], yticks=[], title=title or "")
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
            shown = max(len(colours_of(labels, None)) for labels in colourings.values())
            key = 0.17 * (shown + 1) + 0.15
            figure = Figure(figsize=(WIDTH, 2.1 * len(blocks) + key), layout="constrained")
            ratios = [2.1] * len(blocks) + [key]
            grid = figure.subplots(len(blocks) + 1, 2, height_ratios=ratios, squeeze=False)
            axes = grid[:-1]
            for ax, (name, labels) in zip(grid[-1], colourings.items(), strict=True):
                ax.set_axis_off()
                legend_of(
                    ax, colours_of(labels, None), labels, title=short(name), loc="upper center"
                )
        for row, block in zip(axes, blocks, strict=True):
            for ax, (name, labels) in zip(row, colourings.items(), strict=True):
                title = f"{symbol(block)} by {short(name)}"
                latents(latents_by_block[block], labels, title=title, ax=ax, legend=False)
    return axes


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
