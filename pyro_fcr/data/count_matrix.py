"""The count matrix of an AnnData, read with suspicion and a block of cells at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from scipy import sparse

from pyro_fcr.data.checks import first, nearest
from pyro_fcr.data.stored import StoredCounts, stored_matrix
from pyro_fcr.errors import CountsError, SchemaError, sentence
from pyro_fcr.reading import intact

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from numpy.typing import NDArray

__all__ = ["blocks", "name_of", "nonempty", "nonnegative", "on_disk"]

LARGEST_COUNT = 2**31
"""Counts beyond this are taken for damage, such as a wrapped or hashed integer."""

VALUES_PER_BLOCK = 2**24
"""Dense values read at a time (64 MiB in float32)."""


def name_of(layer: str | None) -> str:
    """Return how the count matrix is called in messages."""
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def on_disk(adata: AnnData, layer: str | None) -> StoredCounts | None:
    """Return the count matrix if it can be left on disk and read by cells."""
    found = _locate(adata, layer)
    return found if isinstance(found, StoredCounts) else None


def blocks(
    adata: AnnData,
    layer: str | None,
    columns: NDArray[np.int64],
    *,
    require_counts: bool,
) -> Iterator[tuple[slice, Any]]:
    """Read the count matrix a block of cells at a time, check it, and align its genes.

    Parameters
    ----------
    adata
        In memory, a view, backed, or files; it is only read.
    layer
        Name of the layer, or None for ``X``.
    columns
        Shape (G,): the positions of the genes to read, in order.
    require_counts
        Refuse what cannot be a number of molecules; else refuse only what is not finite.

    Yields
    ------
    rows, block
        A slice of cells and their values: float32, csr_matrix or C-contiguous array, (b, G).

    Raises
    ------
    CountsError
        If a value is missing, infinite, negative, fractional, or above 2**31.
    """
    matrix = _locate(adata, layer)
    n_cells, width = adata.shape
    step = max(1, VALUES_PER_BLOCK // max(width, 1))
    as_they_are = len(columns) == width and bool((columns == np.arange(width)).all())
    for start in range(0, n_cells, step):
        rows = slice(start, min(start + step, n_cells))
        block: Any = matrix.read(rows) if isinstance(matrix, StoredCounts) else matrix[rows]
        if hasattr(block, "compute"):
            block = block.compute()
        is_sparse = sparse.issparse(block)
        block = cast("Any", block.tocsr() if is_sparse else np.asarray(block))
        if not as_they_are:
            block = block[:, columns]
        if is_sparse:
            # A matrix may list one entry twice; the checks must see the sum.
            block = block.copy() if not block.has_canonical_format else block
            block.sum_duplicates()
        _check_values(block, adata, layer, start, columns, require_counts=require_counts)
        if is_sparse:
            values = sparse.csr_matrix(block, dtype=np.float32, copy=True)
            values.eliminate_zeros()
            yield rows, values
        else:
            yield rows, np.array(block, dtype=np.float32, order="C")


def nonnegative(block: Any, *, where: str) -> None:
    """Refuse negative values, which no library size can have among its parts.

    Raises
    ------
    CountsError
        If a value is negative.
    """
    values = block.data if sparse.issparse(block) else block
    smallest = values.min(initial=0.0)
    if smallest < 0:
        raise CountsError(
            sentence(
                "negative values where the library is a cell's total",
                where=where,
                expected="values of at least 0",
                got=f"{smallest:g}",
                hint="pass counts, or a likelihood of intensities such as 'normal'",
            )
        )


def nonempty(totals: NDArray[np.float64], names: NDArray[np.object_], *, where: str) -> None:
    """Refuse cells without a single molecule.

    Raises
    ------
    CountsError
        If a total is zero.
    """
    empty = np.flatnonzero(totals <= 0)
    if empty.size:
        raise CountsError(
            sentence(
                f"{empty.size} empty cells" if empty.size > 1 else "an empty cell",
                where=where,
                expected="at least one molecule in every cell over the model's genes",
                got=f"none in {first(names[empty])}",
                hint="leave them out, e.g. with scanpy.pp.filter_cells(adata, min_counts=1)",
            )
        )


def _locate(adata: AnnData, layer: str | None) -> Any:
    if layer is not None and layer not in adata.layers:
        known = _named_layers(adata)
        raise SchemaError(
            sentence(
                f"no layer {layer!r}",
                where="adata.layers",
                expected=f"one of {first(known, 12)}" if known else "a layer (there are none)",
                got=repr(layer),
                hint=nearest(layer, known, "name a layer there is, or counts=None for X"),
            )
        )
    # A view of a backed AnnData loads its own cells alone.
    matrix = adata.X if layer is None else adata.layers[layer]
    stored = stored_matrix(matrix)
    if stored is not None:
        return stored
    if matrix is None:
        raise CountsError(
            sentence(
                "no matrix",
                where="adata.X",
                expected="counts",
                got="None",
                hint=f"name a layer with Schema(counts=...); {_layers(adata)}",
            )
        )
    if sparse.issparse(matrix) and matrix.format in ("csr", "csc"):
        width = matrix.shape[matrix.format == "csr"]
        try:
            intact(matrix.indptr, matrix.indices, len(matrix.data), width)
        except ValueError as error:
            raise CountsError(
                sentence(
                    "a damaged sparse matrix",
                    where=name_of(layer),
                    expected="rows and columns inside the matrix",
                    got=str(error),
                    hint="make the matrix again, or read its file again",
                )
            ) from error
    if sparse.issparse(matrix) and matrix.format != "csr":
        return matrix.tocsr()
    return matrix


def _check_values(
    block: Any,
    adata: AnnData,
    layer: str | None,
    start: int,
    columns: NDArray[np.int64],
    *,
    require_counts: bool,
) -> None:
    values = block.data if sparse.issparse(block) else block
    where = name_of(layer)
    if values.dtype.kind not in "biuf":
        raise CountsError(
            sentence(
                "values that are not real numbers",
                where=where,
                expected="an integer or floating dtype",
                got=str(values.dtype),
                hint="convert the matrix with .astype('float32')",
            )
        )

    def refuse(bad: NDArray[np.bool_], what: str, expected: str, hint: str) -> None:
        if not bad.any():
            return
        flat = int(np.flatnonzero(bad)[0])
        if sparse.issparse(block):
            row = int(np.searchsorted(block.indptr, flat, side="right")) - 1
            place = int(block.indices[flat])
        else:
            row, place = divmod(flat, block.shape[1])
        cell, gene = adata.obs_names[start + row], adata.var_names[columns[place]]
        raise CountsError(
            sentence(
                what,
                where=where,
                expected=expected,
                got=f"{values.flat[flat]} for cell {str(cell)!r}, gene {str(gene)!r}",
                hint=hint,
            )
        )

    if values.dtype.kind == "f":
        # A float64 that overflows float32 would arrive in the model as infinity.
        too_large = np.abs(values) > np.finfo(np.float32).max
        refuse(
            ~np.isfinite(values) | too_large,
            "NaN or infinite values",
            "finite numbers",
            "fill them in or leave those cells or genes out",
        )
    if not require_counts:
        return
    if values.dtype.kind in "if":
        refuse(
            values < 0,
            "negative values",
            "counts of molecules",
            f"pass raw counts, not scaled values ({_layers(adata)}), or use a Normal likelihood",
        )
    if values.dtype.kind == "f":
        refuse(
            values != np.rint(values),
            "values that are not whole numbers",
            "counts of molecules",
            "pass raw counts with Schema(counts=<layer>), not normalised values "
            f"({_layers(adata)}), or use a Normal likelihood",
        )
    if values.dtype.itemsize >= 4:
        refuse(
            values > LARGEST_COUNT,
            "counts beyond 2**31",
            "counts of molecules",
            "look for an integer overflow upstream",
        )


def _named_layers(adata: AnnData) -> list[str]:
    # From 0.13 on, AnnData counts X among its layers, under no name.
    return [name for name in adata.layers if name is not None]


def _layers(adata: AnnData) -> str:
    known = _named_layers(adata)
    return f"the layers are {first(known)}" if known else "this AnnData has no layers"
