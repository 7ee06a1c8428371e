"""What a penalty promises, and which variables it can read."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch

from pyro_fcr.errors import NothingToTell, SlotError, sentence
from pyro_fcr.nn import Part

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from pyro_fcr.data import Batch, Design
    from pyro_fcr.nn import MLP, Block

__all__ = [
    "Adversarial",
    "Label",
    "Penalty",
    "find_block",
    "find_label",
    "find_told",
    "permutation",
    "permute_within",
]


class Penalty(Part):
    """One scalar that grows with a dependence the model forbids.

    In the objective a penalty stands as ``weight · n_cells · value`` beside the ELBO summed over
    ``n_cells`` cells: weights are in nats per cell.
    """

    reads: ClassVar[Literal["draw", "mean", "posterior"]] = "draw"
    """Whether the penalty is handed posterior draws, posterior means, or the posteriors."""

    def bind(self, blocks: Sequence[Block], design: Design) -> None:
        """Size what depends on the blocks or the design; nothing by default."""

    @abstractmethod
    def forward(self, z: Mapping[str, Any], batch: Batch) -> Tensor:
        """Return the penalty, a scalar to be minimised.

        Parameters
        ----------
        z
            One tensor (B, d) per latent block; or, where ``reads`` is ``"posterior"``, a
            :class:`~pyro_fcr.nn.Posteriors`: by block its marginal posterior, a distribution with
            batch shape (B,) and event shape (d,), and ``joint``, that of all blocks.
        batch
            B cells, for their labels.
        """

    def turn(self, name: str, inverse: Tensor) -> None:
        """Read a block z' = A z as z was read; nothing by default.

        Parameters
        ----------
        name
            The block.
        inverse
            A⁻¹, shape (d, d).
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


class Label(NamedTuple):
    """A label of the cells: treatment group, a covariate, all of them, the batch, or several."""

    name: str
    n_groups: int
    column: int | None = None
    parts: tuple[Label, ...] | None = None
    levels: tuple[str, ...] = ()

    def of(self, batch: Batch) -> Tensor:
        """Return each cell's group; shape (B,), int64, -1 for a group never seen in training."""
        if self.column is not None:
            return batch.covariates[:, self.column]
        if self.parts is not None:
            joint = torch.zeros_like(batch.batch)
            known = torch.ones_like(joint, dtype=torch.bool)
            for part in self.parts:
                code = part.of(batch)
                joint, known = joint * part.n_groups + code, known & (code >= 0)
            return torch.where(known, joint, -1)
        ids = {
            "treatment": batch.treatment_id,
            "covariates": batch.covariate_id,
            "batch": batch.batch,
        }
        return ids[self.name]

    def one_hot(self, batch: Batch) -> Tensor:
        """Return one-hot rows, shape (B, ``n_groups``), float32; a group never seen is zeros."""
        groups = torch.arange(self.n_groups, device=batch.device)
        return (self.of(batch)[:, None] == groups).float()


def find_label(name: str | Sequence[str], design: Design, *, where: str) -> Label:
    """Return a label by ``"treatment"``, ``"covariates"`` (joint), ``"batch"``, or a column.

    Parameters
    ----------
    name
        The label, or the name of one of the schema's covariates; several are taken jointly, each
        pair of their groups a group of its own, and none at all is one group of all cells.
    design
        The experiment.
    where
        Who asks, for the message.

    Raises
    ------
    SlotError
        If the design has no such label.
    """
    if not isinstance(name, str):
        parts = tuple(find_label(part, design, where=where) for part in name)
        names = tuple(" | ".join(row) for row in itertools.product(*(p.levels for p in parts)))
        return Label(" | ".join(name), len(names), parts=parts, levels=names)
    columns = list(design.covariates)
    # A covariate's own name comes before the role of the same name.
    if name in columns and name not in ("treatment", "covariates"):
        levels = design.covariates[name]
        return Label(name, len(levels), columns.index(name), levels=levels)
    joint = {
        "treatment": design.treatment_levels,
        "covariates": design.covariate_groups,
        "batch": design.batches or ("",),
    }
    name = "batch" if name == design.schema.batch else name
    if name in joint:
        return Label(name, len(joint[name]), levels=joint[name])
    raise SlotError(
        sentence(
            f"a penalty reads '{name}'",
            where=where,
            expected=f"a latent block, or one of {[*joint, *columns]}",
            got=repr(name),
            hint="name a block of the system or a label of the schema",
        )
    )


def find_told(name: str | Sequence[str], design: Design, *, where: str) -> Label:
    """Return a label that has groups to be told apart; as :func:`find_label`.

    Raises
    ------
    NothingToTell
        If all cells are of one group.
    """
    label = find_label(name, design, where=where)
    if label.n_groups < 2:
        raise NothingToTell(
            sentence(
                f"'{label.name}' has nothing to tell",
                where=where,
                expected="a label with two groups or more",
                got=f"{label.n_groups}",
                hint="leave the penalty or head out",
            )
        )
    return label


def permutation(n: int, device: torch.device) -> Tensor:
    """Return 0 to n - 1 in random order; shape (n,), int64."""
    # randperm may go by way of the host, which a recorded step cannot.
    on_cpu = device.type == "cpu"
    return torch.randperm(n) if on_cpu else torch.rand(n, device=device).argsort()


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
    shuffled = permutation(len(groups), groups.device)
    by_group = torch.argsort(groups, stable=True)
    by_group_shuffled = shuffled[torch.argsort(groups[shuffled], stable=True)]
    found = torch.empty_like(by_group)
    found[by_group] = by_group_shuffled
    return found


def turn_reader(network: MLP, read: Iterable[Block], name: str, inverse: Tensor) -> None:
    """Let a network that reads blocks follow the turn of one of them.

    Parameters
    ----------
    network
        What reads them, side by side and before all else.
    read
        The blocks, in the order in which they are read.
    name, inverse
        As for :meth:`Penalty.turn`.
    """
    start = 0
    for block in read:
        if block.name == name:
            network.turn(slice(start, start + block.size), inverse)
        start += block.size


def find_block(name: str, blocks: Sequence[Block], *, where: str) -> Block:
    """Return a latent block by name.

    Raises
    ------
    SlotError
        If the system has no such block.
    """
    for block in blocks:
        if block.name == name:
            return block
    raise SlotError(
        sentence(
            f"a penalty reads the block '{name}'",
            where=where,
            expected=f"one of {[block.name for block in blocks]}",
            got=repr(name),
            hint="name a latent block of the system",
        )
    )
