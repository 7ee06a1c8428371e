"""From latents to observations: the decoder, the noise, and a place to keep the cells."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import scipy.sparse as sp

from pyro_fcr.errors import SchemaError, sentence
from pyro_fcr.files import whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]

__all__ = ["chunks", "collect", "decode", "observe"]

CELLS_PER_CHUNK = 2048


def chunks(n: int) -> Iterator[slice]:
    """Yield rows of n cells, a few thousand at a time."""
    return (slice(i, min(i + CELLS_PER_CHUNK, n)) for i in range(0, n, CELLS_PER_CHUNK))


def decode(
    z_nd: Floats,
    library_n: Floats,
    batch_n: NDArray[np.integer[Any]] | None,
    mixing: Mapping[str, Any],
    observation: str,
) -> Floats:
    """Mean expression of cells: library · softmax(f(z)), or f(z) itself where "gaussian".

    Parameters
    ----------
    z_nd
        All blocks side by side (cells, d).
    library_n, batch_n
        Library size and batch of each cell.
    mixing
        ``center`` and ``spread`` of the latents, then either a ``loading`` (d, genes), or the maps
        ``first``, ``second`` and ``out`` with leaky ReLU 0.2 between; the genes' ``offset``; a
        ``batch_offset`` (batches, genes) where batches matter.
    observation
        "negative_binomial" or "gaussian".
    """
    logits = _logits(z_nd, mixing)
    if batch_n is not None:
        logits = logits + mixing["batch_offset"][batch_n]
    if observation == "gaussian":
        return logits
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p * (library_n / p.sum(1))[:, None]


def observe(
    z_nd: Floats,
    library_n: Floats,
    batch_n: NDArray[np.integer[Any]] | None,
    simulation: Mapping[str, Any],
    rng: np.random.Generator,
) -> Iterator[Any]:
    """Draw the observations of cells chunk by chunk: csr counts, or dense values.

    Parameters
    ----------
    z_nd, library_n, batch_n
        As in `decode`.
    simulation
        ``mixing``, ``observation``, and ``theta`` (one or one per gene) or ``noise_sd``.
    rng
        The source of the noise; the chunks come in order, so the cells depend on it alone.
    """
    mixing, observation = simulation["mixing"], simulation["observation"]
    for rows in chunks(len(z_nd)):
        batch = None if batch_n is None else batch_n[rows]
        mean = decode(z_nd[rows], library_n[rows], batch, mixing, observation)
        if observation == "gaussian":
            noise = simulation["noise_sd"] * rng.standard_normal(mean.shape)
            yield (mean + noise).astype(np.float32)
        else:
            theta = simulation["theta"]
            rate = rng.standard_gamma(theta, mean.shape) * (mean / theta)
            yield sp.csr_matrix(rng.poisson(rate).astype(np.float32))


def collect(parts: Iterable[Any], adata: ad.AnnData, path: str | Path | None = None) -> ad.AnnData:
    """Give an AnnData its ``X``, in memory or, a chunk at a time, on disk.

    Parameters
    ----------
    parts
        Chunks of cells in order, all csr or all dense.
    adata
        Everything but ``X``.
    path
        A new file ``*.h5ad`` or folder ``*.zarr``; memory if not given.

    Returns
    -------
    adata
        The same, or the one on disk with ``X`` left there.

    Raises
    ------
    SchemaError
        The path has another ending, or exists already.
    """
    if path is None:
        made = list(parts)
        adata.X = sp.vstack(made, format="csr") if sp.issparse(made[0]) else np.concatenate(made)
        return adata
    path = Path(path)
    if path.suffix not in (".h5ad", ".zarr") or path.exists():
        raise SchemaError(
            sentence(
                "the simulation cannot be written",
                where="path",
                expected="a new *.h5ad file or *.zarr folder",
                got=f"{path}{', which exists' if path.exists() else ''}",
                hint="give another path",
            )
        )
    if path.suffix == ".h5ad":
        with whole(path) as partial:
            adata.write_h5ad(partial)
            with h5py.File(partial, "r+") as store:
                _fill(store, parts, adata.shape)
        return ad.read_h5ad(path, backed="r")
    import zarr

    with whole(path) as partial:
        store = zarr.open_group(partial, mode="w", zarr_format=2)
        ad.io.write_elem(store, "/", adata)
        _fill(store, parts, adata.shape)
    store = zarr.open_group(path, mode="r", zarr_format=2)
    kept = store["X"]
    adata.X = ad.io.sparse_dataset(kept) if isinstance(kept, zarr.Group) else kept
    return adata


def _fill(store: Any, parts: Iterable[Any], shape: tuple[int, int]) -> None:
    """Write chunk after chunk to ``store["X"]``, never holding more than one."""
    start = 0
    for part in parts:
        if start == 0 and "X" in store:
            del store["X"]
        if not sp.issparse(part):
            if start == 0:
                # Only h5py asks to be told that an array may grow.
                grows = {"maxshape": shape} if isinstance(store, h5py.File) else {}
                kwargs = {"chunks": part.shape, **grows}
                ad.io.write_elem(store, "X", part, dataset_kwargs=kwargs)
                store["X"].resize(shape)
            store["X"][start : start + len(part)] = part
        elif start == 0:
            # 64-bit from the first chunk on: the pointers of all cells may not fit in 32.
            part.indptr = part.indptr.astype(np.int64)
            ad.io.write_elem(store, "X", part)
        else:
            ad.io.sparse_dataset(store["X"]).append(part)
        start += part.shape[0]


def _logits(z_nd: Floats, mixing: Mapping[str, Any]) -> Floats:
    h = (z_nd - mixing["center"]) / mixing["spread"]
    if "loading" in mixing:
        return h @ mixing["loading"] + mixing["offset"]
    h = h @ mixing["first"]
    h = np.where(h > 0, h, 0.2 * h) @ mixing["second"]
    return np.where(h > 0, h, 0.2 * h) @ mixing["out"] + mixing["offset"]
