"""Checkpoints: everything a run needs to go on as if it had not been interrupted."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from pyro_fcr.errors import LoadError, sentence
from pyro_fcr.nn import read_tensors, write_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from pyro_fcr.infer.trainer import Trainer

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(trainer: Trainer, path: Path) -> None:
    """Write everything a run needs to go on as if it had not been interrupted.

    All of a run's processes call it; the first one writes.
    """
    states = trainer.ranks.gather(_random_state(trainer.device))
    if not trainer.ranks.first:
        return
    tensors = {f"objective.{k}": v for k, v in trainer.objective.state_dict().items()}
    for name, optimiser in _optimisers(trainer).items():
        for index, state in optimiser.state_dict()["state"].items():
            tensors |= {f"{name}.{index}.{k}": v for k, v in state.items()}
    best = trainer.best
    tensors |= {f"best.{k}": v for k, v in best.weights.items()}
    for rank, state in enumerate(states):
        tensors |= {f"{name}.{rank}": value for name, value in state.items()}
    meta = {"epoch": trainer.epoch, "step": trainer.step_count, "history": trainer.rows,
            "best_loss": best.loss, "refused": best.refused, "run": _run(trainer)}  # fmt: skip
    write_tensors(path, tensors, meta)


def load_checkpoint(trainer: Trainer, path: Path) -> None:
    """Put a trainer where :func:`save_checkpoint` left it.

    Raises
    ------
    LoadError
        If the checkpoint is missing, damaged, of another model or of another run.
    """
    tensors, meta = read_tensors(path)
    if changed := [k for k, v in _run(trainer).items() if meta["run"].get(k) != v]:
        raise LoadError(
            sentence(
                f"the checkpoint is of another run: {', '.join(changed)} changed",
                where=str(path),
                expected=f"{ {k: meta['run'].get(k) for k in changed} }",
                got=f"{ {k: _run(trainer)[k] for k in changed} }",
                hint="resume with the arguments the run was started with, or without resume=True",
            )
        )
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
    rank = trainer.ranks.rank
    torch.set_rng_state(tensors[f"rng.{rank}"])
    if f"rng_cuda.{rank}" in tensors and trainer.device.type == "cuda":
        torch.cuda.set_rng_state(tensors[f"rng_cuda.{rank}"], trainer.device)
    trainer.epoch, trainer.step_count = meta["epoch"], meta["step"]
    trainer.rows = meta["history"]
    best = trainer.best
    best.loss, best.refused = meta["best_loss"], meta["refused"]
    kept = [name for name in tensors if name.startswith("best.")]
    best.weights = {name.removeprefix("best."): tensors[name] for name in kept}


def _run(trainer: Trainer) -> dict[str, Any]:
    told = {"seed": trainer.seed, "processes": trainer.ranks.world}
    return {**asdict(trainer.plan), **told, **trainer.run}


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"rng": torch.get_rng_state()}
    if device.type == "cuda":
        state["rng_cuda"] = torch.cuda.get_rng_state(device)
    return state


def _optimisers(trainer: Trainer) -> dict[str, torch.optim.Optimizer]:
    optimisers: dict[str, torch.optim.Optimizer] = {"optimiser": trainer.optimiser}
    if trainer.critic_optimiser is not None:
        optimisers["critic_optimiser"] = trainer.critic_optimiser
    return optimisers
