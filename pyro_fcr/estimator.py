"""What every system can do: fit, latents, posterior, counterfactual, save. Knows none by name."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import inspect
import math
from abc import abstractmethod
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
import torch

from pyro_fcr import arguments, io
from pyro_fcr.analysis.conditions import condition_cells
from pyro_fcr.analysis.leakage import block_leakage
from pyro_fcr.assembly import Declaration, Recipe, assemble
from pyro_fcr.data import Cells, Design, Schema, Split, checks, open_data, open_source
from pyro_fcr.errors import DesignError, FCRError, FitError, sentence
from pyro_fcr.files import together
from pyro_fcr.fitted import CHUNK, Fitted
from pyro_fcr.guides import Encoders
from pyro_fcr.infer import (
    Milestones,
    Plan,
    Settled,
    Trainer,
    faults,
    processes,
    resolve_device,
    sleep,
)
from pyro_fcr.infer.runtime import compiled, default_threads, networks_at
from pyro_fcr.infer.runtime import threads as use_threads
from pyro_fcr.likelihoods import GeneStatistics, Likelihood, gene_statistics, resolve
from pyro_fcr.nn import write_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anndata import AnnData
    from torch import nn

    from pyro_fcr.decoders import Decoder
    from pyro_fcr.model import LatentModel
    from pyro_fcr.penalties import Head
    from pyro_fcr.priors import Prior

__all__ = ["FEATURES", "HISTORY", "WEIGHTS", "Estimator"]

FEATURES = "treatment_features.safetensors"
"""The file beside ``model.json`` that holds the treatments' features, where there are any."""

WEIGHTS = "weights.safetensors"
"""The file that holds the weights."""

HISTORY = "history.csv"
"""The file that holds every term of the objective, epoch by epoch."""


class Estimator(Fitted):
    """A system bound to data.

    Parameters
    ----------
    adata
        Training data, one row per cell; it is only read. A backed AnnData, the path of an
        ``.h5ad`` file or a Zarr store, or a list of paths stay on disk: cells are read as they
        are needed, at constant memory.
    schema
        Which column is what.
    sizes
        Latent dimensions per block, by name; blocks left out take the system's defaults.
    priors
        Priors that replace the defaults, by block.
    guide
        :class:`~pyro_fcr.guides.Amortised`, :class:`~pyro_fcr.guides.Composed`, or any module
        called with a batch that samples the model's latent sites. By default label-free
        amortised encoders, with an ``AutoNormal`` for the globals where there are any.
    decoder
        A :class:`~pyro_fcr.decoders.Decoder` that replaces the system's.
    likelihood
        ``"nb"``, ``"zinb"``, ``"poisson"``, ``"normal"``, or a
        :class:`~pyro_fcr.likelihoods.Likelihood`.
    penalties
        By site name: a weight in nats per cell for one of the system's own terms (0 turns it
        off), or ``(part, weight)`` for a penalty or head of one's own.
    hidden
        Widths of the decoder's hidden layers.
    batch_in_decoder
        Whether the schema's batch enters the decoder; by default where the schema names one and
        the system leaves the batch to the decoder.
    require_counts
        Refuse data that are no molecule counts; by default what the likelihood asks for.
    **options
        The system's own options, by the names that its :meth:`declare` takes.

    Raises
    ------
    FCRError
        A subclass that says what in the data, the design or the slots does not fit.
    """

    requires: ClassVar[tuple[str, ...]] = ()
    """Fields of the schema that this system cannot do without."""

    def __init__(
        self,
        adata: AnnData | str | Path | Sequence[str | Path],
        schema: Schema,
        *,
        sizes: Mapping[str, int] | None = None,
        priors: Mapping[str, Prior] | None = None,
        guide: Any = None,
        decoder: Decoder | None = None,
        likelihood: str | Likelihood = "nb",
        penalties: Mapping[str, Any] | None = None,
        hidden: Sequence[int] = (128, 128),
        batch_in_decoder: bool | None = None,
        require_counts: bool | None = None,
        **options: Any,
    ) -> None:
        self._check_options(options)
        if not isinstance(schema, Schema):
            raise arguments.refused(
                schema, where="schema=", expected="a pyro_fcr.Schema",
                hint="pf.Schema(treatment='COLUMN', control='LABEL') says which column is what",
            )  # fmt: skip
        for name, given in {"sizes": sizes, "priors": priors, "penalties": penalties}.items():
            arguments.mapping(given or {}, f"{name}=", of="one for each block or term")
        sizes = {
            name: arguments.whole(size, f"sizes={{{name!r}: }}", least=1)
            for name, size in (sizes or {}).items()
        }
        hidden = [
            arguments.whole(width, "hidden=", least=1, hint="(128, 128) is the default")
            for width in (hidden if isinstance(hidden, (list, tuple)) else [hidden])
        ]
        likelihood = resolve(likelihood)
        counts = likelihood.reads_counts if require_counts is None else require_counts
        library: Literal["totals", "ones"] = "totals" if likelihood.reads_counts else "ones"
        design, cells = Design.fit_encode(
            open_data(adata), schema, require_counts=counts, library=library
        )
        recipe = Recipe(
            priors=dict(priors or {}),
            guide=guide,
            decoder=decoder,
            likelihood=likelihood,
            penalties=dict(penalties or {}),
            hidden=tuple(hidden),
            batch_in_decoder=batch_in_decoder,
            options=options,
        )
        design.require(*self.requires, system=type(self).__name__)
        self._cells: Cells | None = cells
        self._assemble(design, dict(sizes or {}), recipe)

    def _assemble(self, design: Design, sizes: dict[str, int], recipe: Recipe) -> None:
        self.design, self.sizes = design, sizes
        declare: Any = self.declare
        self.declaration = declare(design, sizes, **recipe.options)
        blocks = [block.name for block in self.declaration.blocks]
        for name in sizes.keys() - set(blocks):
            hint = checks.nearest(name, blocks, "leave it out")
            raise arguments.refused(
                name, where="sizes=", expected=f"blocks of {blocks}", hint=hint
            )
        if recipe.batch_in_decoder is None:
            use_batch = bool(design.batches) and self.declaration.batch_in_decoder
            recipe = dataclasses.replace(recipe, batch_in_decoder=use_batch)
        self._recipe = recipe
        self._whole: GeneStatistics | None = None
        self._model, self._guide, self._objective = self._fresh(self._cells, seed=0)
        self._history: pd.DataFrame | None = None
        self._split: Split | None = None
        self.settings: dict[str, Any] = {}

    def _fresh(self, cells: Cells | None, *, seed: int) -> tuple[Any, Any, Any]:
        if cells is None:
            # The weights are about to be loaded: any moments of the right shape will do.
            zeros = torch.zeros(self.design.n_genes)
            genes, few = GeneStatistics(zeros, zeros + 1, zeros), condition_cells(self.design)
        else:
            genes, few = self._statistics(cells), cells
        # One control cell and one treated, where there are both: a slot may fail on either.
        treated = few.treatment_id != 0
        kinds = {int(treated.argmin()), int(treated.argmax())}
        two = few.batch(np.asarray(sorted(kinds) if len(kinds) > 1 else [0, len(few) - 1]))
        return assemble(
            self.declaration,
            self._recipe,
            self.design,
            two,
            genes,
            seed=seed,
            check=cells is not None,
        )

    def _statistics(self, cells: Cells) -> GeneStatistics:
        if cells is self._cells and self._whole is not None:
            return self._whole
        likelihood = copy.deepcopy(self._recipe.likelihood)
        likelihood.bind(self.design.n_genes)
        source = open_source(cells, batch_size=CHUNK, shuffle=False)
        found = gene_statistics(likelihood, source.batches(epoch=0))
        if cells is self._cells:
            self._whole = found
        return found

    @classmethod
    def _check_options(cls, options: Mapping[str, Any]) -> None:
        known = _keyword_only(cls.declare)
        if unknown := sorted(set(options) - set(known)):
            raise FitError(
                sentence(
                    f"{cls.__name__} has no option '{unknown[0]}'",
                    where=f"{cls.__name__}({unknown[0]}=)",
                    expected=f"options of its own: {', '.join(known) or 'none'}",
                    got=repr(options[unknown[0]]),
                    hint=checks.nearest(
                        unknown[0], [*known, *_keyword_only(Estimator.__init__)], "leave it out"
                    ),
                )
            )

    @classmethod
    @abstractmethod
    def declare(cls, design: Design, sizes: Mapping[str, int]) -> Declaration:
        """Return the system's blocks, default parts and terms for a design.

        What a system takes beside these two, as keyword-only arguments with a default, are its
        own options: the constructor hands them over, ``save`` and ``load`` keep them.

        Parameters
        ----------
        design
            The experiment.
        sizes
            Latent dimensions that the user asked for, by block.
        """

    @property
    def model(self) -> LatentModel:
        """The generative half, a plain Pyro module called with a batch."""
        return self._model

    @property
    def guide(self) -> nn.Module:
        """The approximate posterior, a plain Pyro module called with a batch."""
        return self._guide

    @property
    def heads(self) -> Mapping[str, Head]:
        """The classifiers in the objective, by name."""
        return self._objective.heads

    # ---- training --------------------------------------------------------------------------

    def fit(
        self,
        *,
        split: Split | None = None,
        max_epochs: int | None = None,
        batch_size: int | Literal["auto"] = 512,
        learning_rate: float = 5e-3,
        kl_warmup: float = 0.01,
        penalty_warmup: float = 0.2,
        align_at: float = 0.5,
        head_start: float = 4.0,
        weight_decay: float | None = None,
        seed: int = 0,
        device: str | torch.device = "auto",
        early_stopping: bool = False,
        monitor_leakage: bool = False,
        validate_every: int | None = None,
        checkpoint: str | Path | None = None,
        resume: bool = False,
        threads: int | Literal["auto"] = "auto",
        precision: Literal["float32", "tf32", "bf16"] = "float32",
        compile: bool = False,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        progress: bool = True,
    ) -> pd.DataFrame:
        """Train from fresh weights; the same seed gives the same result on the CPU, bit for bit.

        Parameters
        ----------
        split
            Which cells train and which validate; all train by default. Test cells are not read.
        max_epochs
            Passes over the training cells; by default as many as :func:`default_steps` asks for.
        batch_size
            Cells per step, shared among the processes where ``torchrun`` started several.
            ``"auto"`` takes the largest of 512, 256, 128, ... whose step fits into memory;
            :attr:`settings` tells which.
        learning_rate
            Peak of the one-cycle learning rate.
        kl_warmup, penalty_warmup
            Fractions of the planned steps over which the divergences' and the penalties' weights
            rise to their full values.
        align_at
            Fraction of the steps after which the gauge of the interaction block is fixed by
            joint diagonalisation (:mod:`pyro_fcr.infer.gauge`); 0 fixes it after the first step,
            1 at the very end, more than 1 never.
        head_start
            Factor, at the first step, on the divergence of blocks that read more labels than
            another block does (FCR's z_tx); it falls to 1 over a tenth of the steps. What a block
            of fewer labels can hold finds its place there: without it, an interaction block with
            dimensions to spare takes what belongs to z_x. 1 turns it off.
        weight_decay
            Decoupled weight decay of encoders, decoder and prior tables; by default
            :func:`default_weight_decay`, which the number of training cells decides, up to the
            system's limit.
        seed
            Governs initial weights, shuffling and draws.
        device
            ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"`` or a torch device.
        early_stopping
            Stop once the held-out divergence of every block has settled and the held-out loss no
            longer falls, and restore the best weights from there on. It needs a split with
            validation cells. The total ELBO is flat long before the factors separate, so a
            stopping rule on it alone would destroy identifiability.
        monitor_leakage
            Measure on the validation cells what the blocks tell of one another within conditions
            (``valid.leakage.*`` in the history); a stopping rule then watches it as well.
        validate_every
            Epochs between evaluations of the validation cells; by default fifty per run.
        checkpoint
            File to which the run's state is written every tenth of the run.
        resume
            Continue from ``checkpoint`` if it exists; the result is that of the uninterrupted run.
        threads
            Threads on a CPU; by default what :func:`~pyro_fcr.infer.runtime.default_threads`
            gives, for usual sizes one.
        precision
            Of the networks alone, the likelihood stays in float32: ``"float32"``, or on CUDA
            ``"tf32"`` or ``"bf16"``.
        compile
            Whether to compile the networks with ``torch.compile``, which needs a compiler and
            pays where a run is long.
        on_nonfinite
            What is done about a step whose loss or gradient is not finite. ``"raise"`` ends the
            run with the site, cells and genes at fault; ``"skip"`` leaves the weights as they
            are and counts (``skipped`` in the history), until ten in a row or a twentieth of all
            steps were skipped.
        progress
            Whether to show a bar.

        Returns
        -------
        pandas.DataFrame
            One row per epoch: every term by its site name, in nats per cell; ``valid.*`` columns
            for the validation cells, ``accuracy.*`` for discriminators, and ``gradient_norm``
            with the epoch's largest, ``gradient_norm.max``, before clipping.

        Raises
        ------
        NonFiniteError
            If the loss or its gradient stops being finite; the last good weights are kept.
        FitError
            If a step does not fit into memory, or the device or another process was lost.
        WriteError
            If the checkpoint cannot be written.
        KeyboardInterrupt
            After a Ctrl-C, once the step is done (a second one does not wait). The model holds
            the best weights so far and answers; the message says what is left.
        """
        _check_run(
            split=split, max_epochs=max_epochs, batch_size=batch_size,
            validate_every=validate_every, checkpoint=checkpoint, resume=resume,
            threads=threads, on_nonfinite=on_nonfinite,
        )  # fmt: skip
        train, valid = self._parts(split, watched=early_stopping)
        place = resolve_device(device)
        work = (faults.LARGEST if batch_size == "auto" else batch_size) * self.design.n_genes
        number = default_threads(work) if threads == "auto" else int(threads)
        with (
            processes(place) as ranks,
            use_threads(number),
            networks_at(precision, self._objective, place),
            compiled(self._objective, wanted=compile),
        ):

            def source_of(size: int) -> Any:
                share = math.ceil(size / ranks.world)
                return open_source(train, device=place, batch_size=share, seed=seed)

            if batch_size == "auto":
                batch_size = faults.fitting_batch_size(
                    self._objective.to(place),
                    lambda size: next(iter(source_of(size).batches(epoch=0))),
                    agree=lambda fits: all(ranks.gather(fits)),
                )
            source = source_of(batch_size)
            epoch = source.n_batches(world=ranks.world)
            steps = default_steps(len(train)) if max_epochs is None else max_epochs * epoch
            epochs = max(1, math.ceil(steps / epoch))
            usual = min(default_weight_decay(len(train)), self.declaration.most_weight_decay)
            plan = Plan(
                steps,
                learning_rate=learning_rate,
                kl_warmup=kl_warmup,
                penalty_warmup=penalty_warmup,
                align=align_at,
                head_start=head_start,
                weight_decay=usual if weight_decay is None else weight_decay,
            )
            names = train.names.tolist()
            before = copy.deepcopy(self._objective.state_dict())
            self._objective.load_state_dict(self._fresh(train, seed=seed)[2].state_dict())
            milestones = self._milestones(train)
            milestones.begin()
            trainer = Trainer(
                self._objective,
                plan,
                seed=seed,
                device=place,
                ranks=ranks,
                checkpoint=None if checkpoint is None else Path(checkpoint),
                checkpoint_every=max(1, epochs // 10),
                names=names,
                genes=self.design.genes,
                on_nonfinite=on_nonfinite,
                run={
                    "batch_size": batch_size,
                    "cells": hashlib.sha256("\n".join(names).encode()).hexdigest(),
                    "terms": self._objective.weights,
                },
            )
            try:
                trainer.fit(
                    source,
                    valid=None
                    if valid is None
                    else open_source(valid, batch_size=512, shuffle=False),
                    validate_every=max(1, epochs // 50)
                    if validate_every is None
                    else validate_every,
                    settle=Settled() if early_stopping else None,
                    monitor=(lambda: self._leakage(valid)) if monitor_leakage and valid else None,
                    milestones=milestones.by_step(plan),
                    resume=resume,
                    progress=progress,
                )
                milestones.finish()
            except (FCRError, KeyboardInterrupt):
                # What was trained is to answer.
                if trainer.rows and not trainer.lost:
                    self._objective.eval()
                    milestones.finish()
                raise
            finally:
                self._objective.eval()
                if trainer.rows:
                    self._history, self._split = trainer.history, split
                    self.settings = _settings(
                        plan, self.design.unseen(train),
                        seed=seed, batch_size=batch_size, threads=number,
                    )  # fmt: skip
                elif not trainer.lost:
                    # Nothing was trained: what was there before is still there.
                    self._objective.load_state_dict(before)
        return self.history

    def _parts(self, split: Split | None, *, watched: bool) -> tuple[Cells, Cells | None]:
        """Return the cells that train, and those that validate if there are some."""
        train, valid = self.cells, None
        if split is not None:
            train = self.cells.subset(split.mask(self.cells, "train"))
            if (held := split.mask(self.cells, "valid")).any():
                valid = self.cells.subset(held)
        if watched and valid is None:
            raise DesignError(
                sentence(
                    "early stopping has nothing to watch",
                    where="fit(early_stopping=True)",
                    expected="a split with validation cells",
                    got="none",
                    hint="pass split=pf.splits.random(adata)",
                )
            )
        return train, valid

    def transfer(self, adata: AnnData) -> Self:
        """Return a model that knows new treatments too, with everything else as it is.

        Of the new treatments the masks and shifts are set to their posterior given the cells
        (``Prior.settle``); not a bit of any other weight changes. Judge it on other cells than
        these: ``transferred.importance(held_out)["bound"]`` is their importance-weighted bound.

        Parameters
        ----------
        adata
            Cells of the new treatments; those of known treatments are passed over.

        Returns
        -------
        Estimator
            Of the same class. Its data are these cells.

        Raises
        ------
        DesignError
            If no treatment is new, or a part reads treatments and cannot learn them alone.
        """
        history = self._fitted()
        design = self.design.extended(adata)
        made = type(self).__new__(type(self))
        made._cells = None
        made._assemble(design, dict(self.sizes), self._recipe)
        weights = made._objective.state_dict()
        held = made.model.conditionals().values()
        settling = [c.path for c in held if hasattr(c.prior, "settle") and not c.added]
        for name, value in self._objective.state_dict().items():
            grown = weights[name].shape != value.shape
            if grown and not any(path in name for path in settling):
                raise DesignError(
                    sentence(
                        "a new treatment cannot be learned alone",
                        where="transfer",
                        expected="treatments read by blocks' priors that settle, as SparseShift",
                        got=f"{name} of shape {tuple(value.shape)}",
                        hint="fit the model anew with the cells",
                    )
                )
            if grown:
                weights[name][: len(value)] = value
            else:
                weights[name] = value
        made._objective.load_state_dict(weights)
        made._objective.to(self.device).eval()
        cells = design.encode(adata, labels="optional")
        new = torch.arange(design.n_treatments) >= self.design.n_treatments
        taught = cells.subset(cells.treatment[:, new.numpy()].any(1))
        made._milestones(taught).settle(rows=new)
        made._cells, made._history, made.settings = cells, history.copy(), dict(self.settings)
        return made

    def calibrate(
        self,
        adata: AnnData | None = None,
        split: Split | None = None,
        *,
        steps: int | None = None,
        batch_size: int = 512,
        learning_rate: float = 2e-3,
        seed: int = 0,
        device: str | torch.device = "auto",
    ) -> pd.Series:
        """Train the guide on cells that the fitted model draws, so that its intervals hold.

        An amortised posterior is too narrow: it is fitted to cells that it has seen, by a
        divergence that prefers narrowness. On simulated cells, drawn anew at every step, it
        becomes as wide as its own errors demand (:mod:`pyro_fcr.infer.sleep`). Only the guide
        changes. What the model itself has wrong no interval of its latents can tell.

        Parameters
        ----------
        adata
            Gives conditions and library sizes of the simulated cells; the training data by
            default.
        split
            Takes the training cells of ``adata``; that of the last ``fit`` by default.
        steps
            By default a quarter of those that ``fit`` took.
        batch_size
            Cells per step.
        learning_rate
            Peak learning rate.
        seed
            Governs the simulated cells.
        device
            As for :meth:`fit`.

        Returns
        -------
        pandas.Series
            −log q of the known latents at every step, in nats per cell: it falls.
        """
        self._fitted()
        cells = self.encode(adata)
        split = self._split if adata is None and split is None else split
        if split is not None:
            cells = cells.subset(split.mask(cells, "train"))
        steps = max(1, self.settings["steps"] // 4) if steps is None else steps
        place = resolve_device(device)
        self._objective.to(place)
        for prior in self.model.priors.values():
            prior.leave()
        self._objective.train()
        for part in self.guide.modules():
            if isinstance(part, Encoders):
                # They are to tell of all of a drawn cell's molecules.
                part.eval()
        try:
            losses = sleep(
                self.model,
                self.guide,
                open_source(cells, device=place, batch_size=batch_size, seed=seed),
                steps=steps,
                learning_rate=learning_rate,
                seed=seed,
                device=place,
            )
        finally:
            self._objective.eval()
        self.settings["calibrated"] = steps
        return pd.Series(losses, index=pd.RangeIndex(1, steps + 1, name="step"), name="loss")

    def _milestones(self, cells: Cells) -> Milestones:
        return Milestones(
            self.model,
            self.guide,
            self._objective,
            aligned=self.declaration.aligned,
            cells=cells,
            moments=self._moments,
        )

    def _leakage(self, cells: Cells) -> dict[str, float]:
        means = {name: mean for name, (mean, _) in self._moments(cells).items()}
        return block_leakage(means, cells.condition_id)

    # ---- saving ----------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write the model to a folder: ``model.json``, ``weights.safetensors``, ``history.csv``.

        The files are written aside and moved over an earlier model's once all are whole.

        Parameters
        ----------
        path
            The folder; made if it does not exist.

        Raises
        ------
        WriteError
            If the disk is full or the folder cannot be written to.
        """
        folder, history = Path(path), self._fitted()
        recipe, design = self._recipe, self.design.to_dict()
        features = design.pop("treatment_features")
        with together(folder) as stage:
            write_tensors(stage / WEIGHTS, self._objective.state_dict(), {})
            if features is not None:
                write_tensors(stage / FEATURES, {"features": torch.tensor(features)}, {})
            history.to_csv(stage / HISTORY)
            described = {
                "format": io.FORMAT,
                "system": type(self).__name__,
                "versions": io.versions(),
                "settings": self.settings,
                "sizes": self.sizes,
                "design": design,
                "priors": {name: io.describe(prior) for name, prior in recipe.priors.items()},
                "guide": io.describe(recipe.guide),
                "decoder": io.describe(recipe.decoder),
                "likelihood": io.describe(recipe.likelihood),
                "penalties": {
                    name: io.describe(given) for name, given in recipe.penalties.items()
                },
                "hidden": list(recipe.hidden),
                "batch_in_decoder": recipe.batch_in_decoder,
                "options": {name: io.describe(given) for name, given in recipe.options.items()},
                "files": {path.name: io.file_hash(path) for path in stage.iterdir()},
            }
            io.write_json(stage / "model.json", described)
        return folder

    @classmethod
    def _from_saved(cls, saved: Mapping[str, Any], recipe: Recipe) -> Self:
        made = cls.__new__(cls)
        made._cells = None
        made._assemble(Design.from_dict(saved["design"]), dict(saved["sizes"]), recipe)
        made.settings = dict(saved["settings"])
        return made


def default_steps(n_cells: int) -> int:
    """Return how many steps the factors need to separate: a third of the cells, 600 to 20,000.

    Parameters
    ----------
    n_cells
        Number of training cells.
    """
    return min(20_000, max(600, n_cells // 3))


def default_weight_decay(n_cells: int) -> float:
    """Return a weight decay in inverse proportion to the cells, as a fixed prior's share is.

    Two for twelve hundred cells, which networks of this size would learn by heart; next to
    nothing for a hundred thousand.

    Parameters
    ----------
    n_cells
        Number of training cells.
    """
    return min(3.0, 2500.0 / n_cells)


def _keyword_only(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]


def _check_run(
    *,
    split: Any,
    max_epochs: Any,
    batch_size: Any,
    validate_every: Any,
    checkpoint: Any,
    resume: bool,
    threads: Any,
    on_nonfinite: Any,
) -> None:
    """Refuse what ``fit`` cannot do before anything is read or made."""
    if on_nonfinite not in ("raise", "skip"):
        raise FitError(
            sentence(
                "nothing known to do about steps that are not finite",
                where="fit(on_nonfinite=)",
                expected="'raise' or 'skip'",
                got=repr(on_nonfinite),
                hint="'raise' is the default",
            )
        )
    if batch_size != "auto" and not (isinstance(batch_size, Integral) and int(batch_size) > 0):
        raise FitError(
            sentence(
                "no cells in a batch",
                where="fit(batch_size=)",
                expected="a whole number of at least 1",
                got=repr(batch_size),
                hint="512 is the default, and 'auto' finds one that fits into memory",
            )
        )
    if max_epochs is not None:
        arguments.whole(max_epochs, "fit(max_epochs=)", least=0)
    if validate_every is not None:
        arguments.whole(validate_every, "fit(validate_every=)", least=1)
    if threads != "auto":
        arguments.whole(threads, "fit(threads=)", least=0, hint="'auto' is the default")
    if split is not None and not isinstance(split, Split):
        raise arguments.refused(
            split, where="fit(split=)", expected="a Split", hint="pf.splits makes them"
        )
    if resume and checkpoint is None:
        raise arguments.refused(
            None, where="fit(resume=True, checkpoint=)", expected="the checkpoint's file",
            hint="name it, or leave resume out",
        )  # fmt: skip


def _settings(plan: Plan, unseen: Mapping[str, list[str]], **told: Any) -> dict[str, Any]:
    """Return what a fitted model tells of its training."""
    named = ("learning_rate", "kl_warmup", "penalty_warmup", "align", "head_start", "weight_decay")
    left_out = {"unseen": unseen} if unseen else {}
    planned = {name: getattr(plan, name) for name in ("steps", *named)}
    return {**told, **left_out, **planned}
