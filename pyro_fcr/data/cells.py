"""An encoded data set: one row per cell, ready to be cut into minibatches."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from pyro_fcr.data.batch import Batch
from pyro_fcr.data.stored import StoredCounts
from pyro_fcr.nonzeros import densify

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyro_fcr.data.design import Design

__all__ = ["Cells"]


@dataclass(frozen=True, eq=False)
class Cells:
    """N encoded cells; made by :meth:`Design.encode`, changed by :meth:`Design.do`.

    Treatments repeat, so each distinct row is kept once: cell n has row
    ``treatment_rows[treatment_row[n]]``. The other fields are those of :class:`Batch`.

    Parameters
    ----------
    design
        What the codes mean.
    names
        Shape (N,), object: the cells' names.
    counts
        Shape (N, G), float32: csr_matrix, array, or :class:`~pyro_fcr.data.StoredCounts`.
    library
        Shape (N,), float32.
    treatment_rows
        Shape (R, T), float32: the distinct dose-weighted treatments.
    treatment_row
        Shape (N,), int64: which of them a cell has.
    treatment_id
        Shape (N,), int64: treatment group; 0 is the control, -1 unseen in training or unknown.
    covariates
        Shape (N, K), int64.
    covariate_id
        Shape (N,), int64: joint covariate combination; -1 unseen in training or unknown.
    batch_id
        Shape (N,), int64: technical batch.
    unknown
        The schema's columns that the data did not have; their codes mean nothing.
    continuous
        Shape (N, C), float32: the numeric covariates, standardised; by default there are none.
    """

    design: Design
    names: NDArray[np.object_]
    counts: Any
    library: NDArray[np.float32]
    treatment_rows: NDArray[np.float32]
    treatment_row: NDArray[np.int64]
    treatment_id: NDArray[np.int64]
    covariates: NDArray[np.int64]
    covariate_id: NDArray[np.int64]
    batch_id: NDArray[np.int64]
    unknown: frozenset[str] = frozenset()
    continuous: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def __post_init__(self) -> None:
        """Give every cell its row of no numbers."""
        if not self.continuous.size:
            object.__setattr__(self, "continuous", np.zeros((len(self), 0), np.float32))

    def __len__(self) -> int:
        """Return the number of cells, N."""
        return len(self.names)

    @property
    def n_cells(self) -> int:
        """The number of cells, N."""
        return len(self.names)

    @property
    def treatment(self) -> NDArray[np.float32]:
        """Shape (N, T), float32: dose-weighted multi-hot rows; control cells are all zeros."""
        return self.treatment_rows[self.treatment_row]

    @property
    def dose(self) -> NDArray[np.float32]:
        """Shape (N,), float32: summed dose; 0 for control cells."""
        return self.treatment_rows.sum(axis=1)[self.treatment_row]

    @property
    def condition_id(self) -> NDArray[np.int64]:
        """Shape (N,): code of each cell's pair of treatment group and joint covariate."""
        return self.treatment_id * self.design.n_covariate_levels + self.covariate_id

    def batch(
        self, rows: Any = slice(None), *, n_cells: int | None = None, counts: Any = None
    ) -> Batch:
        """Densify the chosen cells into a minibatch of tensors.

        Parameters
        ----------
        rows
            Positions, a boolean mask, or a slice.
        n_cells
            Size of the population that the minibatch stands for; all N by default.
        counts
            Those cells' counts, where they have been read already.
        """
        index = self._positions(rows)
        # A slice is several times cheaper to read than the positions it stands for.
        at = rows if isinstance(rows, slice) else index
        picked = self.counts[at] if counts is None else counts
        told = sparse.issparse(picked)
        dense = densify(picked) if told else torch.from_numpy(np.array(picked))
        treatment = self.treatment_rows[self.treatment_row[index]]
        return Batch(
            counts=dense,
            library=torch.from_numpy(self.library[index]),
            treatment=torch.from_numpy(treatment),
            treatment_id=torch.from_numpy(self.treatment_id[index]),
            dose=torch.from_numpy(treatment.sum(axis=1)),
            covariates=torch.from_numpy(self.covariates[index]),
            covariate_id=torch.from_numpy(self.covariate_id[index]),
            batch=torch.from_numpy(self.batch_id[index]),
            index=torch.from_numpy(index),
            continuous=torch.from_numpy(self.continuous[index]),
            n_cells=len(self) if n_cells is None else n_cells,
        )

    @property
    def is_stored(self) -> bool:
        """Whether the counts are on disk."""
        return isinstance(self.counts, StoredCounts)

    def loaded(self) -> Cells:
        """Return the same cells with all their counts in memory."""
        return replace(self, counts=self.counts[:]) if self.is_stored else self

    def subset(self, rows: Any) -> Cells:
        """Return the chosen cells (positions, a boolean mask, or a slice) as a data set."""
        index = self._positions(rows)
        return replace(
            self,
            names=self.names[index],
            counts=self.counts.subset(index) if self.is_stored else self.counts[index],
            library=self.library[index],
            treatment_row=self.treatment_row[index],
            treatment_id=self.treatment_id[index],
            covariates=self.covariates[index],
            covariate_id=self.covariate_id[index],
            batch_id=self.batch_id[index],
            continuous=self.continuous[index],
        )

    def obs(self) -> pd.DataFrame:
        """Return the labels behind the codes, under the schema's column names.

        Columns that the data did not have are left out. A treatment's label has its parts in
        sorted order; the dose column holds one number, or one per part joined by the separator.
        """
        design, schema = self.design, self.design.schema
        columns: dict[str, Any] = {}
        if schema.treatment is not None and schema.treatment not in self.unknown:
            named = [design.label(row) for row in self.treatment_rows]
            texts = np.asarray([label for label, _ in named], dtype=object)
            columns[schema.treatment] = pd.Categorical(texts[self.treatment_row])
            if schema.dose is not None:
                doses = np.asarray([dose for _, dose in named], dtype=object)
                # One combination among the treatments makes the whole column text.
                single = all(isinstance(dose, float) for dose in doses)
                doses = doses.astype(np.float64) if single else doses.astype(str).astype(object)
                columns[schema.dose] = doses[self.treatment_row]
        for k, (name, levels) in enumerate(design.covariates.items()):
            if name not in self.unknown:
                columns[name] = pd.Categorical.from_codes(self.covariates[:, k], list(levels))
        for k, (name, (mean, sd)) in enumerate(design.continuous.items()):
            if name not in self.unknown:
                columns[name] = self.continuous[:, k].astype(np.float64) * sd + mean
        if schema.batch is not None and schema.batch not in {*columns, *self.unknown}:
            columns[schema.batch] = pd.Categorical.from_codes(self.batch_id, list(design.batches))
        return pd.DataFrame(columns, index=pd.Index(self.names))

    def _positions(self, rows: Any) -> NDArray[np.int64]:
        if isinstance(rows, slice):
            return np.arange(len(self), dtype=np.int64)[rows]
        if isinstance(rows, torch.Tensor):
            rows = rows.cpu().numpy()
        chosen = np.asarray(rows)
        if chosen.dtype == bool:
            if chosen.shape != (len(self),):
                raise IndexError(f"a mask of shape {chosen.shape} for {len(self)} cells")
            return np.flatnonzero(chosen)
        chosen = chosen.astype(np.int64).reshape(-1)
        return np.where(chosen < 0, chosen + len(self), chosen)
