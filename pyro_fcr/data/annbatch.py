"""Zarr stores read by annbatch, which asks for many chunks at a time; it needs Python 3.12."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from annbatch import Loader
from annbatch.abc import Sampler
from scipy import sparse

from pyro_fcr.data.sources import StreamSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["AnnbatchSource"]


class AnnbatchSource(StreamSource):
    """The minibatches of a :class:`StreamSource`, read by annbatch."""

    def _read(self, windows: Sequence[Sequence[NDArray[np.int64]]]) -> Iterator[Any]:
        counts = self.cells.counts
        loader = Loader(batch_sampler=_Windows([[counts.positions(rows) for rows in window]
                                                for window in windows]))  # fmt: skip
        loader.add_datasets([part.source for part in counts.parts])
        for batch in loader:
            yield sparse.csr_matrix(batch["X"], dtype=np.float32)


class _Windows(Sampler):
    """Asks for a window's cells in the order of the disk, and cuts them into its minibatches."""

    batch_size, shuffle = None, False

    def __init__(self, windows: Sequence[Sequence[NDArray[np.int64]]]) -> None:
        self.windows = windows

    def n_batches(self, n_obs: int) -> int:
        return sum(map(len, self.windows))

    def validate(self, n_obs: int) -> None:
        pass

    def _sample(self, n_obs: int) -> Iterator[dict[str, Any]]:
        for window in self.windows:
            stored, place = np.unique(np.concatenate(window), return_inverse=True)
            stops = np.cumsum([len(rows) for rows in window])
            yield {"requests": stored, "splits": np.split(place, stops[:-1])}
