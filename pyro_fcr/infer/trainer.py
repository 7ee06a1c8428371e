"""The training loop: one guide run per step serves the ELBO, the penalties and the critics."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyro
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyro_fcr.errors import NonFiniteError, sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from pyro_fcr.data import Batch, BatchSource
    from pyro_fcr.infer.objective import Objective, Terms
    from pyro_fcr.infer.schedule import Plan, Settled

from pyro_fcr.infer.captured import CapturedStep, cuda_side_stream, record_cuda
from pyro_fcr.infer.checkpoint import load_checkpoint, save_checkpoint
from pyro_fcr.infer.distributed import Ranks

__all__ = ["Trainer", "resolve_device"]

CRITIC_LEARNING_RATE = 1e-3

ASK_EVERY = 50
"""Steps on a CUDA device between two questions whether the loss is still finite."""


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Return a device from its name; ``"auto"`` takes CUDA, then MPS, then the CPU.

    Of several processes on a machine each takes the CUDA device of its own number.
    """
    if str(device) == "auto" and torch.cuda.is_available():
        device = "cuda"
    if str(device) == "cuda" and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if str(device) != "auto":
        return torch.device(device)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


class Trainer:
    """Trains an objective on a source of batches.

    Parameters
    ----------
    objective
        What is trained; its parts must already be initialised (AutoGuides run once).
    plan
        Steps and schedules.
    seed
        Governs draws and permutations; the global random state is left as it was.
    device
        Where to train.
    checkpoint
        File prefix of checkpoints, written every ``checkpoint_every`` epochs; none if ``None``.
    checkpoint_every
        Epochs between checkpoints.
    names
        The training cells' names, to tell them in an error; by default their positions.
    run
        JSON-able, beside plan and seed: what a checkpoint must agree with to be resumed.
    ranks
        The processes that train together.
    """

    def __init__(
        self,
        objective: Objective,
        plan: Plan,
        *,
        seed: int = 0,
        device: torch.device | None = None,
        checkpoint: Path | None = None,
        checkpoint_every: int = 10,
        names: Sequence[str] | None = None,
        run: Mapping[str, Any] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.objective, self.plan, self.seed = objective, plan, seed
        self.device = device or torch.device("cpu")
        self.checkpoint, self.checkpoint_every = checkpoint, checkpoint_every
        self.names = names
        self.run = dict(run or {})
        self.ranks = ranks or Ranks()
        objective.to(self.device)
        self.ranks.copy_first(objective)
        on_cuda = self.device.type == "cuda"
        weights = objective.shrunk_parameters()
        decayed = {id(p) for p in weights}
        self.trained = objective.encoder_parameters()
        others = [p for p in self.trained if id(p) not in decayed]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": weights, "weight_decay": plan.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            # A recorded step reads its learning rate from the device.
            lr=torch.tensor(plan.learning_rate, device=self.device)
            if on_cuda
            else plan.learning_rate,
            betas=(0.9, 0.99),
            fused=True,
            capturable=on_cuda,
        )
        self.critics = objective.critics
        self.critic_parameters = objective.critic_parameters()
        self.critic_optimiser = (
            torch.optim.Adam(
                self.critic_parameters, lr=CRITIC_LEARNING_RATE, fused=True, capturable=on_cuda
            )
            if self.critic_parameters
            else None
        )
        # On a CUDA device nobody waits to hear of a loss that is not finite: from that step on
        # the optimisers pass over every step, and the host asks now and then.
        self.failed = torch.zeros((), device=self.device)
        self.captured: CapturedStep | None = None
        if on_cuda:
            stepped: list[Any] = [self.optimiser, self.critic_optimiser]
            for optimiser in filter(None, stepped):
                optimiser.found_inf = self.failed
            if self.ranks.world == 1:
                self.captured = CapturedStep(
                    self._advance, record=record_cuda, aside=cuda_side_stream
                )
        self.step_count = 0
        self.epoch = 0
        self.rows: list[dict[str, float]] = []
        self.best = BestWeights()
        self.milestones: Mapping[int, Callable[[], None]] = {}

    def fit(
        self,
        source: BatchSource,
        *,
        valid: BatchSource | None = None,
        validate_every: int = 1,
        settle: Settled | None = None,
        monitor: Callable[[], dict[str, float]] | None = None,
        milestones: Mapping[int, Callable[[], None]] | None = None,
        resume: bool = False,
        progress: bool = True,
    ) -> pd.DataFrame:
        """Train until the plan's steps are done, or earlier where everything has settled.

        Parameters
        ----------
        source
            Training batches.
        valid
            Held-out batches, evaluated every ``validate_every`` epochs and once at the end.
        validate_every
            Epochs between evaluations of ``valid``.
        settle
            Stopping rule; ``None`` runs the whole plan and keeps its last weights. Once the
            held-out divergence of every block has settled, the weights with the lowest held-out
            loss from there on are kept; training stops after ``settle.patience`` evaluations
            without a lower one, and the kept weights are restored.
        monitor
            Called at every evaluation of ``valid``; its numbers join the history, and those
            named ``leakage.*`` are watched by the stopping rule.
        milestones
            Called once the given numbers of steps are done.
        resume
            Continue from the checkpoint, if there is one.
        progress
            Whether to show a bar.

        Returns
        -------
        pandas.DataFrame
            One row per epoch; a column per site, penalty and critic accuracy, in nats per cell.

        Raises
        ------
        NonFiniteError
            If the loss or its gradient is not finite; the weights are those before the step.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), pyro.settings.context(
            validate_distributions_pyro=False, validate_distributions_torch=False,
            validate_poutine=False, validate_infer=False,
        ):  # fmt: skip
            torch.manual_seed(self.ranks.seed(self.seed))
            self.milestones = milestones or {}
            self.best = BestWeights()
            if resume and self.checkpoint is not None and self.checkpoint.exists():
                load_checkpoint(self, self.checkpoint)
            if settle is not None:
                for held_out in filter(None, map(_held_out, self.rows)):
                    settle.update(_watched(held_out))
            bar = tqdm(total=self.plan.steps, initial=self.step_count,
                       disable=not (progress and self.ranks.first),
                       desc="fit", unit="step", mininterval=0.5)  # fmt: skip
            with bar:
                self._epochs(source, valid, validate_every, settle, monitor, bar)
        return self.history

    @property
    def history(self) -> pd.DataFrame:
        """One row per finished epoch."""
        return pd.DataFrame(self.rows).set_index("epoch") if self.rows else pd.DataFrame()

    def _epochs(
        self,
        source: BatchSource,
        valid: BatchSource | None,
        validate_every: int,
        settle: Settled | None,
        monitor: Callable[[], dict[str, float]] | None,
        bar: tqdm,
    ) -> None:
        best = self.best
        while self.step_count < self.plan.steps:
            if settle is not None and best.refused >= settle.patience:
                break
            row = self._epoch(source, bar)
            last = self.step_count >= self.plan.steps
            if valid is not None and (last or self.epoch % validate_every == 0):
                held_out = self._judge(valid, monitor)
                row |= {f"valid.{name}": value for name, value in held_out.items()}
                # What is still to come at a milestone must not be stopped short of, nor undone.
                ahead = any(self.step_count < m <= self.plan.steps for m in self.milestones)
                if settle is not None and not ahead and settle.update(_watched(held_out)):
                    best.offer(held_out["loss"], self.objective)
            self.rows.append(row)
            bar.set_postfix({k: f"{v:.3g}" for k, v in row.items() if _worth_showing(k)})
            if self.checkpoint is not None and (last or self.epoch % self.checkpoint_every == 0):
                save_checkpoint(self, self.checkpoint)
        best.restore(self.objective)

    def _judge(
        self, valid: BatchSource, monitor: Callable[[], dict[str, float]] | None
    ) -> dict[str, float]:
        # The first process's numbers are everyone's, so that all stop at the same time.
        held_out: dict[str, float] = {}
        if self.ranks.first:
            held_out = self.evaluate(valid)
            if monitor:
                self.objective.eval()
                held_out |= monitor()
                self.objective.train()
        return self.ranks.agree(held_out)

    def _epoch(self, source: BatchSource, bar: tqdm) -> dict[str, float]:
        start, n_steps = time.perf_counter(), 0
        totals: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        self.objective.train()
        ranks = self.ranks
        for batch in source.batches(epoch=self.epoch, rank=ranks.rank, world=ranks.world):
            if self.step_count >= self.plan.steps:
                break
            for name, value in self.step(batch.to(self.device)).items():
                totals[name] += value
            n_steps += 1
            bar.update()
            if reached := self.milestones.get(self.step_count):
                self.objective.eval()
                if ranks.first:
                    reached()
                ranks.copy_first(self.objective)
                self.objective.train()
        self.epoch += 1
        if self.device.type == "cuda":
            self._ask()
        ranks.average(list(totals.values()))
        return {
            "epoch": self.epoch,
            "step": self.step_count,
            "learning_rate": self.plan.rate(self.step_count - 1),
            "seconds": time.perf_counter() - start,
            **{name: float(value) / n_steps for name, value in totals.items()},
        }

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Take one step on a batch and return its terms, in nats per cell.

        The terms may be overwritten by the next step.
        """
        values = {
            "rate": self.plan.rate(self.step_count),
            "kl_weight": self.plan.kl_weight(self.step_count),
            "ramp": self.plan.ramp(self.step_count),
            "price": self.plan.price(self.step_count),
        }
        record = (self.captured or self._advance)(batch, values)
        self.step_count += 1
        if self.device.type == "cuda" and self.step_count % ASK_EVERY == 0:
            self._ask()
        return record

    def _advance(self, batch: Batch, values: Mapping[str, Any]) -> dict[str, Tensor]:
        for group in self.optimiser.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].copy_(torch.as_tensor(values["rate"]))
            else:
                group["lr"] = values["rate"]
        for part in self.critics.values():
            part.requires_grad_(False)
        weights = {name: values[name] for name in ("kl_weight", "ramp", "price")}
        terms = self.objective(batch, **weights)
        self.optimiser.zero_grad(set_to_none=True)
        terms.loss.backward()
        loss = terms.loss.detach()
        self.ranks.average([loss, *(p.grad for p in self.trained if p.grad is not None)])
        norm = nn.utils.clip_grad_norm_(self.trained, self.plan.clip)
        # A loss that is not finite can have a finite gradient, where its bad term is constant.
        finite = torch.isfinite(norm + loss)
        if self.device.type == "cuda":
            self.failed.copy_(torch.maximum(self.failed, (~finite).float()))
        elif not finite:
            raise self._explain(batch, terms)
        self.optimiser.step()
        record = {"loss": loss, **terms.sites, "gradient_norm": norm}
        return record | self._train_critics(terms.read, batch)

    def _ask(self) -> None:
        if self.failed:
            where = f"epoch {self.epoch + 1}, up to step {self.step_count}"
            raise NonFiniteError(
                sentence(
                    "the objective is not finite",
                    where=where,
                    expected="a finite loss and gradient",
                    got="inf or nan",
                    hint="the weights before that step are kept; try a lower learning_rate, or "
                    "device='cpu', which names the cells",
                )
            )

    def _train_critics(
        self, read: dict[str, dict[str, Tensor]], batch: Batch
    ) -> dict[str, Tensor]:
        if self.critic_optimiser is None:
            return {}
        losses, accuracies = [], {}
        for name, part in self.critics.items():
            part.requires_grad_(True)
            loss, accuracy = part.critic_loss(read[name], batch)
            losses.append(loss)
            accuracies[f"accuracy.{name}"] = accuracy.detach()
        self.critic_optimiser.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()
        self.ranks.average([p.grad for p in self.critic_parameters if p.grad is not None])
        self.critic_optimiser.step()
        return accuracies

    @torch.no_grad()
    def evaluate(self, source: BatchSource) -> dict[str, float]:
        """Return the terms on held-out batches at full weights, averaged over cells."""
        self.objective.eval()
        totals: dict[str, float] = defaultdict(float)
        n_cells = 0
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            for batch in _on(source.batches(epoch=0, rank=0, world=1), self.device):
                terms = self.objective(batch)
                for name, value in {"loss": terms.loss, **terms.sites}.items():
                    totals[name] += float(value) * len(batch)
                n_cells += len(batch)
        self.objective.train()
        return {name: value / n_cells for name, value in totals.items()}

    def _explain(self, batch: Batch, terms: Terms) -> NonFiniteError:
        bad = [name for name, value in terms.sites.items() if not torch.isfinite(value)]
        with torch.no_grad():
            positions = [
                int(batch.index[i])
                for i in range(len(batch))
                if not torch.isfinite(self.objective(batch.rows(torch.tensor([i]))).loss)
            ]
        cells = [self.names[i] if self.names else i for i in positions]
        site = f"site {', '.join(bad)}" if bad else "its gradient"
        where = f"epoch {self.epoch + 1}, step {self.step_count + 1}"
        return NonFiniteError(
            sentence(
                f"the objective is not finite at {site}, cells {cells[:5] or 'none alone'}",
                where=where,
                expected="a finite loss and gradient",
                got=f"loss {float(terms.loss.detach()):.4g}",
                hint="the weights before this step are kept; try a lower learning_rate or look at "
                "the cells named",
            )
        )


def _on(batches: Iterable[Batch], device: torch.device) -> Iterable[Batch]:
    return (batch.to(device) for batch in batches)


class BestWeights:
    """Keeps the weights with the lowest loss among those it is offered."""

    def __init__(self) -> None:
        self.loss, self.refused = float("inf"), 0
        self.weights: dict[str, Tensor] = {}

    def offer(self, loss: float, module: nn.Module) -> None:
        """Keep the module's weights if the loss is the lowest so far."""
        if loss < self.loss:
            self.loss, self.refused = loss, 0
            self.weights = {k: v.detach().clone() for k, v in module.state_dict().items()}
        else:
            self.refused += 1

    def restore(self, module: nn.Module) -> None:
        """Put the best weights back, if any were kept."""
        if self.weights:
            module.load_state_dict(self.weights)


def _held_out(row: dict[str, float]) -> dict[str, float]:
    prefix = "valid."
    return {k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)}


def _watched(terms: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in terms.items() if name.startswith(("kl.", "leakage."))}


def _worth_showing(name: str) -> bool:
    return name in ("loss", "valid.loss") or name.startswith(("kl.", "accuracy."))
