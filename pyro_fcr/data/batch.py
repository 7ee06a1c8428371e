"""What a minibatch is: every field a prior, guide, likelihood or penalty may read."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

    from pyro_fcr.data.design import Design

__all__ = ["Batch", "label_batch"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Cells on their way through the model; B cells, G genes, T treatments, K covariates.

    Beside the K covariates, which are labels, there are C covariates that are numbers.

    Parameters
    ----------
    counts
        Shape (B, G), float32: molecules per cell and gene, or intensities.
    library
        Shape (B,), float32: the size factor in molecules, by default a cell's total count; 1
        for intensities.
    treatment
        Shape (B, T), float32: dose-weighted multi-hot rows; a control cell is all zeros.
    treatment_id
        Shape (B,), int64: the cell's treatment group (label and dose); 0 is the control and
        -1 a combination that the training data did not hold.
    dose
        Shape (B,), float32: summed dose of the cell's treatments; 0 for a control cell.
    covariates
        Shape (B, K), int64: one level code per covariate.
    covariate_id
        Shape (B,), int64: code of the joint covariate combination; -1 if it was never seen.
    batch
        Shape (B,), int64: code of the technical batch; 0 where the schema names none.
    index
        Shape (B,), int64: each cell's position among the ``n_cells``.
    n_cells
        Size of the population the minibatch stands for; the cell plate is scaled to it.
    continuous
        Shape (B, C), float32: the numeric covariates, standardised; by default there are none.
    """

    counts: Tensor
    library: Tensor
    treatment: Tensor
    treatment_id: Tensor
    dose: Tensor
    covariates: Tensor
    covariate_id: Tensor
    batch: Tensor
    index: Tensor
    n_cells: int
    continuous: Tensor = field(default_factory=lambda: torch.zeros(0, 0))

    def __post_init__(self) -> None:
        """Give every cell its row of no numbers."""
        if not self.continuous.numel():
            object.__setattr__(self, "continuous", self.library.new_zeros(len(self), 0))

    def __len__(self) -> int:
        """Return the number of cells, B."""
        return self.counts.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.counts.device

    def _map(self, function: Any) -> Batch:
        tensors = {
            f.name: function(getattr(self, f.name)) for f in fields(self) if f.name != "n_cells"
        }
        return Batch(**tensors, n_cells=self.n_cells)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with every tensor on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def rows(self, rows: Tensor) -> Batch:
        """Return the chosen rows (a boolean mask or positions, shape (B',)) as a batch."""
        return self._map(lambda tensor: tensor[rows])

    def replace(self, **changes: Any) -> Batch:
        """Return a copy with some fields replaced."""
        return replace(self, **changes)


def label_batch(design: Design, n: int) -> Batch:
    """Return empty cells with the labels of the design's conditions, the largest first.

    Parameters
    ----------
    design
        The experiment.
    n
        Cells; conditions come in turn.

    Returns
    -------
    Batch
        Counts are zero, libraries one, continuous covariates at their mean.
    """
    by_size = sorted(design.condition_counts, key=lambda row: (-row[2], row[:2]))
    treatment, joint = np.asarray([row[:2] for row in by_size]).T
    pick = np.arange(n) % len(by_size)
    treatment, joint = treatment[pick], joint[pick]
    levels = list(design.covariates.values())
    codes = [
        [names.index(v) for names, v in zip(levels, group, strict=True)]
        for group in design.covariate_levels
    ]
    rows = torch.tensor(design.treatment_rows[treatment])
    covariates = torch.tensor(codes, dtype=torch.int64).reshape(len(codes), len(levels))
    return Batch(
        counts=torch.zeros(n, design.n_genes),
        library=torch.ones(n),
        treatment=rows,
        treatment_id=torch.tensor(treatment),
        dose=rows.sum(1),
        covariates=covariates[joint],
        covariate_id=torch.tensor(joint),
        continuous=torch.zeros(n, len(design.continuous)),
        batch=torch.arange(n) % design.n_batches,
        index=torch.arange(n),
        n_cells=n,
    )
