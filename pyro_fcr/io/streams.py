"""Results too large for memory, written to a file as they come."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import pandas as pd

from pyro_fcr.errors import DesignError, sentence
from pyro_fcr.files import whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["cells_file"]

ROWS = 256
"""Cells in a chunk of the file."""


@contextmanager
def cells_file(
    path: str | Path,
    obs: pd.DataFrame,
    *,
    genes: Sequence[str] = (),
    shapes: Mapping[str, int],
    uns: Mapping[str, Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """Open an AnnData file whose matrices are filled by rows; it is there when all is written.

    Parameters
    ----------
    path
        An ``.h5ad`` file or a ``.zarr`` store; one that is there is replaced.
    obs
        The cells, N.
    genes
        The genes' names.
    shapes
        Width of every matrix by its place in the file, such as ``"X"``, ``"layers/sd"`` or
        ``"obsm/X_fcr_z_x"``.
    uns
        What else the file tells.

    Yields
    ------
    dict
        By place, a float32 array (N, width) on disk, written to with ``array[rows] = values``.

    Raises
    ------
    DesignError
        If the path ends in neither.
    WriteError
        If the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    if path.suffix not in (".h5ad", ".zarr"):
        raise DesignError(
            sentence("an unknown kind of file", where="out=", expected="a path that ends in .h5ad "
                     "or .zarr", got=path.name, hint="rename it")
        )  # fmt: skip
    with whole(path) as partial:
        if path.suffix == ".h5ad":
            with h5py.File(partial, "w") as file:
                yield _matrices(file, obs, genes, shapes, uns or {})
        else:
            group = import_module("zarr").open_group(str(partial), mode="w", zarr_format=2)
            yield _matrices(group, obs, genes, shapes, uns or {})


def _matrices(
    group: Any,
    obs: pd.DataFrame,
    genes: Sequence[str],
    shapes: Mapping[str, int],
    uns: Mapping[str, Any],
) -> dict[str, Any]:
    group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    with warnings.catch_warnings():
        # anndata announces new defaults of its Zarr writer.
        warnings.simplefilter("ignore", UserWarning)
        ad.io.write_elem(group, "obs", obs)
        ad.io.write_elem(group, "var", pd.DataFrame(index=pd.Index(list(genes))))
        for name in ("layers", "obsm", "varm", "obsp", "varp"):
            ad.io.write_elem(group, name, {})
        ad.io.write_elem(group, "uns", dict(uns))
    make = getattr(group, "create_array", None) or group.create_dataset
    found = {}
    for place, width in shapes.items():
        chunks = (min(ROWS, len(obs)), width)
        array = make(place, shape=(len(obs), width), dtype="float32", chunks=chunks)
        array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        found[place] = array
    return found
