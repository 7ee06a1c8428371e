"""The training loop: one guide run per step serves the ELBO, the penalties and the critics."""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import pyro
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyro_fcr.errors import FCRError, FitError, NonFiniteError, WriteError, sentence
from pyro_fcr.infer import faults
from pyro_fcr.infer.captured import CapturedStep, cuda_side_stream, record_cuda
from pyro_fcr.infer.checkpoint import load_checkpoint, save_checkpoint
from pyro_fcr.infer.distributed import Ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from pyro_fcr.data import Batch, BatchSource
    from pyro_fcr.infer.objective import Objective, Terms
    from pyro_fcr.infer.schedule import Plan, Settled

__all__ = ["Trainer"]

log = logging.getLogger(__name__)

CRITIC_LEARNING_RATE = 1e-3

ASK_EVERY = 50
"""Steps on a CUDA device between two questions whether the loss is still finite."""


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
    genes
        The genes' names, likewise.
    on_nonfinite
        What is done about a step whose loss or gradient is not finite: ``"raise"``, or
        ``"skip"``, which leaves the weights as they are, up to :class:`~faults.SkipLimit`.
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
        genes: Sequence[str] | None = None,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        run: Mapping[str, Any] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.objective, self.plan, self.seed = objective, plan, seed
        self.device = device or torch.device("cpu")
        self.checkpoint, self.checkpoint_every = checkpoint, checkpoint_every
        self.names, self.genes = names, genes
        self.skips = on_nonfinite == "skip"
        self.limit = faults.SkipLimit(plan.steps)
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
        # On a CUDA device nobody waits to hear of a loss that is not finite: the optimisers pass
        # over that step, and over all that follow unless they are to be skipped alone, and the
        # host asks now and then.
        self.failed = torch.zeros((), device=self.device)
        self.in_a_row = torch.zeros((), device=self.device)
        self.skipped = torch.zeros((), device=self.device)
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
        self.interrupted: Callable[[], bool] = lambda: False
        self.lost = False
        self.cells_a_step = 0

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
            If the loss or its gradient is not finite, or was so too often; the weights are those
            before the step.
        FitError
            If memory does not suffice, or the device or another process was lost.
        WriteError
            If a checkpoint cannot be written.
        KeyboardInterrupt
            After a Ctrl-C, once the step is done; a second one does not wait. The best weights
            are put back, if there are any, and the message says what is left.
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
            held = faults.deferred_interrupt() if self.ranks.world == 1 else nullcontext(bool)
            told = None
            with bar, held as self.interrupted:
                try:
                    self._epochs(source, valid, validate_every, settle, monitor, bar)
                except (KeyboardInterrupt, FCRError, MemoryError, RuntimeError) as error:
                    told = self._told(error)
                    if told is None:
                        raise
        if told is not None:
            if not self.lost:
                self.best.restore(self.objective)
            # Raised here, it does not keep the failed step's tensors.
            raise told
        return self.history

    def _told(self, error: BaseException) -> BaseException | None:
        """Return what ended a run as one line, or ``None`` if it is nobody's fault."""
        if isinstance(error, KeyboardInterrupt):
            done = f"stopped after step {self.step_count} of {self.plan.steps}"
            return KeyboardInterrupt(f"{done}; {self._survived()}")
        if isinstance(error, WriteError):
            return WriteError(f"{error} The run ends; {self._survived()}.")
        if isinstance(error, FCRError):
            return error
        what, hint = "out of memory", faults.smaller_batch(self.cells_a_step)
        if not faults.is_out_of_memory(error):
            if (lost := faults.is_step_beyond_repair(error)) is None:
                return None
            self.lost = lost == "the device"
            what, hint = f"{lost} was lost", "start again in a new process"
        return FitError(
            sentence(
                what,
                where=f"epoch {self.epoch + 1}, step {self.step_count + 1}",
                expected=f"a step of {self.cells_a_step} cells to run on {self.device}",
                got=(str(error).splitlines() or [type(error).__name__])[0][:160],
                hint=f"{self._survived()}; {hint}",
            )
        )

    def _survived(self) -> str:
        """Return what is left of the run."""
        if self.lost:
            left = "the weights in memory are gone"
        elif not self.rows:
            left = "no epoch was finished, and the model stays as it was"
        elif self.best.weights:
            left = "the best weights so far are kept"
        else:
            left = f"the weights after step {self.step_count}, the last good one, are kept"
        if self.checkpoint is not None and self.checkpoint.exists():
            left += f", and resume=True goes on from {self.checkpoint}"
        return left

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
                held_out = self._judge(valid, source.n_cells, monitor)
                row |= {f"valid.{name}": value for name, value in held_out.items()}
                # What is still to come at a milestone must not be stopped short of, nor undone.
                ahead = any(self.step_count < m <= self.plan.steps for m in self.milestones)
                if settle is not None and not ahead and settle.update(_watched(held_out)):
                    best.offer(held_out["loss"], self.objective)
            self.rows.append(row)
            bar.set_postfix({k: f"{v:.3g}" for k, v in row.items() if _worth_showing(k)})
            if self.checkpoint is not None and (last or self.epoch % self.checkpoint_every == 0):
                save_checkpoint(self, self.checkpoint)
            self._stop_if_interrupted()
        best.restore(self.objective)

    def _judge(
        self, valid: BatchSource, n_cells: int, monitor: Callable[[], dict[str, float]] | None
    ) -> dict[str, float]:
        # The first process's numbers are everyone's, so that all stop at the same time.
        held_out: dict[str, float] = {}
        if self.ranks.first:
            held_out = self.evaluate(valid, n_cells)
            if monitor:
                self.objective.eval()
                held_out |= monitor()
                self.objective.train()
        return self.ranks.agree(held_out)

    def _epoch(self, source: BatchSource, bar: tqdm) -> dict[str, float]:
        start, n_steps = time.perf_counter(), 0
        totals: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        steepest = torch.zeros((), device=self.device)
        self.objective.train()
        ranks = self.ranks
        for batch in source.batches(epoch=self.epoch, rank=ranks.rank, world=ranks.world):
            if self.step_count >= self.plan.steps:
                break
            for name, value in self.step(batch.to(self.device)).items():
                if name == "gradient_norm":
                    steepest = torch.maximum(steepest, value)
                totals[name] += value
            n_steps += 1
            bar.update()
            if reached := self.milestones.get(self.step_count):
                self.objective.eval()
                if ranks.first:
                    reached()
                ranks.copy_first(self.objective)
                self.objective.train()
            self._stop_if_interrupted()
        self.epoch += 1
        if self.device.type == "cuda":
            self._ask()
        ranks.average(list(totals.values()))
        skipped = float(totals.pop("skipped", 0.0))
        made = n_steps - skipped
        return {
            "epoch": self.epoch,
            "step": self.step_count,
            "learning_rate": self.plan.rate(self.step_count - 1),
            "seconds": time.perf_counter() - start,
            **{k: float(v) / made if made else math.nan for k, v in totals.items()},
            "gradient_norm.max": float(steepest),
            **({"skipped": skipped} if self.skips else {}),
        }

    def _stop_if_interrupted(self) -> None:
        if self.interrupted():
            raise KeyboardInterrupt

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
        self.cells_a_step = len(batch)
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
        self._freeze_critics(True)
        weights = {name: values[name] for name in ("kl_weight", "ramp", "price")}
        terms = self.objective(batch, **weights)
        self.optimiser.zero_grad(set_to_none=True)
        terms.loss.backward()
        loss = terms.loss.detach()
        self.ranks.average([loss, *(p.grad for p in self.trained if p.grad is not None)])
        norm = nn.utils.clip_grad_norm_(self.trained, self.plan.clip)
        critic, record = self._critic_gradients(terms.read, batch)
        record = {"loss": loss, **terms.sites, "gradient_norm": norm, **record}
        # A loss that is not finite can have a finite gradient, where its bad term is constant.
        finite = torch.isfinite(norm + loss + critic)
        if self.device.type == "cuda":
            record = self._note(finite, record)
        elif not finite:
            return self._pass_over(batch, terms)
        else:
            self.in_a_row.zero_()
        self.optimiser.step()
        if self.critic_optimiser is not None:
            self.critic_optimiser.step()
        return record

    def _note(self, finite: Tensor, record: dict[str, Tensor]) -> dict[str, Tensor]:
        """Let the optimisers know of a bad step without asking the device for it."""
        bad = (~finite).float()
        if not self.skips:
            self.failed.copy_(torch.maximum(self.failed, bad))
            return record
        self.failed.copy_(bad)
        self.skipped.add_(bad)
        # Once there were too many in a row, it stays so until the host asks.
        row = (self.in_a_row + bad) * bad
        over = self.in_a_row >= self.limit.IN_A_ROW
        self.in_a_row.copy_(torch.where(over, self.in_a_row, row))
        kept = {k: torch.where(finite, v, torch.zeros_like(v)) for k, v in record.items()}
        return {**kept, "skipped": bad}

    def _pass_over(self, batch: Batch, terms: Terms) -> dict[str, Tensor]:
        first = not self.skipped
        self.skipped += 1
        self.in_a_row += 1
        if not self.skips or self.limit.reached(self.in_a_row, self.skipped):
            raise self._explain(batch, terms)
        if first:
            log.warning("a step is skipped: %s", self._explain(batch, terms))
        return {"skipped": torch.ones(())}

    def _ask(self) -> None:
        failed = self.limit.reached(self.in_a_row, self.skipped) if self.skips else self.failed
        if failed:
            where = f"epoch {self.epoch + 1}, up to step {self.step_count}"
            raise NonFiniteError(
                sentence(
                    f"the objective is not finite{self._so_often()}",
                    where=where,
                    expected="a finite loss and gradient",
                    got="inf or nan",
                    hint=f"{self._survived()}; try a lower learning_rate, or device='cpu', which "
                    "names the cells",
                )
            )

    def _so_often(self) -> str:
        return f", and {int(self.skipped)} steps were skipped" if self.skips else ""

    def _critic_gradients(
        self, read: dict[str, dict[str, Tensor]], batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Make the critics' gradients; return their loss and their accuracies."""
        if self.critic_optimiser is None:
            return self.failed.new_zeros(()), {}
        self._freeze_critics(False)
        losses, accuracies = [], {}
        for name, part in self.critics.items():
            loss, accuracy = part.critic_loss(read[name], batch)
            losses.append(loss)
            accuracies[f"accuracy.{name}"] = accuracy.detach()
        self.critic_optimiser.zero_grad(set_to_none=True)
        total = torch.stack(losses).sum()
        total.backward()
        total = total.detach()
        grads = [p.grad for p in self.critic_parameters if p.grad is not None]
        self.ranks.average([total, *grads])
        return total, accuracies

    def _freeze_critics(self, frozen: bool) -> None:
        for parameter in self.critic_parameters:
            parameter.requires_grad_(not frozen)

    @torch.no_grad()
    def evaluate(self, source: BatchSource, n_cells: int) -> dict[str, float]:
        """Return the terms on held-out batches at full weights, averaged over cells.

        Parameters
        ----------
        source
            The held-out cells.
        n_cells
            How many cells a batch stands for: those of training, so that what globals cost is
            shared among as many.
        """
        self.objective.eval()
        totals: dict[str, float] = defaultdict(float)
        seen = 0
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            for batch in _on(source.batches(epoch=0, rank=0, world=1), self.device):
                terms = self.objective(replace(batch, n_cells=n_cells))
                for name, value in {"loss": terms.loss, **terms.sites}.items():
                    totals[name] += float(value) * len(batch)
                seen += len(batch)
        self.objective.train()
        return {name: value / seen for name, value in totals.items()}

    def _explain(self, batch: Batch, terms: Terms) -> NonFiniteError:
        bad = [name for name, value in terms.sites.items() if not torch.isfinite(value)]
        with torch.random.fork_rng([]):
            rows = faults.not_finite_cells(self.objective, batch)
            genes = (
                faults.not_finite_genes(self.objective, batch.rows(torch.tensor(rows[:1])))
                if rows
                else []
            )
        cells = faults.named("cells", [int(batch.index[row]) for row in rows], self.names)
        told = f"{cells}, {faults.named('genes', genes, self.genes)}" if genes else cells
        site = f"site {', '.join(bad)}" if bad else "its gradient"
        return NonFiniteError(
            sentence(
                f"the objective is not finite at {site}, {told if rows else 'no cell alone'}"
                f"{self._so_often()}",
                where=f"epoch {self.epoch + 1}, step {self.step_count + 1}",
                expected="a finite loss and gradient",
                got=f"loss {float(terms.loss.detach()):.4g}",
                hint=f"{self._survived()}; try a lower learning_rate, look at the cells named, or "
                "pass over such steps with on_nonfinite='skip'",
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
