"""Labels as numbers for a network to read."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_fcr.errors import SlotError, sentence

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyro_fcr.data import Batch, Design

__all__ = ["Columns", "LabelCode", "check_labels", "find_columns"]


class Columns(NamedTuple):
    """What labels are to be read: roles, and positions among the covariates."""

    roles: frozenset[str]
    """Of ``"treatment"`` and ``"batch"``."""

    labels: tuple[int, ...]
    """Positions among the covariates that are labels."""

    numbers: tuple[int, ...]
    """Positions among the continuous covariates."""


def find_columns(names: Iterable[str], design: Design, *, where: str) -> Columns:
    """Resolve names of labels: roles, or columns of the schema.

    Parameters
    ----------
    names
        Of ``"treatment"``, ``"covariates"`` (all of them), ``"batch"`` and the columns of
        covariates and batch. A covariate's own name comes before the role of the same name.
    design
        The experiment.
    where
        Who asks, for the message.

    Raises
    ------
    SlotError
        If a name is none of these.
    """
    named = frozenset(names)
    every = "covariates" in named
    labels = [k for k, name in enumerate(design.covariates) if every or name in named]
    numbers = [k for k, name in enumerate(design.continuous) if every or name in named]
    columns = [*design.covariates, *design.continuous]
    roles = named - {"covariates"} - set(columns)
    roles = frozenset("batch" if name == design.schema.batch else name for name in roles)
    if unknown := sorted(roles - {"treatment", "batch"}):
        raise SlotError(
            sentence(
                f"no label '{unknown[0]}' to read",
                where=where,
                expected=f"some of {['treatment', 'covariates', 'batch', *columns]}",
                got=repr(unknown[0]),
                hint="name its column in the schema, or leave it out",
            )
        )
    return Columns(roles, tuple(labels), tuple(numbers))


def check_labels(labels: Iterable[str], design: Design, *, where: str) -> frozenset[str]:
    """Return labels that a network is to read, having checked that the schema names them.

    Parameters
    ----------
    labels
        Of ``"treatment"``, ``"covariates"``, ``"batch"`` and the columns of covariates and batch.
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
    columns = (*design.covariates, *design.continuous, schema.batch)
    named = {
        "treatment": schema.treatment is not None,
        "covariates": bool(design.covariates or design.continuous),
        "batch": schema.batch is not None,
    } | {name: True for name in columns if name is not None}
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
    combination the sum of its parts. Each covariate is a one-hot code of its own, a continuous
    one its standardised number.

    Parameters
    ----------
    design
        The experiment.
    parents
        Which labels to read, by role or column, as :func:`find_columns` takes them.

    Raises
    ------
    SlotError
        If a label is none of these, or one that the schema does not name.
    """

    dose_unit: Tensor

    def __init__(self, design: Design, parents: Iterable[str]) -> None:
        super().__init__()
        where = "parents="
        found = find_columns(check_labels(parents, design, where=where), design, where=where)
        self.roles, self.numbers = found.roles, list(found.numbers)
        counts = list(design.n_levels.values())
        self.levels = [(k, counts[k]) for k in found.labels]
        self.n_batches = design.n_batches
        self.size = (
            design.n_treatments * ("treatment" in self.roles)
            + sum(n for _, n in self.levels)
            + len(self.numbers)
            + self.n_batches * ("batch" in self.roles)
        )
        self.register_buffer("dose_unit", torch.tensor(design.dose_unit), persistent=False)

    def unseen(self, batch: Batch) -> Tensor:
        """Return which labels' columns none of a batch's cells has; shape (``size``,), bool."""
        unseen = (self(batch) == 0).all(0)
        end = self.size - self.n_batches * ("batch" in self.roles)
        unseen[end - len(self.numbers) : end] = False
        return unseen

    def forward(self, batch: Batch) -> Tensor:
        """Return the code of each cell's labels; shape (B, ``size``)."""
        codes = [batch.counts.new_zeros(len(batch), 0)]
        if "treatment" in self.roles:
            codes.append(batch.treatment / self.dose_unit)
        for k, n in self.levels:
            codes.append(F.one_hot(batch.covariates[:, k], n).to(codes[0].dtype))
        if self.numbers:
            codes.append(batch.continuous[:, self.numbers])
        if "batch" in self.roles:
            codes.append(F.one_hot(batch.batch, self.n_batches).to(codes[0].dtype))
        return torch.cat(codes, dim=-1)
