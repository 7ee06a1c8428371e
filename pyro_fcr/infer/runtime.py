"""How a step is computed: device, threads, precision of the networks, compilation."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from pyro_fcr import arguments
from pyro_fcr.errors import FitError, sentence
from pyro_fcr.nn import MLP, ParallelMLP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

__all__ = ["PRECISIONS", "compiled", "default_threads", "networks_at", "resolve_device", "threads"]

PRECISIONS = ("float32", "tf32", "bf16")

VALUES_PER_THREAD = 2**23
"""Cells × genes of a step that keep one thread busy: below, more threads wait for one another."""


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Return a device from its name; ``"auto"`` takes CUDA, then MPS, then the CPU.

    Of several processes on a machine each takes the CUDA device of its own number.
    """
    if str(device) == "auto" and torch.cuda.is_available():
        device = "cuda"
    if str(device) == "cuda" and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if str(device) != "auto":
        try:
            found = torch.device(device)
            torch.empty(0, device=found)
        except (RuntimeError, AssertionError, TypeError) as error:
            raise arguments.refused(
                device,
                where="device=",
                expected="'auto', 'cpu', or a device that this torch has",
                hint="leave it at 'auto'",
            ) from error
        return found
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def default_threads(values: int) -> int:
    """Return how many threads a step of so many cells × genes uses on a CPU.

    One for steps of usual size: two threads gain little on an idle machine and lose a factor of
    ten where their cores are shared (``benchmarks/EXPERIMENTS.md``).

    Parameters
    ----------
    values
        Cells × genes of a step.
    """
    return max(1, min(torch.get_num_threads(), values // VALUES_PER_THREAD))


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Use so many threads of the CPU inside the context.

    Raises
    ------
    FitError
        If the number is not positive.
    """
    if number < 1:
        raise FitError(
            sentence("no thread to train with", where="fit(threads=)", expected="at least 1",
                     got=str(number), hint="leave it at 'auto'")
        )  # fmt: skip
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def networks_at(precision: str, module: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluate the networks inside a module at a precision; all else stays float32.

    Parameters
    ----------
    precision
        ``"float32"``; ``"tf32"``, which rounds the factors of float32 products on CUDA; or
        ``"bf16"``, which evaluates networks in bfloat16 and hands on float32.
    module
        Whose networks.
    device
        Where they are.

    Raises
    ------
    FitError
        If there is no such precision.
    """
    if precision not in PRECISIONS:
        raise FitError(
            sentence("an unknown precision", where="fit(precision=)",
                     expected=f"one of {list(PRECISIONS)}", got=repr(precision),
                     hint="leave it at 'float32'")
        )  # fmt: skip
    if precision == "tf32":
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
        return
    handles = []
    if precision == "bf16":
        for network in _networks(module):
            region = torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
            handles += [
                network.register_forward_pre_hook(_entering(region)),
                network.register_forward_hook(_leaving(region), always_call=True),
            ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def compiled(module: nn.Module, *, wanted: bool) -> Iterator[None]:
    """Compile the networks inside a module with ``torch.compile``, if wanted."""
    found = _networks(module) if wanted else []
    for network in found:
        network.compile()
    try:
        yield
    finally:
        for network in found:
            network._compiled_call_impl = None


def _networks(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, MLP | ParallelMLP)]


def _entering(region: Any) -> Any:
    def enter(*_: Any) -> None:
        region.__enter__()

    return enter


def _leaving(region: Any) -> Any:
    def leave(_module: Any, _inputs: Any, output: Any) -> Any:
        region.__exit__(None, None, None)
        if isinstance(output, list):
            return [tensor.float() for tensor in output]
        return None if output is None else output.float()

    return leave
