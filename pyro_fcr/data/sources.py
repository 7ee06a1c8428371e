"""Where minibatches come from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from pyro_fcr.errors import FitError, sentence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pyro_fcr.data.batch import Batch
    from pyro_fcr.data.cells import Cells

__all__ = ["BatchSource", "MemorySource"]


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


class MemorySource:
    """Minibatches of cells held in memory.

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
                    where="MemorySource",
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
                    where="MemorySource.batches",
                    expected=f"a rank from 0 to {world - 1}",
                    got=repr(rank),
                    hint="pass rank and world of the process group",
                )
            )
        number = self.n_batches(world=world)
        return self._cut(
            self._order(epoch)[rank : self.n_cells - self.n_cells % world : world], number
        )

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(self.n_cells)
        return np.random.default_rng([self.seed, epoch]).permutation(self.n_cells)

    def _cut(self, order: NDArray[np.int64], number: int) -> Iterator[Batch]:
        if self.shuffle and not self.drop_last:
            for rows in np.array_split(order, number):
                yield self.cells.batch(rows)
            return
        for start in range(0, number * self.batch_size, self.batch_size):
            yield self.cells.batch(order[start : start + self.batch_size])
