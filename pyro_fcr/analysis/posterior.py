"""Posterior draws as labelled arrays, for xarray and ArviZ."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from pyro_fcr.analysis.draws import cell_sites, draw_globals, draw_sites, seeded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pyro_fcr.data import Batch, Cells

__all__ = ["cell_coordinates", "posterior_tree", "to_arviz"]


def cell_coordinates(cells: Cells) -> dict[str, Any]:
    """Return coordinates along ``cell``: its name, and its labels under the schema's names."""
    labels = cells.obs()
    coordinates: dict[str, Any] = {"cell": np.asarray(cells.names, dtype=str)}
    for name in labels:
        values = labels[name].to_numpy()
        coordinates[name] = ("cell", values if values.dtype.kind == "f" else values.astype(str))
    return coordinates


def posterior_tree(
    guide: Callable[[Batch], Any],
    cells: Cells,
    batches: Iterable[Batch],
    *,
    draws: int,
    seed: int,
) -> xr.DataTree:
    """Draw all latent sites for the cells.

    Parameters
    ----------
    guide
        The fitted guide.
    cells
        The cells, for their names and labels.
    batches
        The same cells in order.
    draws
        Number of draws.
    seed
        Governs the draws.

    Returns
    -------
    xarray.DataTree
        Group ``posterior`` with dimensions chain (1), draw, cell and one per block; global
        sites have no ``cell`` dimension.
    """
    local: dict[str, list[np.ndarray]] = {}
    shared: dict[str, np.ndarray] = {}
    for chunk, batch in enumerate(batches):
        with seeded(seed, chunk):
            if not chunk:
                globals_ = draw_globals(guide, batch, draws)
            drawn = [
                {name: value.cpu().numpy() for name, value in sites.items()}
                for sites in draw_sites(guide, batch, globals_)
            ]
            names = cell_sites(guide, batch)
        for name in drawn[0]:
            stacked = np.stack([sites[name] for sites in drawn])
            if name in names:
                local.setdefault(name, []).append(stacked)
            else:
                shared[name] = stacked
    variables: dict[str, Any] = {}
    for name, parts in local.items():
        values = np.concatenate(parts, axis=1)[None]
        variables[name] = (("chain", "draw", "cell", f"{name}_dim"), values)
    for name, values in shared.items():
        extra = tuple(f"{name}_dim_{i}" for i in range(values.ndim - 1))
        variables[name] = (("chain", "draw", *extra), values[None])
    dataset = xr.Dataset(
        variables, coords={"chain": [0], "draw": np.arange(draws), **cell_coordinates(cells)}
    )
    return xr.DataTree.from_dict({"/posterior": dataset})


def to_arviz(tree: xr.DataTree) -> Any:
    """Return the draws in the container the installed ArviZ reads.

    ArviZ 1.x reads an ``xarray.DataTree`` as it is; 0.23 wants its own ``InferenceData``.

    Examples
    --------
    >>> tree = xr.DataTree.from_dict(
    ...     {"/posterior": xr.Dataset({"a": (("chain", "draw"), [[0.0]])})}
    ... )
    >>> to_arviz(tree).posterior["a"].shape
    (1, 1)
    """
    arviz = import_module("arviz")
    if hasattr(arviz, "InferenceData"):
        groups = {name: node.to_dataset() for name, node in tree.children.items()}
        return arviz.InferenceData(**groups)
    return tree
