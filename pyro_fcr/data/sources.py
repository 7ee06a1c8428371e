"""Where minibatches come from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from scipy import sparse

from pyro_fcr.data.stored import StoredCounts
from pyro_fcr.errors import FitError, sentence

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from pyro_fcr.data.batch import Batch
    from pyro_fcr.data.cells import Cells

__all__ = ["BatchSource", "MemorySource", "ResidentSource", "StreamSource", "open_source"]

ANNBATCH = "pyro_fcr.data.annbatch"
"""Imported where the package of that name is installed."""

BLOCK = 128
"""Cells that are read from disk in one piece."""

ROOM = 0.4
"""Share of a CUDA device's free memory that the counts may take."""

WINDOW_VALUES = 2**25
"""Dense values of the cells among which a stream is shuffled: 16,000 cells of 2,000 genes."""


@runtime_checkable
class BatchSource(Protocol):
    """What a trainer reads minibatches from."""

    @property
    def n_cells(self) -> int:
        """Size of the population that every minibatch stands for."""
        ...

    def batches(self, *, epoch: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Yield one epoch's minibatches for one of ``world`` processes.

        What is yielded depends on the arguments alone, so a restarted run sees the same.
        """
        ...


class _Source(ABC):
    """What sources over encoded cells share: sizes, shares, refusals.

    Parameters
    ----------
    cells
        The encoded cells.
    batch_size
        Most cells in a minibatch.
    shuffle
        Draw a new order every epoch, as a function of ``seed`` and the epoch alone. An epoch is
        then cut into minibatches whose sizes differ by one at most, so that none is tiny.
        Without it, cells come in order and the last minibatch may be short.
    seed
        Seed of the orders.
    drop_last
        Yield only minibatches of exactly ``batch_size`` cells.

    Raises
    ------
    FitError
        If there are no cells, ``batch_size`` is not positive, or nothing would be yielded.
    """

    def __init__(
        self,
        cells: Cells,
        *,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1:
            raise FitError(
                sentence(
                    "an unusable batch size",
                    where="batch_size",
                    expected="a positive whole number",
                    got=repr(batch_size),
                    hint="try 512",
                )
            )
        self.cells = cells
        self.batch_size = int(batch_size)
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.n_batches()

    @property
    def n_cells(self) -> int:
        """The number of cells."""
        return len(self.cells)

    def n_batches(self, *, world: int = 1) -> int:
        """Return how many minibatches an epoch has, for each of ``world`` processes.

        Raises
        ------
        FitError
            If there would be none.
        """
        share = self.n_cells // world
        rounding = math.floor if self.drop_last else math.ceil
        number = rounding(share / self.batch_size)
        if number < 1:
            raise FitError(
                sentence(
                    "no minibatch to train on",
                    where=type(self).__name__,
                    expected=f"at least {self.batch_size if self.drop_last else 1} cells for each "
                    f"of {world} process{'es' if world > 1 else ''}",
                    got=f"{share}",
                    hint="use a smaller batch_size, drop_last=False, or fewer processes",
                )
            )
        return number

    def batches(self, *, epoch: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Yield one epoch's minibatches.

        Parameters
        ----------
        epoch
            Number of the epoch; with ``seed``, it fixes the order.
        rank, world
            Which of how many processes this is. Their cells are disjoint and equally many; the
            fewer than ``world`` cells left over are other ones every epoch when shuffled.

        Raises
        ------
        FitError
            If ``rank`` is not one of ``world``, or a process would get no minibatch.
        """
        if not 0 <= rank < world:
            raise FitError(
                sentence(
                    "no such process",
                    where=f"{type(self).__name__}.batches",
                    expected=f"a rank from 0 to {world - 1}",
                    got=repr(rank),
                    hint="pass rank and world of the process group",
                )
            )
        number = self.n_batches(world=world)
        order = self._order(epoch)[: self.n_cells - self.n_cells % world]
        return self._cut(self._share(order, rank, world), number, epoch)

    def _pieces(self, order: NDArray[np.int64], number: int) -> list[NDArray[np.int64]]:
        if self.shuffle and not self.drop_last:
            return np.array_split(order, number)
        stops = range(self.batch_size, number * self.batch_size, self.batch_size)
        return np.split(order[: number * self.batch_size], stops)

    @abstractmethod
    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Return an epoch's order of all cells."""

    @abstractmethod
    def _share(self, order: NDArray[np.int64], rank: int, world: int) -> NDArray[np.int64]:
        """Return one process's cells of an order whose length ``world`` divides."""

    @abstractmethod
    def _cut(self, order: NDArray[np.int64], number: int, epoch: int) -> Iterator[Batch]:
        """Yield the minibatches of a process's cells."""


class MemorySource(_Source):
    """Minibatches of cells held in memory, in an order drawn over all of them."""

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(self.n_cells)
        return np.random.default_rng([self.seed, epoch]).permutation(self.n_cells)

    def _share(self, order: NDArray[np.int64], rank: int, world: int) -> NDArray[np.int64]:
        return order[rank::world]

    def _cut(self, order: NDArray[np.int64], number: int, epoch: int) -> Iterator[Batch]:
        for rows in self._pieces(order, number):
            yield self.cells.batch(rows)


class StreamSource(_Source):
    """Minibatches of cells on disk, at constant memory.

    Blocks of neighbouring cells come in an order drawn for the epoch; the cells of a window of
    many blocks are shuffled among each other. While a window is used, a thread reads the next.
    Processes read different blocks.
    """

    def _order(self, epoch: int) -> NDArray[np.int64]:
        order = np.arange(self.n_cells)
        if not self.shuffle:
            return order
        blocks = np.split(order, range(BLOCK, self.n_cells, BLOCK))
        drawn = np.random.default_rng([self.seed, epoch]).permutation(len(blocks))
        return np.concatenate([blocks[block] for block in drawn])

    def _share(self, order: NDArray[np.int64], rank: int, world: int) -> NDArray[np.int64]:
        share = len(order) // world
        return order[rank * share : (rank + 1) * share]

    def _cut(self, order: NDArray[np.int64], number: int, epoch: int) -> Iterator[Batch]:
        size = max(self.batch_size, WINDOW_VALUES // self.cells.counts.shape[1])
        if self.shuffle:
            rng = np.random.default_rng([self.seed, epoch, int(order[0])])
            starts = range(0, len(order), size)
            order = np.concatenate([rng.permutation(order[i : i + size]) for i in starts])
        pieces = self._pieces(order, number)
        each = max(1, size // self.batch_size)
        windows = [pieces[i : i + each] for i in range(0, len(pieces), each)]
        for rows, counts in zip(pieces, self._read(windows), strict=True):
            yield self.cells.batch(rows, counts=counts)

    def _read(self, windows: Sequence[Sequence[NDArray[np.int64]]]) -> Iterator[Any]:
        """Yield each minibatch's counts; windows are what is held in memory at a time."""
        with ThreadPoolExecutor(1) as reader:

            def read(window: Sequence[NDArray[np.int64]]) -> Any:
                return reader.submit(self.cells.counts.__getitem__, np.concatenate(window))

            ahead = read(windows[0])
            for i, window in enumerate(windows):
                counts = ahead.result()
                if i + 1 < len(windows):
                    ahead = read(windows[i + 1])
                stops = np.cumsum([len(rows) for rows in window])
                for rows, stop in zip(window, stops, strict=True):
                    yield counts[stop - len(rows) : stop]


class ResidentSource(MemorySource):
    """Minibatches of cells whose data are held on a device and gathered there.

    Sparse counts stay sparse: a minibatch's rows are laid side by side, padded to the longest
    row of all, and scattered into a dense matrix, which asks the device for nothing.
    The minibatches are those of :class:`MemorySource`.

    Parameters
    ----------
    device
        Where to hold them. The other parameters are those of :class:`MemorySource`.
    """

    def __init__(self, cells: Cells, *, device: torch.device, **options: Any) -> None:
        super().__init__(cells, **options)
        self.device = device
        bare = replace(cells, counts=np.zeros((len(cells), 0), np.float32))
        self._labels = bare.batch().to(device)
        counts = cells.counts
        self._n_genes = counts.shape[1]
        self._sparse = sparse.issparse(counts)
        if self._sparse:
            self._longest = max(1, int(np.diff(counts.indptr).max()))
            arrays = (counts.indptr.astype(np.int64), counts.indices.astype(np.int32), counts.data)
            self._arrays = tuple(torch.from_numpy(array).to(device) for array in arrays)
        else:
            self._arrays = (torch.from_numpy(np.asarray(counts)).to(device),)

    def _cut(self, order: NDArray[np.int64], number: int, epoch: int) -> Iterator[Batch]:
        where = torch.from_numpy(np.ascontiguousarray(order)).to(self.device)
        start = 0
        for rows in self._pieces(order, number):
            at = where[start : start + len(rows)]
            yield self._labels.rows(at).replace(counts=self._gather(at))
            start += len(rows)

    def _gather(self, at: Tensor) -> Tensor:
        if not self._sparse:
            return self._arrays[0][at]
        pointers, genes, values = self._arrays
        place = pointers[at][:, None] + torch.arange(self._longest, device=self.device)
        inside = place < pointers[at + 1][:, None]
        place = place.clamp(max=len(values) - 1)
        dense = torch.zeros(len(at), self._n_genes, device=self.device)
        return dense.scatter_add_(1, genes[place].long(), values[place] * inside)


def open_source(
    cells: Cells, *, device: torch.device | None = None, **options: Any
) -> MemorySource | StreamSource:
    """Return the source of minibatches that suits where the cells' counts are.

    Parameters
    ----------
    cells
        The encoded cells.
    device
        Where the minibatches are used. On a CUDA device with room for them the counts are
        moved there once.
    options
        As for :class:`MemorySource`.
    """
    if isinstance(cells.counts, StoredCounts):
        if find_spec("annbatch") is not None and cells.counts.in_chunks_of(BLOCK):
            return import_module(ANNBATCH).AnnbatchSource(cells, **options)
        return StreamSource(cells, **options)
    if device is not None and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        counts = cells.counts
        size = 8 * counts.nnz if sparse.issparse(counts) else counts.nbytes
        if size < ROOM * free:
            return ResidentSource(cells, device=device, **options)
    return MemorySource(cells, **options)
