"""The decoder of compositional models: conditions are added to the latents."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyro_fcr.data import label_batch
from pyro_fcr.decoders.base import Decoder
from pyro_fcr.decoders.network import NetworkDecoder
from pyro_fcr.errors import SlotError, sentence
from pyro_fcr.nn import Block, LabelCode, check_labels
from pyro_fcr.priors import Prior

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyro_fcr.data import Batch, Design

__all__ = ["AdditiveDecoder"]

GAIN = 5.0
"""Effects are stored divided by this, which under Adam multiplies their learning rate: they must
keep up with the encoders."""


class AdditiveDecoder(Decoder):
    r"""Latents, plus a vector for each label, through a network.

    .. math:: f\bigl(z + \textstyle\sum_k t_k e_k + \sum_j a_{x_j}\bigr)

    with :math:`t` the doses in units of training's: doses scale an effect, the parts of a
    combination add, and a control cell has none. It is the compositional perturbation
    autoencoder's (Lotfollahi et al., Mol Syst Biol 2023). Effects start at zero.

    A treatment's effect may instead be the mean of a prior over latents, with whatever Bayesian
    parameters that has: with sparse masks (:class:`~pyro_fcr.priors.SparseShift`) it is
    SAMS-VAE's (Bereket & Karaletsos, NeurIPS 2023).

    Parameters
    ----------
    parents
        Labels whose effects are added: any of ``"treatment"``, ``"covariates"``, ``"batch"``.
    effects
        A prior whose mean is the treatment's effect, in place of a free vector per treatment.
        Where it settles, as sparse shifts do, it does so beside the latents it is added to.
    hidden
        Widths of the network's hidden layers; by default those the system was given.

    Raises
    ------
    SlotError
        If no label is named, or one that the schema does not have, or ``effects`` has no mean
        that could be learned.
    """

    axes: Tensor

    def __init__(
        self,
        parents: Sequence[str] = ("treatment", "covariates"),
        effects: Prior | None = None,
        hidden: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.parents = (parents,) if isinstance(parents, str) else tuple(parents)
        self.effects = effects
        self.hidden = None if hidden is None else tuple(hidden)

    def bind(
        self,
        blocks: Sequence[Block],
        design: Design,
        start: Tensor,
        *,
        hidden: tuple[int, ...],
        with_batch: bool,
    ) -> None:
        """Make the effects and the network."""
        if not self.parents and self.effects is None:
            raise SlotError(
                sentence(
                    "no label whose effect is added",
                    where="AdditiveDecoder(parents=)",
                    expected="one of 'treatment', 'covariates', 'batch' at least",
                    got="none",
                    hint="use NetworkDecoder",
                )
            )
        free = [name for name in self.parents if self.effects is None or name != "treatment"]
        size = sum(block.size for block in blocks)
        self.code = LabelCode(design, free)
        if free:
            self.table = nn.Linear(self.code.size, size, bias=False)
            nn.init.zeros_(self.table.weight)
        if self.effects is not None:
            whole = Block("effects", size, check_labels(["treatment"], design, where="effects="))
            self.effects.bind(whole, design)
            # A copy: Pyro wants a part to have its place in a model before it is run.
            check_mean(copy.deepcopy(self.effects), label_batch(design, 2), size)
        self.register_buffer("axes", torch.eye(size))
        self.network = NetworkDecoder(hidden=self.hidden)
        self.network.bind(blocks, design, start, hidden=hidden, with_batch=with_batch)
        self.reads = self.network.reads | frozenset(self.parents)
        self.reads |= frozenset() if self.effects is None else {"treatment"}

    def shift(self, batch: Batch) -> Tensor:
        """Return what the labels add to each cell's latents; shape (B, d)."""
        shift = batch.library.new_zeros(len(batch), len(self.axes))
        if hasattr(self, "table"):
            shift = shift + GAIN * self.table(self.code(batch))
        if self.effects is not None:
            shift = shift + self.effects(batch).mean @ self.axes.T
        return shift

    def forward(self, z: Tensor, batch: Batch) -> Tensor:
        """Map latents (..., B, d) to (..., B, channels · G)."""
        return self.network(z + self.shift(batch), batch)

    def zero_unseen(self, batch: Batch) -> None:
        """Zero what the network would read of labels that no training cell has."""
        self.network.zero_unseen(batch)

    @torch.no_grad()
    def turn(self, columns: slice, inverse: Tensor) -> None:
        """Read latents z' = A z in some columns as before: ``inverse`` is A⁻¹."""
        self.network.turn(columns, inverse)
        turned = [self.table.weight] if hasattr(self, "table") else []
        effects: Any = self.effects
        if hasattr(effects, "turn"):
            effects.turn(columns, inverse)
        else:
            turned.append(self.axes)
        for rows in turned:
            rows[columns] = torch.linalg.solve(inverse, rows[columns])


def check_mean(effects: Prior, batch: Batch, size: int) -> None:
    """Refuse a prior whose mean cannot stand for the treatments' effects.

    Parameters
    ----------
    effects
        Bound.
    batch
        A few cells.
    size
        Dimensions of the latents, d.

    Raises
    ------
    SlotError
        If its parameters do not learn from its mean, it needs the guide, or has no mean.
    """
    problem = None
    if not effects.normalised:
        problem = "a density without normaliser, whose parameters its mean does not teach"
    elif hasattr(effects, "settle") and not hasattr(effects, "expected"):
        problem = "settle(...) without expected(batch), what it adds"
    elif type(effects).meet is not Prior.meet:
        problem = "a prior that reads the guide's posterior of a block, where there is no block"
    else:
        with torch.no_grad(), torch.random.fork_rng():
            try:
                mean = effects(batch).mean
            except NotImplementedError:
                problem = "a distribution without a known mean"
            else:
                if mean.shape != (len(batch), size) or not torch.isfinite(mean).all():
                    problem = f"a mean of shape {tuple(mean.shape)}, or one that is not finite"
    if problem is not None:
        raise SlotError(
            sentence(
                f"{type(effects).__name__} cannot stand for effects",
                where="AdditiveDecoder(effects=)",
                expected=f"a prior with a mean of {size} finite dimensions to be learned",
                got=problem,
                hint="use priors.Gaussian, Hierarchical or SparseShift",
            )
        )
