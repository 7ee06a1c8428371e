"""Total correlation: how far blocks, or single components, are from independent of one another."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch.distributions import Independent
from torch.nn import functional as F

from pyro_fcr.errors import SlotError, sentence
from pyro_fcr.nn import MLP
from pyro_fcr.penalties.base import Adversarial, Penalty, find_block, permutation, turn_reader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyro.distributions import TorchDistribution
    from torch import Tensor

    from pyro_fcr.data import Batch, Design
    from pyro_fcr.nn import Block

__all__ = ["DensityRatioTC", "TotalCorrelation"]

Between = Literal["blocks", "components"]


class TotalCorrelation(Penalty):
    r"""KL(q(z) ‖ ∏ q(z_k)) of the aggregate posterior, from the posteriors of a minibatch.

    For cells i with draws :math:`z_i \sim q(z \mid y_i)` and the groups k of columns of z,

    .. math:: \frac1B \sum_i \Big[\log \hat q(z_i) - \sum_k \log \hat q(z_{ik})\Big],\qquad
              \hat q(z_i) = \tfrac1N\, q(z_i \mid y_i)
              + \tfrac{N - 1}{N}\, \tfrac{1}{B - 1} \sum_{j \ne i} q(z_i \mid y_j),

    with N the cells that the minibatch stands for: a cell's own posterior has the share it has
    among all N, and the others stand for the rest, so that each density is unbiased (the
    stratified weights of Chen et al., NeurIPS 2018, appendix C.2; the penalty of inVAE, Aliee et
    al. 2023, is the one between its two blocks). Their logarithm is not: with B cells the value
    is biased, and at most log B or so can be seen.

    Independence of the blocks *without* conditioning is asked for. Where what the blocks descend
    from is confounded, as cell types with batches, the truth itself has a total correlation.

    The guide must know the density of a group alone, as those with Gaussian posteriors do.

    Parameters
    ----------
    blocks
        Blocks to part; all of the system's by default.
    between
        ``"blocks"``, or ``"components"`` for all single dimensions of these blocks.
    """

    reads: ClassVar[Literal["draw", "mean", "posterior"]] = "posterior"

    def __init__(self, blocks: Sequence[str] | None = None, between: Between = "blocks") -> None:
        super().__init__()
        self.blocks = None if blocks is None else tuple(blocks)
        self.between = _checked(between, where=type(self).__name__)

    def bind(self, blocks: Sequence[Block], design: Design) -> None:
        """Look the blocks up."""
        self._names = _names(self.blocks, self.between, blocks, where=type(self).__name__)
        every = torch.arange(sum(block.size for block in blocks))
        own = dict(
            zip(
                [block.name for block in blocks],
                every.split([block.size for block in blocks]),
                strict=True,
            )
        )
        parts = [own[name] for name in self._names]
        self._whole = torch.cat(parts)
        self._groups = parts if self.between == "blocks" else list(self._whole.split(1))

    def forward(self, z: Mapping[str, TorchDistribution], batch: Batch) -> Tensor:
        """Return the total correlation, in nats; a scalar.

        Parameters
        ----------
        z
            One posterior per latent block: batch shape (B,), event shape (d,); where blocks
            depend on one another, with their ``joint``.
        batch
            B cells standing for ``batch.n_cells``.
        """
        joint = getattr(z, "joint", None)
        whole, parts = self._independent(z) if joint is None else self._dependent(joint)
        weight = _log_weights(parts, batch.n_cells)
        together = torch.logsumexp(whole + weight, dim=1)
        apart = torch.logsumexp(parts + weight, dim=2).sum(0)
        return (together - apart).mean()

    def _independent(self, z: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return log q(z_i | y_j) at [i, j] of all groups, (B, B), and of each, (K, B, B)."""
        found: list[Tensor] = []
        for q in (z[name] for name in self._names):
            drawn = q.rsample()[:, None]
            if self.between == "blocks":
                found.append(q.log_prob(drawn))
            elif not isinstance(q, Independent):
                raise SlotError(
                    sentence(
                        "the guide has no density of a component alone",
                        where="guide=",
                        expected="independent components, as guides.Amortised gives",
                        got=type(q).__name__,
                        hint="use between='blocks', or DensityRatioTC",
                    )
                )
            else:
                found += q.base_dist.log_prob(drawn).unbind(-1)
        parts = torch.stack(found)
        return parts.sum(0), parts

    def _dependent(self, joint: Any) -> tuple[Tensor, Tensor]:
        """Return the same of a posterior of all blocks together."""
        drawn = joint.rsample()[:, None]

        def density(columns: Tensor) -> Tensor:
            columns = columns.to(drawn.device)
            return joint.over(columns).log_prob(drawn[..., columns])

        return density(self._whole), torch.stack([density(group) for group in self._groups])


class DensityRatioTC(Adversarial):
    """KL(q(z) ‖ ∏ q(z_k)) by a critic of draws against draws shuffled among cells.

    Each group of columns is shuffled among the cells of the minibatch on its own, which gives
    draws from the product of the marginals; the critic's logit is then the log density ratio,
    and its mean over real draws the total correlation (FactorVAE, Kim & Mnih, ICML 2018).

    Parameters
    ----------
    blocks
        Blocks to part; all of the system's by default.
    between
        ``"blocks"``, or ``"components"`` for all single dimensions of these blocks.
    width, depth
        Hidden layers of the critic.
    """

    def __init__(
        self,
        blocks: Sequence[str] | None = None,
        between: Between = "blocks",
        width: int = 64,
        depth: int = 2,
    ) -> None:
        super().__init__()
        self.blocks = None if blocks is None else tuple(blocks)
        self.between = _checked(between, where=type(self).__name__)
        self.width, self.depth = width, depth

    def bind(self, blocks: Sequence[Block], design: Design) -> None:
        """Make the critic."""
        where = type(self).__name__
        self._names = _names(self.blocks, self.between, blocks, where=where)
        self._read = tuple(find_block(name, blocks, where=where) for name in self._names)
        size = sum(block.size for block in self._read)
        self.critic = MLP(size, 1, hidden=(self.width,) * self.depth)

    def turn(self, name: str, inverse: Tensor) -> None:
        """Let the critic follow."""
        turn_reader(self.critic, self._read, name, inverse)

    def forward(self, z: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the estimated total correlation, in nats; a scalar."""
        return self._logits([z[name] for name in self._names]).mean()

    def critic_loss(self, z: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the critic's cross-entropy over both classes, and its accuracy."""
        values = [z[name] for name in self._names]
        groups = values
        if self.between == "components":
            groups = list(torch.cat(values, dim=1).split(1, dim=1))
        shuffled = [g[permutation(len(g), g.device)] for g in groups]
        real, fake = self._logits(values), self._logits(shuffled)
        loss = F.softplus(-real).mean() + F.softplus(fake).mean()
        accuracy = ((real > 0).float().mean() + (fake <= 0).float().mean()) / 2
        return loss, accuracy

    def _logits(self, values: Sequence[Tensor]) -> Tensor:
        return self.critic(torch.cat(list(values), dim=-1)).squeeze(-1)


def _log_weights(pairs: Tensor, n_cells: int) -> Tensor:
    n = pairs.shape[-1]
    if n == 1:
        return pairs.new_zeros(1, 1)
    own, others = 1 / n_cells, (n_cells - 1) / n_cells / (n - 1)
    weights = pairs.new_full((n, n), math.log(others) if others else -math.inf)
    return weights.fill_diagonal_(math.log(own))


def _checked(between: Between, *, where: str) -> Between:
    if between not in ("blocks", "components"):
        raise SlotError(
            sentence(
                "nothing to part",
                where=f"{where}(between=)",
                expected="'blocks' or 'components'",
                got=repr(between),
                hint="use the default",
            )
        )
    return between


def _names(
    chosen: Sequence[str] | None, between: Between, blocks: Sequence[Block], *, where: str
) -> tuple[str, ...]:
    names = tuple(block.name for block in blocks) if chosen is None else tuple(chosen)
    found = [find_block(name, blocks, where=where) for name in names]
    groups = len(found) if between == "blocks" else sum(block.size for block in found)
    if groups < 2:
        raise SlotError(
            sentence(
                "one group is independent of nothing",
                where=where,
                expected=f"two {between} or more",
                got=f"{list(names)}",
                hint="name another block, or use between='components'",
            )
        )
    return names
