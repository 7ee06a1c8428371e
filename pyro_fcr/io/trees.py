"""Draws as trees of labelled arrays: in memory, or in a Zarr store filled as they come."""

from __future__ import annotations

from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from pyro_fcr.errors import DesignError, sentence
from pyro_fcr.files import whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Tree", "tree"]


class Tree:
    """Groups of named arrays that are made empty and filled by parts.

    Parameters
    ----------
    path
        A Zarr store to make; none: everything is held in memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._coords: dict[str, Mapping[str, Any]] = {}
        self._held: dict[str, dict[str, Any]] = {}

    def group(self, name: str, coords: Mapping[str, Any]) -> None:
        """Add a group with its coordinates, as ``xarray.Dataset(coords=)`` takes them."""
        self._coords[name], self._held[name] = coords, {}
        if self._path is not None:
            labels = xr.Dataset(coords=dict(coords))
            labels.to_zarr(self._path, group=name, mode="a", zarr_format=2, consolidated=False)

    def array(
        self, group: str, name: str, dims: Sequence[str], shape: Sequence[int], dtype: Any,
        *, chunks: Sequence[int],
    ) -> Any:  # fmt: skip
        """Add an array and return it, to be filled with ``array[rows] = values``.

        Parameters
        ----------
        group, name
            Where it stands.
        dims
            The axes' names.
        shape, dtype
            Of the whole.
        chunks
            Shape of the parts it is stored in.
        """
        if self._path is None:
            made: Any = np.empty(shape, dtype)
            self._held[group][name] = (tuple(dims), made)
            return made
        parts = tuple(max(1, min(c, n)) for c, n in zip(chunks, shape, strict=True))
        store = import_module("zarr").open_group(str(self._path), mode="a", zarr_format=2)[group]
        # A fill value of zero would be read back as missing.
        made = store.create_array(
            name, shape=tuple(shape), dtype=dtype, chunks=parts, fill_value=None
        )
        made.attrs["_ARRAY_DIMENSIONS"] = list(dims)
        return made

    def held(self) -> xr.DataTree:
        """Return what is in memory."""
        return xr.DataTree.from_dict(
            {
                f"/{name}": xr.Dataset(variables, coords=dict(self._coords[name]))
                for name, variables in self._held.items()
            }
        )


@contextmanager
def tree(path: str | Path | None = None) -> Iterator[Tree]:
    """Open a tree to fill; a store on disk is there, under its name, when all is written.

    Parameters
    ----------
    path
        A ``.zarr`` store; one that is there is replaced. By default all is held in memory.

    Raises
    ------
    DesignError
        If the path ends otherwise, or zarr is not installed.
    WriteError
        If the disk is full or the folder cannot be written to.
    """
    if path is None:
        yield Tree()
        return
    path = Path(path)
    if path.suffix != ".zarr":
        raise DesignError(
            sentence("an unknown kind of store", where="out=", expected="a path that ends in "
                     ".zarr", got=path.name, hint="rename it")
        )  # fmt: skip
    try:
        zarr = import_module("zarr")
    except ImportError:
        raise DesignError(
            sentence("zarr is not installed", where="out=", expected="the package zarr",
                     got="none", hint="pip install 'pyro-fcr[zarr]'")
        ) from None  # fmt: skip
    with whole(path) as partial:
        yield Tree(partial)
        zarr.consolidate_metadata(str(partial))
