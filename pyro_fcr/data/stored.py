"""Cells that stay on disk: count matrices read by rows, and files in the words of an AnnData."""

from __future__ import annotations

import os
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from pyro_fcr import arguments
from pyro_fcr.errors import GeneError, LoadError, SchemaError, sentence
from pyro_fcr.reading import DAMAGE, first_line, intact, regular

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["Stored", "StoredCounts", "keep_inside", "open_data", "stored_matrix"]

GAP = 64
"""Rows that are read over rather than read around."""


class _Part(NamedTuple):
    """One matrix on disk: dense, or the three arrays of a CSR matrix."""

    shape: tuple[int, int]
    arrays: tuple[Any, ...]
    columns: NDArray[np.int64] | None = None
    source: Any = None

    @classmethod
    def of(cls, matrix: Any) -> _Part | None:
        """Return a matrix that can be read by rows, or ``None`` for any other."""
        if isinstance(matrix, ad.abc.CSRDataset):
            group = matrix.group
            with _reading(group.name):
                pointers = np.asarray(group["indptr"][:], dtype=np.int64)
                arrays = (group["data"], group["indices"], pointers)
                if pointers[0] != 0 or pointers[-1] != group["data"].shape[0]:
                    raise ValueError("rows of a sparse matrix that are not all of its values")
            return cls(tuple(matrix.shape), arrays, source=matrix)
        if type(matrix).__module__.split(".")[0] in ("h5py", "zarr") and matrix.ndim == 2:
            return cls(tuple(matrix.shape), (matrix,))
        return None

    def read(self, rows: NDArray[np.int64]) -> Any:
        """Return sorted distinct rows, in the dtype they are stored in."""
        ends = np.flatnonzero(np.diff(rows) > GAP)
        starts, stops = rows[np.append(0, ends + 1)], rows[np.append(ends, len(rows) - 1)] + 1
        pieces = []
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            with _reading(self.arrays[0].name):
                piece = self._slice(start, stop)
            wanted = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)] - start
            pieces.append(piece if len(wanted) == stop - start else piece[wanted])
        if len(self.arrays) == 1:
            found: Any = np.concatenate(pieces)
        else:
            found = sparse.vstack(pieces, format="csr") if len(pieces) > 1 else pieces[0]
        return found if self.columns is None else found[:, self.columns]

    def _slice(self, start: int, stop: int) -> Any:
        if len(self.arrays) == 1:
            return np.asarray(self.arrays[0][start:stop])
        data, indices, pointers = self.arrays
        first, last = int(pointers[start]), int(pointers[stop])
        values = (data[first:last], indices[first:last], pointers[start : stop + 1] - first)
        intact(values[2], values[1], len(values[0]), self.shape[1])
        return sparse.csr_matrix(values, shape=(stop - start, self.shape[1]))


class StoredCounts:
    """A count matrix on disk, of one file or several; rows are read when they are asked for.

    Indexed by positions, a mask or a slice it gives what a matrix in memory would: float32,
    csr_matrix or array. Positions near one another are read in one piece.

    Parameters
    ----------
    parts
        The matrices, one below the other.
    rows
        Shape (N,): which of their rows these are, in which order; all by default.
    """

    def __init__(self, parts: Sequence[_Part], rows: NDArray[np.int64] | None = None) -> None:
        self.parts = tuple(parts)
        self.rows = rows
        self._starts = np.cumsum([0, *(part.shape[0] for part in self.parts)])

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of cells and genes."""
        first = self.parts[0]
        n_cells = int(self._starts[-1]) if self.rows is None else len(self.rows)
        return n_cells, first.shape[1] if first.columns is None else len(first.columns)

    def __len__(self) -> int:
        """Return the number of cells."""
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Any:
        """Read rows into memory, as float32."""
        found = self.read(rows)
        if sparse.issparse(found):
            return sparse.csr_matrix(found, dtype=np.float32)
        return np.ascontiguousarray(found, dtype=np.float32)

    def read(self, rows: Any) -> Any:
        """Read rows (positions, a mask or a slice) in the dtype they are stored in."""
        chosen = self.positions(rows)
        order, back = np.unique(chosen, return_inverse=True)
        bounds = np.searchsorted(order, self._starts)
        pieces = [
            part.read(order[low:high] - start)
            for part, start, low, high in zip(
                self.parts, self._starts, bounds, bounds[1:], strict=False
            )
            if high > low
        ]
        if not pieces:
            return sparse.csr_matrix((0, self.shape[1]), dtype=np.float32)
        if all(sparse.issparse(piece) for piece in pieces):
            found = sparse.vstack(pieces, format="csr") if len(pieces) > 1 else pieces[0]
        else:
            found = np.concatenate(
                [piece.toarray() if sparse.issparse(piece) else piece for piece in pieces]
            )
        in_order = len(order) == len(chosen) and bool((np.diff(chosen) > 0).all())
        return found if in_order else found[back]

    def subset(self, rows: Any) -> StoredCounts:
        """Return some of the rows; nothing is read."""
        return StoredCounts(self.parts, self.positions(rows))

    def genes(self, columns: NDArray[np.int64]) -> StoredCounts:
        """Return some of the columns, in that order; nothing is read."""
        if len(columns) == self.shape[1] and bool((columns == np.arange(len(columns))).all()):
            return self
        parts = [
            part._replace(columns=columns if part.columns is None else part.columns[columns])
            for part in self.parts
        ]
        return StoredCounts(parts, self.rows)

    def in_chunks_of(self, n_cells: int) -> list[Any] | None:
        """Return the CSR matrices of Zarr stores that these are rows of, if chunks are so small.

        Nothing for any others: where a chunk holds many cells, it would be unpacked for each.
        """
        found = [part.source for part in self.parts if part.columns is None]
        for matrix in found:
            if matrix is None or not type(matrix.group).__module__.startswith("zarr"):
                return None
            data = matrix.group["data"]
            if data.chunks[0] * matrix.shape[0] > n_cells * max(1, data.shape[0]):
                return None
        return found if len(found) == len(self.parts) else None

    def positions(self, rows: Any) -> NDArray[np.int64]:
        """Return where rows (positions, a mask or a slice) stand among all those on disk."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            chosen = np.arange(start, stop, step, dtype=np.int64)
        else:
            chosen = np.asarray(rows)
            chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        return chosen if self.rows is None else self.rows[chosen]


class Stored:
    """One or several files of cells, in the words of an AnnData; the counts stay on disk.

    Parameters
    ----------
    paths
        ``.h5ad`` files or Zarr stores. Several are one below the other: they hold the same
        genes, in any order, and no cell's name twice.

    Raises
    ------
    LoadError
        If a file is missing or cannot be read.
    GeneError
        If the files hold different genes.
    """

    isbacked = True
    is_view = False

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._groups = [_open(path) for path in self.paths]
        frames = [_element(g, "obs", p) for g, p in zip(self._groups, self.paths, strict=True)]
        self._sizes = [len(frame) for frame in frames]
        self.obs: pd.DataFrame = frames[0] if len(frames) == 1 else pd.concat(map(_plain, frames))
        self.var: pd.DataFrame = _element(self._groups[0], "var", self.paths[0])
        self._columns = [None, *map(self._alignment, self._groups[1:], self.paths[1:])]

    @property
    def obs_names(self) -> pd.Index:
        """The cells' names."""
        return self.obs.index

    @property
    def var_names(self) -> pd.Index:
        """The genes' names, in the first file's order."""
        return self.var.index

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return len(self.obs)

    @property
    def n_vars(self) -> int:
        """Number of genes."""
        return len(self.var)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of cells and genes."""
        return self.n_obs, self.n_vars

    @property
    def layers(self) -> dict[str, StoredCounts]:
        """The first file's layers."""
        with _reading(self.paths[0]):
            names = list(self._groups[0]["layers"]) if "layers" in self._groups[0] else []
        return {name: self._matrix(f"layers/{name}") for name in names}

    @property
    def uns(self) -> dict[str, Any]:
        """The first file's entries that belong to no axis."""
        return self._mapping("uns")

    @property
    def varm(self) -> dict[str, Any]:
        """The first file's matrices with a row per gene."""
        return self._mapping("varm")

    def _mapping(self, key: str) -> dict[str, Any]:
        group = self._groups[0]
        return _element(group, key, self.paths[0]) if key in group else {}

    @property
    def X(self) -> StoredCounts:
        """The count matrix."""
        return self._matrix("X")

    def _matrix(self, key: str) -> StoredCounts:
        parts = []
        for group, path, columns, n_cells in zip(
            self._groups, self.paths, self._columns, self._sizes, strict=True
        ):
            with _reading(path):
                found = _lazy(group[key]) if key in group else None
                part = None if found is None else _Part.of(found)
                told = "none" if found is None else str(dict(group[key].attrs))[:120]
            if part is None:
                raise LoadError(
                    sentence(
                        "counts that cannot be read by cells",
                        where=f"{path}: {key}",
                        expected="a CSR or dense matrix",
                        got=told,
                        hint="write the matrix with adata.X = adata.X.tocsr(), or load the file",
                    )
                )
            if part.shape != (n_cells, self.n_vars):
                raise LoadError(
                    sentence(
                        "counts of other cells or genes",
                        where=f"{path}: {key}",
                        expected=f"a matrix of shape {(n_cells, self.n_vars)}, as obs and var",
                        got=f"{part.shape}",
                        hint="write the file again with adata.write_h5ad or adata.write_zarr",
                    )
                )
            parts.append(part._replace(columns=columns))
        return StoredCounts(parts)

    def _alignment(self, group: Any, path: Path) -> NDArray[np.int64] | None:
        names = _element(group, "var", path).index
        columns = names.get_indexer(self.var_names)
        if len(names) != self.n_vars or (columns < 0).any():
            raise GeneError(
                sentence(
                    "files of different genes",
                    where=str(path),
                    expected=f"the {self.n_vars} genes of {self.paths[0]}",
                    got=f"{len(names)} genes, {int((columns < 0).sum())} of those missing",
                    hint="write all files with the same genes; their order does not matter",
                )
            )
        return None if (columns == np.arange(len(columns))).all() else columns.astype(np.int64)


def open_data(data: Any) -> Any:
    """Return data to train on: an AnnData as it is; a path, or a list of them, opened.

    Parameters
    ----------
    data
        An AnnData; the path of an ``.h5ad`` file or a Zarr store; or several paths.
    """
    if isinstance(data, (str, os.PathLike)):
        return Stored([Path(data)])
    if isinstance(data, (list, tuple)):
        if not data:
            raise SchemaError(
                sentence("no files", where="adata", expected="at least one path", got="none",
                         hint="check the pattern that listed them")
            )  # fmt: skip
        return Stored([Path(path) for path in data])
    if not hasattr(data, "obs_names") or not hasattr(data, "var_names"):
        raise arguments.refused(
            data,
            where="adata",
            expected="an AnnData, the path of an .h5ad file or a Zarr store, or a list of paths",
            hint="wrap a matrix: anndata.AnnData(counts, obs=..., var=...)",
        )
    return data


def stored_matrix(matrix: Any) -> StoredCounts | None:
    """Return a matrix on disk that can be read by rows, ``None`` for any other."""
    if isinstance(matrix, StoredCounts):
        return matrix
    part = _Part.of(matrix)
    return None if part is None else StoredCounts([part])


def _open(path: Path) -> Any:
    if not path.exists():
        raise LoadError(
            sentence("no such file", where="adata", expected="an .h5ad file or a Zarr store",
                     got=str(path), hint="check the path")
        )  # fmt: skip
    with _reading(path):
        if path.is_dir():
            for folder, _, names in os.walk(path):
                for name in names:
                    regular(os.path.join(folder, name))
            return _zarr(path).open_group(str(path), mode="r")
        file = h5py.File(regular(path), "r")
        keep_inside(file, path)
        return file


def _zarr(path: Path) -> Any:
    try:
        return import_module("zarr")
    except ImportError as error:
        raise LoadError(
            sentence("Zarr is not installed", where=str(path), expected="the package zarr",
                     got="none", hint="pip install 'pyro-fcr[zarr]'")
        ) from error  # fmt: skip


@contextmanager
def _reading(path: Path | str) -> Iterator[None]:
    try:
        yield
    except LoadError:
        raise
    except DAMAGE as error:
        raise LoadError(
            sentence(
                "the file cannot be read",
                where=str(path),
                expected="an .h5ad file or Zarr store that anndata wrote",
                got=first_line(error),
                hint="write it again with adata.write_h5ad or adata.write_zarr",
            )
        ) from error


def keep_inside(file: h5py.File, path: Path) -> None:
    """Refuse an HDF5 file that would have other files read.

    Parameters
    ----------
    file
        Opened.
    path
        Where it is.

    Raises
    ------
    LoadError
        If it has an external link, a virtual data set of other files, or external storage.
    """
    groups, seen = [file["/"]], {file["/"].id}
    while groups:
        group = groups.pop()
        for name in group:
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise _escape(path, link.filename)
            found = group.get(name)
            if isinstance(found, h5py.Dataset):
                sources = found.virtual_sources() if found.is_virtual else ()
                elsewhere = [source.file_name for source in sources if source.file_name != "."]
                elsewhere += [source for source, *_ in found.external or ()]
                if elsewhere:
                    raise _escape(path, elsewhere[0])
            # A group may be its own descendant.
            elif isinstance(found, h5py.Group) and found.id not in seen:
                seen.add(found.id)
                groups.append(found)


def _escape(path: Path, to: str) -> LoadError:
    return LoadError(
        sentence(
            "the file would have another one read",
            where=str(path),
            expected="data of its own",
            got=repr(to),
            hint="copy the data into one file",
        )
    )


def _element(group: Any, key: str, path: Path) -> Any:
    with _reading(path):
        return ad.io.read_elem(group[key])


def _lazy(stored: Any) -> Any:
    kind = dict(stored.attrs).get("encoding-type", "array")
    return ad.io.sparse_dataset(stored) if kind in ("csr_matrix", "csc_matrix") else stored


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    # Files may know different categories of one column.
    return frame.astype({n: object for n, t in frame.dtypes.items() if t == "category"})
