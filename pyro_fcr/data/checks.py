"""Read AnnData with suspicion: every refusal of bad data is worded here."""

from __future__ import annotations

import difflib
import warnings
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
from scipy import sparse

from pyro_fcr.data.stored import StoredCounts, stored_matrix
from pyro_fcr.errors import (
    CategoryError,
    CountsError,
    DesignWarning,
    GeneError,
    SchemaError,
    sentence,
)
from pyro_fcr.reading import first_line, intact

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

__all__ = [
    "blocks",
    "cell_names",
    "column",
    "count_matrix_name",
    "first",
    "gene_columns",
    "labels",
    "nearest",
    "nonempty",
    "nonnegative",
    "numbers",
    "on_disk",
    "quoted",
    "size_factors",
    "unknown_category",
    "warn",
]

LARGEST_COUNT = 2**31
"""Counts beyond this are taken for damage, such as a wrapped or hashed integer."""

VALUES_PER_BLOCK = 2**24
"""Dense values read at a time (64 MiB in float32)."""


def quoted(name: Any, longest: int = 80) -> str:
    """Quote a name on one line, a very long one up to a point."""
    text = repr(str(name))
    return text if len(text) <= longest else f"{text[:longest]}…'"


def first(names: Iterable[Any], limit: int = 5) -> str:
    """Quote the first few names and say how many more there are."""
    every = list(names)
    shown = ", ".join(quoted(name) for name in every[:limit])
    return shown + (f" and {len(every) - limit} more" if len(every) > limit else "")


def warn(message: str, *, level: int = 5) -> None:
    """Say that a design is weak, at the line of the user's call ``level`` frames up."""
    warnings.warn(message, DesignWarning, stacklevel=level)


def nearest(name: str, known: Iterable[str], otherwise: str) -> str:
    """Say which known name is spelt most like ``name``, or else ``otherwise``."""
    every = [str(known_name) for known_name in known]
    folded = {known_name.casefold(): known_name for known_name in reversed(every)}
    close = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.6)
    return f"did you mean {folded[close[0]]!r}?" if close else otherwise


def _end(text: str) -> str:
    # A question mark before sentence()'s full stop reads as a slip.
    return text.rstrip("?")


def unknown_category(
    value: str,
    known: Sequence[str],
    *,
    where: str,
    role: str,
    otherwise: str = "leave those cells out, or train with them",
) -> CategoryError:
    """Compose the refusal of a value that the training data did not hold."""
    return CategoryError(
        sentence(
            f"unknown {role} {quoted(value)}",
            where=where,
            expected=f"one of {first(known, 12)}",
            got=quoted(value),
            hint=_end(nearest(value, known, otherwise)),
        )
    )


def column(obs: pd.DataFrame, name: str, *, role: str) -> pd.Series:
    """Return a column of ``obs`` that exists once.

    Raises
    ------
    SchemaError
        If there is no such column, or more than one.
    """
    if name not in obs.columns:
        raise SchemaError(
            sentence(
                f"no {role} column {name!r}",
                where="adata.obs",
                expected=f"one of {first(obs.columns, 12) or 'its columns (there are none)'}",
                got=repr(name),
                hint=_end(nearest(name, obs.columns, f"name the {role} column in the schema")),
            )
        )
    values = obs[name]
    if isinstance(values, pd.DataFrame):
        raise SchemaError(
            sentence(
                f"more than one column {name!r}",
                where="adata.obs",
                expected="one",
                got=str(values.shape[1]),
                hint="rename all but one",
            )
        )
    return values


def labels(obs: pd.DataFrame, name: str, *, role: str) -> tuple[NDArray[np.int64], list[str]]:
    """Read a column of labels as codes into sorted strings, whatever its dtype.

    Returns
    -------
    codes
        Shape (N,), int64.
    levels
        The labels that occur, as strings in sorted order; unused categories are none of them.

    Raises
    ------
    SchemaError
        If the column is missing or has missing values.
    """
    values = column(obs, name, role=role)
    try:
        codes, uniques = pd.factorize(values, use_na_sentinel=True)
    except TypeError as error:
        raise SchemaError(
            sentence(
                f"the {role} column {name!r} holds no labels",
                where="adata.obs",
                expected="strings, numbers or booleans",
                got=first_line(error),
                hint="give each cell one label",
            )
        ) from error
    texts = np.asarray([str(value) for value in uniques], dtype=object)
    blank = np.asarray([not text.strip() for text in texts], dtype=bool)
    missing = codes < 0
    if blank.any():
        missing |= np.append(blank, False)[codes]
    if missing.any():
        cells = obs.index[np.flatnonzero(missing)]
        raise SchemaError(
            sentence(
                f"missing values in the {role} column {name!r}",
                where="adata.obs",
                expected="a label for every cell",
                got=f"none for {len(cells)} of {len(obs)} cells ({first(cells)})",
                hint="leave those cells out or fill the column in",
            )
        )
    # Raw values may share a text (1 and "1"), so codes are made again from the texts.
    levels, recoded = np.unique(texts.astype(str), return_inverse=True)
    return recoded.astype(np.int64)[codes], [str(level) for level in levels]


def size_factors(obs: pd.DataFrame, name: str) -> NDArray[np.float32]:
    """Read the size factors, shape (N,): positive and finite.

    Raises
    ------
    SchemaError
        If the column is missing or a value is not a positive finite number.
    """
    hint = "mend the column, or leave size_factor out to use total counts"
    return _numbers(obs, name, role="size factor", positive=True, hint=hint).astype(np.float32)


def numbers(obs: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """Read a continuous covariate, shape (N,): finite.

    Raises
    ------
    SchemaError
        If the column is missing or a value is not a finite number.
    """
    hint = "mend the column, or name it among covariates if it holds labels"
    return _numbers(obs, name, role="continuous covariate", positive=False, hint=hint)


def _numbers(
    obs: pd.DataFrame, name: str, *, role: str, positive: bool, hint: str
) -> NDArray[np.float64]:
    values = pd.to_numeric(column(obs, name, role=role), errors="coerce")
    # What the model will hold must be finite too, in its own precision.
    found = values.to_numpy(dtype=np.float64, na_value=np.nan)
    single = found.astype(np.float32)
    bad = np.flatnonzero(~(np.isfinite(single) & (single > 0 if positive else True)))
    if bad.size:
        raise SchemaError(
            sentence(
                f"unusable {role}s in column {name!r}",
                where="adata.obs",
                expected=f"a {'positive ' * positive}finite number for every cell",
                got=f"{_plain(obs[name].iloc[bad[0]])!r} for cell {str(obs.index[bad[0]])!r} "
                f"({bad.size} such cells)",
                hint=hint,
            )
        )
    return found


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _repeated(names: pd.Index) -> list[str]:
    return [str(name) for name in names[names.duplicated()].unique()]


def cell_names(adata: AnnData) -> NDArray[np.object_]:
    """Return the cells' names, of which there is at least one and none twice.

    Raises
    ------
    SchemaError
        If there are no cells, or a name repeats.
    """
    if adata.n_obs == 0:
        raise SchemaError(
            sentence(
                "no cells",
                where="adata",
                expected="at least one",
                got="0",
                hint="look at the filter that made this AnnData",
            )
        )
    repeated = _repeated(adata.obs_names)
    if repeated:
        raise SchemaError(
            sentence(
                "cell names repeat",
                where="adata.obs_names",
                expected="a name of its own for every cell",
                got=f"{first(repeated)} more than once",
                hint="call adata.obs_names_make_unique()",
            )
        )
    return np.asarray([str(name) for name in adata.obs_names], dtype=object)


def gene_columns(
    adata: AnnData, genes: Sequence[str] | None = None
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Find the model's genes in ``adata``, by name; all of its genes if ``genes`` is None.

    Returns
    -------
    genes
        The names in the model's order.
    columns
        Shape (G,), int64: where each stands in ``adata``.

    Raises
    ------
    GeneError
        If ``adata`` has no genes, names repeat, or some of ``genes`` are missing.
    """
    if adata.n_vars == 0:
        raise GeneError(
            sentence(
                "no genes",
                where="adata",
                expected="at least one",
                got="0",
                hint="look at the filter that made this AnnData",
            )
        )
    repeated = _repeated(adata.var_names)
    if repeated:
        raise GeneError(
            sentence(
                "gene names repeat",
                where="adata.var_names",
                expected="a name of its own for every gene",
                got=f"{first(repeated)} more than once",
                hint="call adata.var_names_make_unique()",
            )
        )
    present = pd.Index([str(name) for name in adata.var_names])
    if genes is None:
        return tuple(present), np.arange(len(present))
    columns = np.asarray(present.get_indexer(pd.Index(list(genes))), dtype=np.int64)
    missing = [gene for gene, where in zip(genes, columns, strict=True) if where < 0]
    if missing:
        raise GeneError(
            sentence(
                f"{len(missing)} of the model's {len(genes)} genes are missing",
                where="adata.var_names",
                expected="every gene the model was trained on",
                got=f"no {first(missing)}",
                hint="add them (as zeros if they were not measured), or check the kind of gene "
                "names",
            )
        )
    return tuple(genes), columns


def count_matrix_name(layer: str | None) -> str:
    """Return how the count matrix is called in messages."""
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def _locate(adata: AnnData, layer: str | None) -> Any:
    if layer is not None and layer not in adata.layers:
        known = _named_layers(adata)
        raise SchemaError(
            sentence(
                f"no layer {layer!r}",
                where="adata.layers",
                expected=f"one of {first(known, 12)}" if known else "a layer (there are none)",
                got=repr(layer),
                hint=_end(nearest(layer, known, "name a layer there is, or counts=None for X")),
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
                    where=count_matrix_name(layer),
                    expected="rows and columns inside the matrix",
                    got=str(error),
                    hint="make the matrix again, or read its file again",
                )
            ) from error
    if sparse.issparse(matrix) and matrix.format != "csr":
        return matrix.tocsr()
    return matrix


def on_disk(adata: AnnData, layer: str | None) -> StoredCounts | None:
    """Return the count matrix if it can be left on disk and read by cells."""
    found = _locate(adata, layer)
    return found if isinstance(found, StoredCounts) else None


def _named_layers(adata: AnnData) -> list[str]:
    # From 0.13 on, AnnData counts X among its layers, under no name.
    return [name for name in adata.layers if name is not None]


def _layers(adata: AnnData) -> str:
    known = _named_layers(adata)
    return f"the layers are {first(known)}" if known else "this AnnData has no layers"


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
        _check(block, adata, layer, start, columns, require_counts=require_counts)
        if is_sparse:
            values = sparse.csr_matrix(block, dtype=np.float32, copy=True)
            values.eliminate_zeros()
            yield rows, values
        else:
            yield rows, np.array(block, dtype=np.float32, order="C")


def _check(
    block: Any,
    adata: AnnData,
    layer: str | None,
    start: int,
    columns: NDArray[np.int64],
    *,
    require_counts: bool,
) -> None:
    values = block.data if sparse.issparse(block) else block
    where = count_matrix_name(layer)
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
