"""A fitted model's halves and cells, on which every verb stands."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from pyro_fcr.analysis.draws import moments, seeded
from pyro_fcr.data import checks, open_data, open_source
from pyro_fcr.errors import DesignError, NotFittedError, sentence

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    import torch
    from anndata import AnnData
    from torch import nn

    from pyro_fcr.assembly import Declaration
    from pyro_fcr.data import Batch, Cells, Design, Split
    from pyro_fcr.model import LatentModel
    from pyro_fcr.penalties import Head

    Data: TypeAlias = AnnData | str | Path | Sequence[str | Path] | None

__all__ = ["CHUNK", "Core"]


CHUNK = 512
"""Cells read at a time."""


class Core(ABC):
    """A fitted model: its two halves, its cells, and how data are read for it."""

    design: Design
    """What the codes mean."""

    declaration: Declaration
    """The system's blocks, priors and terms."""

    settings: dict[str, Any]
    """How the model was trained."""

    _cells: Cells | None
    _history: pd.DataFrame | None
    _split: Split | None

    def __repr__(self) -> str:
        """Return what the model is, of which cells, and what to call next."""
        cells, schema = self._cells, self.design.schema
        sizes = ", ".join(f"{block.name} {block.size}" for block in self.declaration.blocks)
        what = [f"{len(cells):,} cells"] if cells is not None else []
        what.append(f"{self.design.n_genes:,} genes")
        if schema.treatment is not None:
            what.append(f"treatment {schema.treatment!r} against {schema.control!r}")
        if schema.covariates:
            what.append("covariates " + ", ".join(map(repr, schema.covariates)))
        if self._history is None:
            state = "not fitted: call fit()"
        else:
            state = f"fitted, {len(self._history)} epochs"
            state += ": ask diagnose(), latents(), effects(), counterfactual(adata, do=...)"
            if cells is None:
                state += "\n  loaded: it holds no cells, give cells with each call"
        return f"{type(self).__name__}({'; '.join([*what, sizes])})\n  {state}"

    @property
    @abstractmethod
    def model(self) -> LatentModel:
        """The generative half, a plain Pyro module called with a batch."""

    @property
    @abstractmethod
    def guide(self) -> nn.Module:
        """The approximate posterior, a plain Pyro module called with a batch."""

    @property
    @abstractmethod
    def heads(self) -> Mapping[str, Head]:
        """The classifiers in the objective, by name."""

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return next(self.model.parameters()).device

    @property
    def cells(self) -> Cells:
        """The training data as encoded cells; ``cells.batch(rows)`` is what the model reads.

        Raises
        ------
        NotFittedError
            If the model was loaded from a file, which holds no cells.
        """
        if self._cells is None:
            raise NotFittedError(
                sentence(
                    "a loaded model holds no cells",
                    where="adata",
                    expected="an AnnData",
                    got="nothing",
                    hint="pass the data to this call",
                )
            )
        return self._cells

    def encode(self, adata: Data = None) -> Cells:
        """Return data as encoded cells: genes realigned, categories looked up.

        Parameters
        ----------
        adata
            New data; the training data by default. Labels that the data do not have are marked
            unknown, which label-free encoders do not mind.
        """
        if adata is None:
            return self.cells
        cells = self.design.encode(open_data(adata), labels="optional")
        reads: frozenset[str] = getattr(self.guide, "reads", frozenset())
        self._require(cells, reads, "the encoders")
        self._require_known(cells, ["the encoder"] if "treatment" in reads else [])
        return cells

    def _require(self, cells: Cells, read: frozenset[str], reader: str) -> None:
        schema = self.design.schema
        covariates = (*schema.covariates, *schema.continuous)
        columns = {
            "treatment": (schema.treatment, schema.dose),
            "covariates": covariates,
            "batch": (schema.batch,),
        } | {name: (name,) for name in (*covariates, schema.batch) if name is not None}
        needed = [column for label in sorted(read) for column in columns[label]]
        if missing := [column for column in needed if column in cells.unknown]:
            raise DesignError(
                sentence(
                    f"{reader} read a label that the cells do not have",
                    where="adata.obs",
                    expected=f"the columns {sorted(set(filter(None, needed)))}",
                    got=f"no {missing[0]!r}",
                    hint="add the column, or set it with do=",
                )
            )
        self._tell_untrained(cells, [c for c in needed if c != schema.treatment], reader)

    def _require_known(self, cells: Cells, blind: Sequence[str]) -> None:
        # A table's row that was never trained answers like the control.
        if blind:
            self._tell_untrained(cells, [self.design.schema.treatment], blind[0])
        if blind and (new := self.design.without_cells(cells)):
            raise DesignError(
                sentence(
                    f"{blind[0]} knows nothing of {new[0]!r}, a treatment without cells",
                    where="treatment",
                    expected="a treatment that cells had, or parts that read its features",
                    got=f"{len(new)} without cells",
                    hint="use pf.priors.TreatmentFeatures() in every block that depends on the "
                    "treatment, and encoders and decoder without labels",
                )
            )

    def _tell_untrained(self, cells: Cells, columns: Iterable[str | None], reader: str) -> None:
        untrained = self.settings.get("unseen", {})
        if not untrained:
            return
        has = self.design.levels_of(cells)
        for column in untrained.keys() & set(columns):
            if some := [level for level in untrained[column] if level in has[column]]:
                checks.warn(
                    sentence(
                        f"no training cell had {column} {some[0]!r}",
                        where=reader,
                        expected="labels of training cells",
                        got=f"{len(some)} that the split left out",
                        hint="it counts as having no effect of its own; train with cells of it",
                    )
                )

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch of the last training run."""
        return self._fitted()

    def _fitted(self) -> pd.DataFrame:
        if self._history is None:
            raise NotFittedError(
                sentence(
                    "the model is not trained",
                    where=type(self).__name__,
                    expected="fit() first",
                    got="no training run",
                    hint="call fit(), or load a saved model",
                )
            )
        return self._history

    def _moments(self, cells: Cells) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        with seeded(0):
            for batch in self._chunks(cells):
                for name, (mean, sd) in moments(self.guide, batch).items():
                    parts.setdefault(name, []).append((mean.cpu().numpy(), sd.cpu().numpy()))
        return {
            name: (np.concatenate([m for m, _ in both]), np.concatenate([s for _, s in both]))
            for name, both in parts.items()
        }

    def _chunks(self, cells: Cells) -> Iterator[Batch]:
        source = open_source(cells, batch_size=CHUNK, shuffle=False)
        return (batch.to(self.device) for batch in source.batches(epoch=0))
