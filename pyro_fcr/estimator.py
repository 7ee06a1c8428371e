"""What every system can do: fit, latents, posterior, counterfactual, save. Knows none by name."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch

from pyro_fcr.analysis.draws import moments, seeded
from pyro_fcr.assembly import Declaration, Recipe, assemble
from pyro_fcr.data import Cells, Design, MemorySource, Schema, Split
from pyro_fcr.errors import NotFittedError, SchemaError, SlotError, sentence
from pyro_fcr.infer import Plan, Settled, Trainer, resolve_device
from pyro_fcr.likelihoods import Likelihood, resolve

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from anndata import AnnData
    from torch import nn

    from pyro_fcr.data import Batch
    from pyro_fcr.model import LatentModel
    from pyro_fcr.priors import Prior

__all__ = ["Estimator"]

CHUNK = 512
"""Cells read at a time from a fitted model."""


class Estimator(ABC):
    """A system bound to data.

    Parameters
    ----------
    adata
        Training data, one row per cell; it is only read.
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
    likelihood
        ``"nb"``, ``"zinb"``, ``"poisson"``, ``"normal"``, or a
        :class:`~pyro_fcr.likelihoods.Likelihood`.
    penalties
        By site name: a weight in nats per cell for one of the system's own terms (0 turns it
        off), or ``(part, weight)`` for a penalty or head of one's own.
    hidden
        Widths of the decoder's hidden layers.
    batch_in_decoder
        Whether the schema's batch enters the decoder; by default where the schema names one.
    require_counts
        Refuse data that are no molecule counts; by default what the likelihood asks for.

    Raises
    ------
    FCRError
        A subclass that says what in the data, the design or the slots does not fit.
    """

    requires: ClassVar[tuple[str, ...]] = ()
    """Fields of the schema that this system cannot do without."""

    def __init__(
        self,
        adata: AnnData,
        schema: Schema,
        *,
        sizes: Mapping[str, int] | None = None,
        priors: Mapping[str, Prior] | None = None,
        guide: Any = None,
        likelihood: str | Likelihood = "nb",
        penalties: Mapping[str, Any] | None = None,
        hidden: Sequence[int] = (128, 128),
        batch_in_decoder: bool | None = None,
        require_counts: bool | None = None,
    ) -> None:
        likelihood = resolve(likelihood)
        counts = likelihood.reads_counts if require_counts is None else require_counts
        design = Design.fit(adata, schema, require_counts=counts)
        use_batch = bool(design.batches) if batch_in_decoder is None else batch_in_decoder
        recipe = Recipe(
            dict(priors or {}), guide, likelihood, dict(penalties or {}), tuple(hidden), use_batch
        )
        self._cells: Cells | None = design.encode(adata)
        self._assemble(design, dict(sizes or {}), recipe, self._cells.batch(slice(0, 2)))

    def _assemble(
        self, design: Design, sizes: dict[str, int], recipe: Recipe, batch: Batch
    ) -> None:
        design.require(*self.requires, system=type(self).__name__)
        self.design, self.sizes, self._recipe = design, sizes, recipe
        self.declaration = self.declare(design, sizes)
        self._two_cells = batch
        self._model, self._guide, self._objective = assemble(
            self.declaration, recipe, design, batch, seed=0
        )
        self.history: pd.DataFrame | None = None

    @classmethod
    @abstractmethod
    def declare(cls, design: Design, sizes: Mapping[str, int]) -> Declaration:
        """Return the system's blocks, default priors and terms for a design.

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

    def fit(
        self,
        *,
        split: Split | None = None,
        max_epochs: int | None = None,
        batch_size: int = 512,
        learning_rate: float = 4.5e-3,
        seed: int = 0,
        device: str = "auto",
        early_stopping: bool = False,
        checkpoint: str | Path | None = None,
        resume: bool = False,
        progress: bool = True,
    ) -> pd.DataFrame:
        """Train from fresh weights."""
        cells = self._training_cells()
        part = {"train": slice(None), "valid": None}
        if split is not None:
            part = {name: split.mask(cells, name) for name in ("train", "valid")}
        train = cells.subset(part["train"])
        source = MemorySource(train, batch_size=batch_size, seed=seed)
        per_epoch = math.ceil(len(train) / batch_size)
        steps = default_steps(len(train)) if max_epochs is None else max_epochs * per_epoch
        fresh = assemble(self.declaration, self._recipe, self.design, self._two_cells, seed=seed)
        self._objective.load_state_dict(fresh[2].state_dict())
        trainer = Trainer(
            self._objective,
            Plan(steps=steps, learning_rate=learning_rate),
            seed=seed,
            device=resolve_device(device),
            checkpoint=None if checkpoint is None else Path(checkpoint),
        )
        self.history = trainer.fit(source, resume=resume, progress=progress)
        self._objective.eval()
        return self.history

    def latents(self, adata: AnnData | None = None, *, key_added: str | None = None) -> Any:
        """Return posterior means by block."""
        cells = self._encode(adata)
        out: dict[str, list[Any]] = {}
        with seeded(0):
            for batch in self._chunks(cells):
                for name, (mean, _) in moments(self.guide, batch).items():
                    out.setdefault(name, []).append(mean.cpu().numpy())
        return {
            name: pd.DataFrame(
                np.concatenate(parts), index=cells.names,
                columns=[f"{name}_{i}" for i in range(parts[0].shape[1])],
            )
            for name, parts in out.items()
        }

    def _encode(self, adata: AnnData | None) -> Cells:
        return self._training_cells() if adata is None else self.design.encode(adata)

    def _training_cells(self) -> Cells:
        return self._cells

    def _chunks(self, cells: Cells) -> Iterator[Batch]:
        device = next(self.guide.parameters()).device
        for start in range(0, len(cells), CHUNK):
            yield cells.batch(slice(start, start + CHUNK)).to(device)


def default_steps(n_cells: int) -> int:
    return 3000
