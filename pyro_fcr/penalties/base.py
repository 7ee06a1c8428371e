"""What a penalty promises, and which variables it can read."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch.nn import functional as F

from pyro_fcr.errors import SlotError, sentence
from pyro_fcr.nn import Part

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from pyro_fcr.data import Batch, Design
    from pyro_fcr.nn import Block

__all__ = ["LABELS", "Adversarial", "Penalty", "group_of", "permute_within"]

LABELS = ("treatment", "covariates", "batch")
"""The labels a penalty can read or condition on, beside the latent blocks."""


class Penalty(Part):
    """One scalar that grows with a dependence the model forbids.

    In the objective a penalty stands as ``weight · n_cells · value`` beside the ELBO summed over
    ``n_cells`` cells: weights are in nats per cell.
    """

    reads: ClassVar[Literal["draw", "mean"]] = "draw"
    """Whether the penalty is handed posterior draws or posterior means."""

    def bind(self, blocks: Sequence[Block], design: Design) -> None:
        """Size what depends on the blocks or the design; nothing by default."""

    @abstractmethod
    def forward(self, z: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the penalty, a scalar to be minimised.

        Parameters
        ----------
        z
            One tensor (B, d) per latent block.
        batch
            B cells, for their labels.
        """


class Adversarial(Penalty):
    """A penalty with a critic of its own, trained on detached draws by its own optimiser."""

    @abstractmethod
    def critic_loss(self, z: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the critic's loss and its accuracy, two scalars.

        Parameters
        ----------
        z
            One detached tensor (B, d) per latent block.
        batch
            B cells.
        """


def group_of(name: str, batch: Batch) -> Tensor:
    """Return each cell's group by ``"treatment"``, ``"covariates"`` or ``"batch"``; shape (B,)."""
    ids = {
        "treatment": batch.treatment_id,
        "covariates": batch.covariate_id,
        "batch": batch.batch,
    }
    return ids[name]


def n_groups(name: str, design: Design) -> int:
    """Return how many groups a label has in the design."""
    sizes = {
        "treatment": design.n_treatment_levels,
        "covariates": design.n_covariate_levels,
        "batch": design.n_batches,
    }
    return sizes[name]


def one_hot_group(name: str, batch: Batch, n: int) -> Tensor:
    """Return one-hot rows of a label, shape (B, n); a group never seen is all zeros."""
    ids = group_of(name, batch)
    return F.one_hot(ids.clamp_min(0), n).float() * (ids >= 0)[:, None]


def permute_within(groups: Tensor) -> Tensor:
    """Return positions that shuffle cells within their group, uniformly at random.

    Parameters
    ----------
    groups
        Shape (B,): integer group codes. A group of one stays where it is.

    Returns
    -------
    Tensor
        Shape (B,), int64: a permutation with ``groups[permutation] == groups``.
    """
    shuffled = torch.randperm(len(groups), device=groups.device)
    by_group = torch.argsort(groups, stable=True)
    by_group_shuffled = shuffled[torch.argsort(groups[shuffled], stable=True)]
    permutation = torch.empty_like(by_group)
    permutation[by_group] = by_group_shuffled
    return permutation


def check_variables(names: Sequence[str], blocks: Sequence[Block], where: str) -> None:
    """Check that every name is a latent block or a label.

    Raises
    ------
    SlotError
        Naming the first that is neither.
    """
    known = [block.name for block in blocks] + list(LABELS)
    for name in names:
        if name not in known:
            raise SlotError(
                sentence(
                    f"a penalty reads '{name}'",
                    where=where,
                    expected=f"one of {known}",
                    got=repr(name),
                    hint="name a latent block of the system or a label",
                )
            )
