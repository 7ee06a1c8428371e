"""Several processes as one: gradients averaged, decisions the first one's."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

__all__ = ["Ranks", "processes"]


@dataclass(frozen=True)
class Ranks:
    """A process among those that train one model; by default it is alone.

    Parameters
    ----------
    rank
        Its number. The first, 0, evaluates, decides and writes.
    world
        How many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process evaluates, decides and writes."""
        return self.rank == 0

    def seed(self, seed: int) -> int:
        """Return a seed of this process's own; the first one's is the user's."""
        return seed if self.first else (int(seed) * 1_000_003 + self.rank) % 2**63

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over the processes, in one exchange per dtype.

        The mean of the processes' gradients is the gradient of the mean of their losses, each of
        which has the whole population's ELBO as its expectation.
        """
        if self.world == 1:
            return
        # In the order of the tensors, which is the same everywhere; that of a set is not.
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            same = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in same])
            distributed.all_reduce(flat)
            parts = (flat / self.world).split([tensor.numel() for tensor in same])
            for tensor, part in zip(same, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    @torch.no_grad()
    def copy_first(self, module: nn.Module) -> None:
        """Give every process the first one's parameters and buffers."""
        if self.world > 1:
            for tensor in module.state_dict().values():
                distributed.broadcast(tensor, 0)

    def agree(self, value: Any) -> Any:
        """Return the first process's value in all of them."""
        if self.world == 1:
            return value
        held = [value]
        distributed.broadcast_object_list(held, 0)
        return held[0]

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value, in all of them."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        distributed.all_gather_object(found, value)
        return found


@contextmanager
def processes(device: torch.device) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` (or SLURM, or Ray) started, if any.

    A process group that the caller has opened is used and left open. Without one, the
    environment decides: ``WORLD_SIZE`` above 1 opens a group, NCCL on CUDA and gloo elsewhere,
    which is closed at the end.

    Parameters
    ----------
    device
        Where this process trains.
    """
    if distributed.is_available() and distributed.is_initialized():
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
