"""A training step recorded once and replayed: no Python between kernels on a CUDA device.

The recording holds the forward pass, both backward passes and both optimisers' steps. What
changes from step to step is copied into buffers that the recording reads: the minibatch, the
learning rate, the annealed weights. Random numbers advance from replay to replay, since CUDA
graphs register the generator's state. A step that cannot be recorded (a user's part that asks the
device for a value, say) is run as it is from then on, and the log says so once.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch

from pyro_fcr.data import Batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from torch import Tensor

__all__ = ["CapturedStep", "cuda_side_stream", "record_cuda"]

log = logging.getLogger(__name__)

WARM_UP = 3
"""Steps run as they are before a recording: libraries choose their kernels in them."""

SHAPES = 4
"""Most minibatch sizes that are recorded: an epoch has two, and a rare one is not worth it."""


class _Buffers:
    """Tensors at fixed addresses: a minibatch and the scalars of a step."""

    def __init__(self, batch: Batch, values: Mapping[str, float]) -> None:
        device = batch.device
        self.batch = batch._map(torch.clone)
        self.values = {name: torch.tensor(float(v), device=device) for name, v in values.items()}

    def load(self, batch: Batch, values: Mapping[str, float]) -> None:
        """Copy a step's numbers in, without changing an address."""
        for field in fields(Batch):
            if field.name != "n_cells":
                getattr(self.batch, field.name).copy_(getattr(batch, field.name))
        for name, value in values.items():
            self.values[name].fill_(value)


class CapturedStep:
    """Runs a step by replaying a recording of it, one per minibatch size.

    Parameters
    ----------
    advance
        The step: from a batch and its scalars, as tensors, to a record of tensors. It must not
        ask the device for a value.
    record
        Records a function without running it, and returns what runs it and the function's
        result, whose tensors every run overwrites.
    aside
        Entered around the steps that are run before a recording.
    """

    def __init__(
        self,
        advance: Callable[[Batch, Mapping[str, Tensor]], dict[str, Tensor]],
        *,
        record: Callable[[Callable[[], Any]], tuple[Callable[[], None], Any]],
        aside: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.advance, self.record, self.aside = advance, record, aside
        self.refused = False
        self._seen: dict[Any, int] = {}
        self._recorded: dict[Any, tuple[_Buffers, Callable[[], None], dict[str, Tensor]]] = {}

    def __call__(self, batch: Batch, values: Mapping[str, float]) -> dict[str, Tensor]:
        """Take one step; the record is overwritten by the next."""
        shape = (len(batch), batch.n_cells)
        if shape not in self._recorded:
            self._seen[shape] = self._seen.get(shape, 0) + 1
            ready = self._seen[shape] > WARM_UP and len(self._recorded) < SHAPES
            if self.refused or not ready or not self._try(shape, batch, values):
                given = _Buffers(batch, values)
                with self.aside():
                    return self.advance(given.batch, given.values)
        buffers, replay, result = self._recorded[shape]
        buffers.load(batch, values)
        replay()
        return result

    def _try(self, shape: Any, batch: Batch, values: Mapping[str, float]) -> bool:
        buffers = _Buffers(batch, values)
        try:
            replay, result = self.record(lambda: self.advance(buffers.batch, buffers.values))
        except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning("the step cannot be recorded and runs as it is: %s", reason)
            self.refused = True
            return False
        self._recorded[shape] = (buffers, replay, result)
        return True


def record_cuda(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Record a function's kernels as a CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        result = function()
    return graph.replay, result


@contextmanager
def cuda_side_stream() -> Iterator[None]:
    """Run on a stream of its own, as CUDA asks for what precedes a recording."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)
