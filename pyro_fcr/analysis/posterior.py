"""Posterior draws as labelled arrays, for xarray and ArviZ."""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pyro_fcr.analysis.draws import seeded
from pyro_fcr.model import OBSERVATION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import xarray as xr
    from torch import Tensor

    from pyro_fcr.data import Batch, Cells

__all__ = ["cell_coordinates", "fill", "fill_observed", "to_arviz"]

HELD_VALUES = 4_000_000
"""Values of all sites of a few cells that are held before they are written: 16 MB."""


class Store(Protocol):
    """What draws are written to; see :class:`pyro_fcr.io.Tree`."""

    def group(self, name: str, coords: Mapping[str, Any]) -> None:
        """Add a group with its coordinates."""

    def array(
        self,
        group: str,
        name: str,
        dims: Sequence[str],
        shape: Sequence[int],
        dtype: Any,
        *,
        chunks: Sequence[int],
    ) -> Any:
        """Add an array to be filled."""


def cell_coordinates(cells: Cells) -> dict[str, Any]:
    """Return coordinates along ``cell``: its name, and its labels under the schema's names."""
    labels = cells.obs()
    coordinates: dict[str, Any] = {"cell": np.asarray(cells.names, dtype=str)}
    for name in labels:
        values = labels[name].to_numpy()
        coordinates[name] = ("cell", values if values.dtype.kind == "f" else values.astype(str))
    return coordinates


def fill(
    store: Store,
    group: str,
    cells: Cells,
    batches: Iterable[Batch],
    *,
    shared: Callable[[Batch], Sequence[Mapping[str, Tensor]]],
    sites: Callable[[Batch, Sequence[Mapping[str, Tensor]]], Iterable[Mapping[str, Tensor]]],
    seed: int,
    separate: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write draws of sites into a store, a few cells and draws at a time.

    Parameters
    ----------
    store
        Where the arrays are made.
    group
        Its group: dimensions chain (1), draw, cell and one per site; ``counts`` has ``gene``.
    cells
        The N cells, for their names and labels.
    batches
        The same cells in order.
    shared
        The globals of each draw, from any batch.
    sites
        One draw of all sites at a time.
    seed
        Governs the draws.
    separate
        Groups of sites that stand elsewhere.
    """
    arrays: dict[str, Any] = {}
    start = 0
    for chunk, batch in enumerate(batches):
        rows = slice(start, start + len(batch))
        with seeded(seed, chunk):
            if not chunk:
                globals_ = shared(batch)
                draws = len(globals_)
            block: list[Mapping[str, Any]] = []
            for d, found in enumerate(sites(batch, globals_)):
                drawn = {name: value.cpu().numpy() for name, value in found.items()}
                if not arrays:
                    size = _block(drawn, globals_[0], draws)
                    arrays = _arrays(
                        store, group, cells, drawn, globals_, separate, len(batch), size
                    )
                block.append(drawn)
                if len(block) == size or d == draws - 1:
                    for name, array in arrays.items():
                        values = np.stack([one[name] for one in block])
                        array[0, d + 1 - len(block) : d + 1, rows] = values
                    block = []
        start += len(batch)


def _block(drawn: Mapping[str, Any], shared: Mapping[str, Any], draws: int) -> int:
    """Return how many draws are held, and stored in one piece."""
    values = sum(value.size for name, value in drawn.items() if name not in shared)
    return max(1, min(draws, HELD_VALUES // max(1, values)))


def _arrays(
    store: Store,
    group: str,
    cells: Cells,
    drawn: Mapping[str, Any],
    shared: Sequence[Mapping[str, Tensor]],
    separate: Mapping[str, str],
    rows: int,
    size: int,
) -> dict[str, Any]:
    """Make the arrays of one tree and write its globals; return those that cells fill."""
    draws, n = len(shared), len(cells)
    names = {name: separate.get(name, group) for name in drawn}
    for place in dict.fromkeys(names.values()):
        coords = {"chain": [0], "draw": np.arange(draws), **cell_coordinates(cells)}
        if names.get(OBSERVATION) == place:
            coords["gene"] = list(cells.design.genes)
        store.group(place, coords)
    arrays = {}
    for name, value in drawn.items():
        if name in shared[0]:
            values = np.stack([one[name].cpu().numpy() for one in shared])[None]
            dims = ("chain", "draw", *(f"{name}_dim_{i}" for i in range(value.ndim)))
            whole = store.array(
                names[name], name, dims, values.shape, values.dtype, chunks=values.shape
            )
            whole[...] = values
        else:
            last = "gene" if name == OBSERVATION else f"{name}_dim"
            arrays[name] = store.array(
                names[name],
                name,
                ("chain", "draw", "cell", last)[: value.ndim + 2],
                (1, draws, n, *value.shape[1:]),
                value.dtype,
                chunks=(1, size, rows, *value.shape[1:]),
            )
    return arrays


def fill_observed(store: Store, cells: Cells, batches: Iterable[Batch]) -> None:
    """Write the cells' counts into the group ``observed_data``, dimensions cell and gene."""
    genes = list(cells.design.genes)
    store.group("observed_data", {**cell_coordinates(cells), "gene": genes})
    array, start = None, 0
    for batch in batches:
        if array is None:
            array = store.array(
                "observed_data", OBSERVATION, ("cell", "gene"), (len(cells), len(genes)),
                np.float32, chunks=(len(batch), len(genes)),
            )  # fmt: skip
        array[start : start + len(batch)] = batch.counts.cpu().numpy()
        start += len(batch)


def to_arviz(tree: xr.DataTree) -> Any:
    """Return the draws in the container the installed ArviZ reads.

    ArviZ 1.x reads an ``xarray.DataTree`` as it is; 0.23 wants its own ``InferenceData``.

    Examples
    --------
    >>> import xarray as xr
    >>> tree = xr.DataTree.from_dict(
    ...     {"/posterior": xr.Dataset({"a": (("chain", "draw"), [[0.0]])})}
    ... )
    >>> to_arviz(tree).posterior["a"].shape
    (1, 1)
    """
    arviz = import_module("arviz")
    # Not hasattr: version 1 knows the name still, and warns.
    if "InferenceData" in vars(arviz):
        groups = {name: node.to_dataset() for name, node in tree.children.items()}
        return arviz.InferenceData(**groups)
    return tree
