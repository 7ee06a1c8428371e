"""Checkpoints: everything a run needs to go on as if it had not been interrupted."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from pyro_fcr.errors import LoadError, sentence
from pyro_fcr.nn import read_tensors, write_tensors
from pyro_fcr.reading import DAMAGE, first_line

if TYPE_CHECKING:
    from collections.abc import Mapping
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
    run = meta.get("run")
    found: dict[str, Any] = run if isinstance(run, dict) else {}
    if changed := [k for k, v in _run(trainer).items() if found.get(k) != v]:
        raise LoadError(
            sentence(
                f"the checkpoint is of another run: {', '.join(changed)} changed",
                where=str(path),
                expected=f"{ {k: found.get(k) for k in changed} }"[:200],
                got=f"{ {k: _run(trainer)[k] for k in changed} }"[:200],
                hint="resume with the arguments the run was started with, or without resume=True",
            )
        )
    try:
        _restore(trainer, tensors, meta)
    except DAMAGE as error:
        raise LoadError(
            sentence(
                "the checkpoint is of another model",
                where=str(path),
                expected="the weights of this model",
                got=first_line(error, 200),
                hint="build the model as it was when the checkpoint was written",
            )
        ) from None


def _restore(trainer: Trainer, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    # What cannot be right is refused before the first assignment to the trainer.
    weights = {k.removeprefix("objective."): v for k, v in tensors.items() if k.startswith("obj")}
    kept = {k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")}
    epoch, step, rows = int(meta["epoch"]), int(meta["step"]), list(meta["history"])
    best_loss, refused = float(meta["best_loss"]), int(meta["refused"])
    if len(rows) != epoch or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{len(rows)} rows of history after {epoch} epochs")
    own = {name: value.shape for name, value in trainer.objective.state_dict().items()}
    if kept and {name: value.shape for name, value in kept.items()} != own:
        raise ValueError("best weights of other shapes")
    states = {}
    for name, optimiser in _optimisers(trainer).items():
        states[name] = _optimiser_state(name, optimiser, tensors)
    trainer.objective.load_state_dict(weights)
    for name, optimiser in _optimisers(trainer).items():
        optimiser.load_state_dict({**optimiser.state_dict(), "state": states[name]})
    rank = trainer.ranks.rank
    torch.set_rng_state(tensors[f"rng.{rank}"])
    if f"rng_cuda.{rank}" in tensors and trainer.device.type == "cuda":
        torch.cuda.set_rng_state(tensors[f"rng_cuda.{rank}"], trainer.device)
    best = trainer.best
    best.weights, best.loss, best.refused = kept, best_loss, refused
    trainer.epoch, trainer.step_count, trainer.rows = epoch, step, rows


def _optimiser_state(
    name: str, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> dict[int, dict[str, Tensor]]:
    shapes = [p.shape for group in optimiser.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if not key.startswith(f"{name}."):
            continue
        _, number, field = key.split(".")
        # A count of steps is a number; everything else is kept per weight.
        if value.dim() and value.shape != shapes[int(number)]:
            raise ValueError(f"{key} of shape {tuple(value.shape)}")
        state.setdefault(int(number), {})[field] = value
    return state


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
