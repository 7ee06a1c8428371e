"""Checkpoints: weights and optimiser state as safetensors, the rest as JSON, no pickle."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pyro_fcr.errors import LoadError, sentence

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from pyro_fcr.infer.trainer import Trainer

__all__ = ["load_checkpoint", "save_checkpoint", "write_tensors"]


def write_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write tensors and a JSON header to one file, all of it or none.

    Parameters
    ----------
    path
        The file; its folder must exist.
    tensors
        Tensors by name; copied to the CPU.
    meta
        JSON-able; kept in the file's header.
    """
    partial = path.with_name(path.name + ".partial")
    # A clone per tensor: the format refuses tensors that share memory.
    cpu = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    save_file(cpu, partial, metadata={"json": json.dumps(meta)})
    os.replace(partial, path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote.

    Raises
    ------
    LoadError
        If the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, json.loads((file.metadata() or {})["json"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise LoadError(
            sentence(
                "cannot read weights",
                where=str(path),
                expected="a safetensors file written by this package",
                got=f"{type(error).__name__}: {error}".splitlines()[0],
                hint="check that the file is complete, or train again",
            )
        ) from None


def save_checkpoint(trainer: Trainer, path: Path) -> None:
    """Write everything a run needs to go on as if it had not been interrupted."""
    tensors = {f"objective.{k}": v for k, v in trainer.objective.state_dict().items()}
    for name, optimiser in _optimisers(trainer).items():
        for index, state in optimiser.state_dict()["state"].items():
            tensors |= {f"{name}.{index}.{k}": v for k, v in state.items()}
    tensors["rng"] = torch.get_rng_state()
    if trainer.device.type == "cuda":
        tensors["rng_cuda"] = torch.cuda.get_rng_state(trainer.device)
    meta = {"epoch": trainer.epoch, "step": trainer.step_count, "history": trainer.rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, meta)


def load_checkpoint(trainer: Trainer, path: Path) -> None:
    """Put a trainer where :func:`save_checkpoint` left it.

    Raises
    ------
    LoadError
        If the checkpoint is missing, damaged, or of another model.
    """
    tensors, meta = read_tensors(path)
    weights = {k.removeprefix("objective."): v for k, v in tensors.items() if k.startswith("obj")}
    try:
        trainer.objective.load_state_dict(weights)
    except RuntimeError as error:
        raise LoadError(
            sentence(
                "the checkpoint is of another model",
                where=str(path),
                expected="the weights of this model",
                got=str(error).splitlines()[1].strip(),
                hint="build the model as it was when the checkpoint was written",
            )
        ) from None
    for name, optimiser in _optimisers(trainer).items():
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"{name}."):
                _, index, field = key.split(".")
                state.setdefault(int(index), {})[field] = value
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    torch.set_rng_state(tensors["rng"])
    if "rng_cuda" in tensors and trainer.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["rng_cuda"], trainer.device)
    trainer.epoch, trainer.step_count = meta["epoch"], meta["step"]
    trainer.rows = meta["history"]


def _optimisers(trainer: Trainer) -> dict[str, torch.optim.Optimizer]:
    optimisers: dict[str, torch.optim.Optimizer] = {"optimiser": trainer.optimiser}
    if trainer.critic_optimiser is not None:
        optimisers["critic_optimiser"] = trainer.critic_optimiser
    return optimisers
