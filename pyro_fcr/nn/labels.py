"""Labels as numbers for a network to read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_fcr.errors import SlotError, sentence

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyro_fcr.data import Batch, Design

__all__ = ["LabelCode", "check_labels"]


def check_labels(labels: Iterable[str], design: Design, *, where: str) -> frozenset[str]:
    """Return labels that a network is to read, having checked that the schema names them.

    Parameters
    ----------
    labels
        Of ``"treatment"``, ``"covariates"`` and ``"batch"``.
    design
        The experiment.
    where
        Who asks, for the message.

    Raises
    ------
    SlotError
        If a label is none of these, or one that the schema does not name.
    """
    schema = design.schema
    named = {
        "treatment": schema.treatment is not None,
        "covariates": bool(schema.covariates),
        "batch": schema.batch is not None,
    }
    wanted = frozenset(labels)
    for name in sorted(wanted):
        if not named.get(name):
            raise SlotError(
                sentence(
                    f"no label '{name}' to read",
                    where=where,
                    expected=f"some of {[label for label in named if named[label]]}",
                    got=repr(name),
                    hint="name its column in the schema, or leave it out",
                )
            )
    return wanted


class LabelCode(nn.Module):
    """Labels as numbers: doses of treatments, levels of covariates, technical batches.

    Doses are in units of training's (``Design.dose_unit``); a control cell has zeros, and a
    combination the sum of its parts. Each covariate is a one-hot code of its own.

    Parameters
    ----------
    design
        The experiment.
    parents
        Which of ``"treatment"``, ``"covariates"``, ``"batch"`` to read.

    Raises
    ------
    SlotError
        If a label is none of these, or one that the schema does not name.
    """

    dose_unit: Tensor

    def __init__(self, design: Design, parents: Iterable[str]) -> None:
        super().__init__()
        self.parents = check_labels(parents, design, where="parents=")
        self.levels = {
            "treatment": (design.n_treatments,),
            "covariates": tuple(design.n_levels.values()),
            "batch": (design.n_batches,),
        }
        self.size = sum(sum(self.levels[name]) for name in self.parents)
        self.register_buffer("dose_unit", torch.tensor(design.dose_unit), persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        """Return the code of each cell's labels; shape (B, ``size``)."""
        codes = [batch.counts.new_zeros(len(batch), 0)]
        if "treatment" in self.parents:
            codes.append(batch.treatment / self.dose_unit)
        if "covariates" in self.parents:
            for k, n in enumerate(self.levels["covariates"]):
                codes.append(F.one_hot(batch.covariates[:, k], n).to(codes[0].dtype))
        if "batch" in self.parents:
            codes.append(F.one_hot(batch.batch, self.levels["batch"][0]).to(codes[0].dtype))
        return torch.cat(codes, dim=-1)
