"""What goes wrong while a model trains: recognised, explained, survived."""

from __future__ import annotations

import math
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from pyro_fcr.errors import FitError, sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn

    from pyro_fcr.data import Batch

__all__ = [
    "LARGEST",
    "SkipLimit",
    "deferred_interrupt",
    "fitting_batch_size",
    "is_out_of_memory",
    "is_step_beyond_repair",
    "named",
    "not_finite_cells",
    "not_finite_genes",
    "smaller_batch",
]

LARGEST = 512
"""Cells of a step, at most, where the memory chooses: more would be another training."""

NAMED = 5
"""Cells and genes that an explanation names."""


class SkipLimit:
    """How many steps may be passed over: ten in a row, or a twentieth of all and at least ten.

    Parameters
    ----------
    steps
        Planned steps.
    """

    IN_A_ROW = 10

    def __init__(self, steps: int) -> None:
        self.most = max(self.IN_A_ROW, steps // 20)

    def reached(self, in_a_row: Tensor, total: Tensor) -> bool:
        """Return whether as many were passed over as may be."""
        return bool((in_a_row >= self.IN_A_ROW) | (total >= self.most))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory is used up, on a device or on the host."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError)
        and ("can't allocate memory" in text or "not enough memory" in text)
    )


def is_step_beyond_repair(error: BaseException) -> str | None:
    """Return what has been lost that no further step can do without, or ``None``.

    Parameters
    ----------
    error
        What a step raised.
    """
    text = str(error)
    if "CUDA error" in text or "MPS backend" in text:
        return "the device"
    lost = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")
    of_group = distributed.is_available() and isinstance(error, distributed.DistError)
    if of_group or any(word in text for word in lost):
        return "another process of the run"
    return None


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Hold a Ctrl-C back until somebody asks; a second one does not wait.

    An interrupt in the middle of a step, or while axes are turned, would leave weights that
    belong to no step. Only Python's own handler is replaced, and only in the main thread.

    Yields
    ------
    Whether an interrupt has come.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    asked = False

    def hold(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            signal.default_int_handler(number, frame)
        asked = True

    signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def fitting_batch_size(
    objective: nn.Module,
    batch_of: Callable[[int], Batch],
    *,
    agree: Callable[[bool], bool] = bool,
) -> int:
    """Return the largest of 512, 256, 128, ... cells whose step fits into memory.

    A step's gradients are made and forgotten; weights and random state stay as they were.

    Parameters
    ----------
    objective
        On the device where it trains.
    batch_of
        A minibatch of at most so many cells.
    agree
        From whether it fits here to whether it fits everywhere.

    Raises
    ------
    FitError
        If not even one cell fits.
    """
    size = LARGEST
    while size:
        if agree(_fits(objective, batch_of, size)):
            return size
        size //= 2
    raise FitError(
        sentence("out of memory", where="fit(batch_size='auto')", expected="a step of one cell to "
                 "fit", got="too little memory for it", hint="use fewer genes, a smaller hidden=, "
                 "or a device with more memory")
    )  # fmt: skip


def _fits(objective: nn.Module, batch_of: Callable[[int], Batch], size: int) -> bool:
    parameters = list(objective.parameters())
    device = parameters[0].device
    objective.train()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            # The optimiser keeps two numbers a weight.
            kept = [torch.empty_like(p) for p in parameters for _ in range(2)]
            objective(batch_of(size).to(device)).loss.backward()
            kept.clear()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        fits = False
    else:
        fits = True
    finally:
        for parameter in parameters:
            parameter.grad = None
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return fits


@torch.no_grad()
def not_finite_cells(objective: Callable[[Batch], Any], batch: Batch) -> list[int]:
    """Return the rows of a batch on which the objective is not finite, each cell alone."""
    rows = [torch.tensor([row]) for row in range(len(batch))]
    return [int(row) for row in rows if not _finite(objective, batch.rows(row))]


@torch.no_grad()
def not_finite_genes(objective: Callable[[Batch], Any], cell: Batch) -> list[int]:
    """Return the genes whose counts alone make the objective not finite.

    Halves of the genes are left out in turn. There are none to tell where the objective is not
    finite on no counts at all, or where genes do it only together.

    Parameters
    ----------
    objective
        Evaluated on the cell with all other counts at zero.
    cell
        One cell.
    """

    def bad(genes: list[int]) -> bool:
        counts = torch.zeros_like(cell.counts)
        counts[:, genes] = cell.counts[:, genes]
        return not _finite(objective, cell.replace(counts=counts))

    if bad([]):
        return []
    found: list[int] = []
    waiting = [list(range(cell.counts.shape[-1]))]
    while waiting and len(found) < NAMED:
        genes = waiting.pop()
        if not bad(genes):
            continue
        if len(genes) == 1:
            found += genes
        else:
            waiting += [genes[len(genes) // 2 :], genes[: len(genes) // 2]]
    return found


def _finite(objective: Callable[[Batch], Any], batch: Batch) -> bool:
    return math.isfinite(float(objective(batch).loss))


def named(kind: str, positions: Sequence[int], names: Sequence[str] | None) -> str:
    """Return what an explanation says of some cells or genes: a few names, and how many more.

    Parameters
    ----------
    kind
        Such as ``"cells"``.
    positions
        Theirs.
    names
        All names; the positions stand for themselves without.
    """
    told = [names[i] if names else i for i in positions]
    more = f" and {len(told) - NAMED} more" if len(told) > NAMED else ""
    return f"{kind} {told[:NAMED]}{more}"


def smaller_batch(cells: int) -> str:
    """Return what to do where a step of so many cells does not fit."""
    return f"use batch_size={max(1, cells // 2)} or 'auto', which finds one that fits"
