"""A limit on what a description of a model may make anyone allocate."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["AllocationLimit"]


class AllocationLimit(TorchDispatchMode):
    """Refuse new tensors once they hold more numbers than a limit, before they are made.

    A few digits in a description can ask for layers larger than any machine. Whoever knows how
    many numbers the model really has, since its weights are in a file, enters this first.

    Parameters
    ----------
    numbers
        How many all new tensors together may hold.

    Raises
    ------
    MemoryError
        When they are to hold more.
    """

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.left = numbers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count what is about to be made from numbers alone."""
        kwargs = kwargs or {}
        if "device" in kwargs and not any(isinstance(arg, torch.Tensor) for arg in args):
            planned = func(*args, **{**kwargs, "device": torch.device("meta")})
            self.left -= planned.numel()
            if self.left < 0:
                raise MemoryError(f"a tensor of shape {tuple(planned.shape)} in so small a model")
        return func(*args, **kwargs)
