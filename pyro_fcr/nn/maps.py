"""Other maps from conditions to vectors: embeddings, a network, features of treatments."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pyro_fcr.errors import SlotError, sentence
from pyro_fcr.nn.conditions import GAIN, ConditionMap, ConditionTable
from pyro_fcr.nn.labels import LabelCode
from pyro_fcr.nn.networks import MLP

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pyro_fcr.data import Batch, Design

__all__ = ["MAPS", "ConditionEmbedding", "ConditionMLP", "FeatureTable", "condition_map"]

MAPS = ("table", "embedding", "mlp", "features")
"""How a condition may be read."""


def condition_map(
    kind: str, design: Design, parents: Iterable[str], start: Tensor
) -> ConditionMap:
    """Make the map from conditions to a prior's parameters.

    Parameters
    ----------
    kind
        ``"table"`` (:class:`ConditionTable`), ``"embedding"`` (:class:`ConditionEmbedding`),
        ``"mlp"`` (:class:`ConditionMLP`) or ``"features"`` (:class:`FeatureTable`).
    design
        The experiment.
    parents
        Which of ``"treatment"``, ``"covariates"``, ``"batch"`` to read.
    start
        Shape (d,): standard deviation over conditions of each column at the start.

    Raises
    ------
    SlotError
        If there is no such kind, or the design has no treatment features.
    """
    makers = dict(zip(MAPS, (ConditionTable, ConditionEmbedding, ConditionMLP, FeatureTable),
                      strict=True))  # fmt: skip
    if kind not in makers:
        raise SlotError(
            sentence(
                "no such way to read a condition",
                where="condition=",
                expected=f"one of {list(MAPS)}",
                got=repr(kind),
                hint="leave it out for tables",
            )
        )
    return makers[kind](design, parents, start)


class ConditionEmbedding(ConditionMap):
    r"""The paper's form: a linear map of the product of two embeddings, element by element.

    .. math:: \eta(t, x) = W\left[(e_0 + \textstyle\sum_k t_k e_k) \odot (a_0 + a_x)\right] + b

    with one embedding of the treatment and one of all else (Mao et al. 2024, arXiv 2410.22472,
    for z_tx). It extrapolates badly to pairs that were not
    seen; :class:`ConditionTable` falls back on main effects instead.

    Parameters
    ----------
    design, parents, start
        As for :class:`ConditionTable`.
    width
        Length of the embeddings.
    """

    def __init__(
        self, design: Design, parents: Iterable[str], start: Tensor, width: int = 16
    ) -> None:
        super().__init__()
        rest = frozenset(parents)
        groups = {"treatment": rest & {"treatment"}, "others": rest - {"treatment"}}
        self.factors = nn.ModuleDict(
            {name: ConditionTable(design, group, torch.ones(width))
             for name, group in groups.items() if group}
        )  # fmt: skip
        for table in self.factors.values():
            nn.init.normal_(table.get_parameter("intercept"), std=1.0 / GAIN)
        self.weight = nn.Parameter(torch.randn(width, len(start)) * start / math.sqrt(width))
        self.bias = nn.Parameter(torch.zeros(len(start)))

    @property
    def extrapolates(self) -> bool:
        """Whether treatments are not read."""
        return "treatment" not in self.factors

    def forward(self, batch: Batch) -> Tensor:
        """Return the vector of each cell's condition; shape (B, d)."""
        product = self.bias.new_ones(len(batch), len(self.weight))
        for table in self.factors.values():
            product = product * table(batch)
        return product @ self.weight * bool(self.factors) + self.bias


class ConditionMLP(ConditionMap):
    """A network over the dose-weighted treatments and the one-hot codes of the other parents.

    Parameters
    ----------
    design, parents, start
        As for :class:`ConditionTable`.
    hidden
        Widths of the hidden layers.
    """

    def __init__(
        self,
        design: Design,
        parents: Iterable[str],
        start: Tensor,
        hidden: Sequence[int] = (32,),
    ) -> None:
        super().__init__()
        self.code = LabelCode(design, parents)
        self.intercept = nn.Parameter(torch.zeros(len(start)))
        if not self.code.size:
            return
        self.network = MLP(self.code.size, len(start), hidden=hidden, last_bias=False)
        with torch.no_grad():
            # Normalised and gated by GELU, a hidden unit has a second moment of 0.43.
            spread = start / math.sqrt(0.43 * self.network.last.in_features)
            self.network.last.weight.normal_().mul_(spread[:, None])

    @property
    def extrapolates(self) -> bool:
        """Whether treatments are not read."""
        return "treatment" not in self.code.roles

    def forward(self, batch: Batch) -> Tensor:
        """Return the vector of each cell's condition; shape (B, d)."""
        out = self.intercept.expand(len(batch), -1)
        return out + self.network(self.code(batch)) if self.code.size else out

    @torch.no_grad()
    def zero_unseen(self, batch: Batch) -> None:
        """Zero what the network would read of labels that no training condition has."""
        if self.code.size:
            self.network.first.weight.masked_fill_(self.code.unseen(batch), 0.0)


class FeatureTable(ConditionMap):
    r"""A table whose treatment rows are functions of the treatments' features.

    .. math:: \eta(t, x) = \eta_0 + a_x + \sum_k t_k \left(g(f_k) + h_x(f_k)\right)

    with :math:`f_k` the features that the schema names, standardised. Combinations add and the
    control has no effect, as in :class:`ConditionTable`; a treatment without any training cell
    takes its effect from its features. Interactions h start at zero, and beside covariates the
    main effects g as well.

    Parameters
    ----------
    design, parents, start
        As for :class:`ConditionTable`.
    hidden
        Widths of the hidden layers of g and h; empty for linear maps.

    Raises
    ------
    SlotError
        If treatments are read and the design has no features of them.
    """

    dose_unit: Tensor
    features: Tensor

    def __init__(
        self,
        design: Design,
        parents: Iterable[str],
        start: Tensor,
        hidden: Sequence[int] = (),
    ) -> None:
        super().__init__()
        parents = frozenset(parents)
        self.base = ConditionTable(design, parents - {"treatment"}, start)
        self.reads_treatment = "treatment" in parents
        if not self.reads_treatment:
            return
        if design.treatment_features is None:
            raise SlotError(
                sentence(
                    "the prior reads features of treatments, and there are none",
                    where="Schema.treatment_features",
                    expected="a key of adata.uns or adata.varm",
                    got="None",
                    hint="name it: Schema(treatment_features='chemistry')",
                )
            )
        raw = torch.tensor(design.treatment_features)
        spread = raw.std(0, correction=0)
        informative = spread > 1e-6 * raw.abs().amax(0)
        features = (raw - raw.mean(0)) / spread.where(informative, torch.ones_like(spread))
        self.register_buffer("features", features * informative, persistent=False)
        self.register_buffer("dose_unit", torch.tensor(design.dose_unit), persistent=False)
        n_in, size = raw.shape[1], len(start)
        self.effect = MLP(n_in, size, hidden=hidden)
        with torch.no_grad():
            self.effect.last.bias.zero_()
            width = self.effect.last.in_features
            beside = "covariates" in self.base.parents
            self.effect.last.weight.normal_().mul_(
                start[:, None] / math.sqrt(width) * (not beside)
            )
        if beside:
            self.interaction = MLP(n_in, self.base.n_covariates * size, hidden=hidden)
            nn.init.zeros_(self.interaction.last.weight)
            nn.init.zeros_(self.interaction.last.bias)

    @property
    def extrapolates(self) -> bool:
        """True: features tell of treatments without cells."""
        return True

    def forward(self, batch: Batch) -> Tensor:
        """Return the vector of each cell's condition; shape (B, d)."""
        out = self.base(batch)
        if not self.reads_treatment:
            return out
        treatment = batch.treatment / self.dose_unit
        out = out + treatment @ self.effect(self.features)
        if hasattr(self, "interaction"):
            levels = self.base.levels(batch)
            by_level = treatment @ self.interaction(self.features)
            by_level = by_level.unflatten(1, (levels.shape[1], -1))
            out = out + (levels[:, None] @ by_level).squeeze(1)
        return out
