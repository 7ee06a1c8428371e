"""What amortised guides share: encoders that read a cell's genes and, if told so, its labels."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyro
import torch
from torch import Tensor, nn

from pyro_fcr import arguments
from pyro_fcr.guides.base import Guide
from pyro_fcr.nn import ConditionTable, ParallelMLP, SparseFeatures, check_labels
from pyro_fcr.nonzeros import nonzeros

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyro.distributions as dist

    from pyro_fcr.data import Batch, Design
    from pyro_fcr.likelihoods import GeneStatistics, Likelihood
    from pyro_fcr.nn import Block

__all__ = ["Encoders", "log_normal", "thinned"]


def thinned(batch: Batch, least: float) -> Batch:
    """Return cells with a random share of their molecules, uniform between ``least`` and all.

    Parameters
    ----------
    batch
        B cells with counts; each molecule stays with its cell's share, by itself.
    least
        The smallest share, above 0.
    """
    share = torch.empty_like(batch.library).uniform_(least, 1.0)
    if batch.device.type == "cpu":
        at = nonzeros(batch.counts)
        kept = torch.binomial(at.value, share.index_select(0, at.row))
        counts = torch.zeros_like(batch.counts)
        counts.view(-1).index_copy_(0, at.place, kept)
    else:
        counts = torch.binomial(batch.counts, share[:, None].expand_as(batch.counts))
    return batch.replace(counts=counts, library=batch.library * share)


def log_normal(noise: Tensor) -> Tensor:
    """Return the standard normal log-density of noise (..., d); shape (...)."""
    return -0.5 * (noise.square() + math.log(2 * math.pi)).sum(-1)


DENSEST = 0.25
"""Largest share of non-zero counts whose first layers are evaluated at these alone."""


class Encoders(Guide):
    """Encoders give each cell its variational parameters; a subclass says of which family.

    Where a block's distribution is conditional on other blocks, its site carries the posterior of
    the block alone as ``infer={"marginal": ...}``: that is what penalties and ``latents`` read.

    Parameters
    ----------
    labels
        Whether each encoder also sees the labels its block's prior is conditioned on, as in
        FCR's paper; or the names of labels that all of them see. Without any (the default) a
        latent holds what the cell's own genes say, and cells whose treatment or covariates are
        unknown can be embedded too.
    width, depth
        Hidden layers of each encoder.
    thinned_to
        In training encoders read a random share of a cell's molecules, uniform between this one
        and all, drawn anew for every cell and step; by default all. The decoder explains every
        molecule. What they learn then holds for other depths, and single cells are harder to
        learn by heart (denoising: Im et al., AAAI 2017; thinning of counts: Neufeld et al.,
        JMLR 2024). Values that are no counts are read as they are.
    """

    mean_g: Tensor
    scale_g: Tensor

    def __init__(
        self,
        labels: bool | Sequence[str] = False,
        width: int = 128,
        depth: int = 2,
        thinned_to: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 < thinned_to <= 1:
            raise arguments.refused(
                thinned_to,
                where=f"{type(self).__name__}(thinned_to=)",
                expected="a share of the molecules, above 0 and at most 1",
                hint="1 leaves the counts as they are",
            )
        self.thinned_to = thinned_to
        self.labels = labels if isinstance(labels, bool) else tuple(labels)
        self.width, self.depth = width, depth
        self._ready: tuple[Batch, list[Tensor]] | None = None

    def bind(
        self,
        blocks: Sequence[Block],
        design: Design,
        likelihood: Likelihood,
        genes: GeneStatistics,
    ) -> None:
        """Make the encoders, fused into one pass over the genes."""
        self.blocks = tuple(blocks)
        self.n_latent = sum(block.size for block in blocks)
        self._thins = self.thinned_to < 1 and likelihood.reads_counts
        self._features, self._sparse = likelihood.features, likelihood.sparse_features
        self.register_buffer("mean_g", genes.mean.clone())
        self.register_buffer("scale_g", genes.scale.clone())
        sizes = [2 * block.size for block in blocks] + self.shared_sizes()
        self.encoders = ParallelMLP(design.n_genes, sizes, width=self.width, depth=self.depth)
        if self.labels:
            chosen = None if isinstance(self.labels, bool) else frozenset(self.labels)
            read = [block.parents if chosen is None else chosen for block in blocks]
            every = frozenset().union(*read)
            read += [every for _ in self.shared_sizes()]
            where = f"{type(self).__name__}(labels=)"
            self.reads = check_labels(every, design, where=where)
            start = torch.full((self.width,), 0.1)
            self.label_tables = nn.ModuleList(
                ConditionTable(design, labels, start) for labels in read
            )
        self.bind_family()

    def bind_family(self) -> None:
        """Make what the family has beside the encoders; nothing by default."""

    def shared_sizes(self) -> list[int]:
        """Return the outputs of encoders beside the blocks' own; none by default."""
        return []

    def encode(self, batch: Batch) -> list[Tensor]:
        """Return the variational parameters: a location and raw scale per block, then the rest.

        Each has shape (B, size); those of a block 2d, a location and a raw scale for each of its
        dimensions.
        """
        shift = None
        if self.labels:
            shift = torch.cat([table(batch) for table in self.label_tables], dim=-1)
        return self.encoders(self.features(batch), shift)

    def features(self, batch: Batch) -> Tensor | SparseFeatures:
        """Return what the encoders read of each cell's genes, standardised; shape (B, G)."""
        if self.training and self._thins:
            batch = thinned(batch, self.thinned_to)
        found = self._sparse(batch)
        if found is not None and found.density < DENSEST:
            return SparseFeatures(found, self.mean_g, self.scale_g)
        return (self._features(batch) - self.mean_g) / self.scale_g

    @contextmanager
    def prepared(self, batch: Batch) -> Iterator[None]:
        """Encode once for repeated calls."""
        self._ready = (batch, self.encode(batch))
        try:
            yield
        finally:
            self._ready = None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Sample every block in the cell plate; one tensor (B, d) per block."""
        if self._ready is not None and self._ready[0] is batch:
            parameters = self._ready[1]
        else:
            parameters = self.encode(batch)
        with pyro.plate("cells", batch.n_cells, subsample=batch.index):
            return self.draw(parameters)

    def posteriors(self, batch: Batch) -> dict[str, dist.TorchDistribution]:
        """Return q of each block alone: batch shape (B,), event shape (d,)."""
        return self.marginals(self.encode(batch))

    def columns(self) -> dict[str, slice]:
        """Return where each block's dimensions stand among those of all blocks."""
        ends = itertools.accumulate(block.size for block in self.blocks)
        return {
            block.name: slice(end - block.size, end)
            for block, end in zip(self.blocks, ends, strict=True)
        }

    @abstractmethod
    def draw(self, parameters: list[Tensor]) -> dict[str, Tensor]:
        """Sample every block; the cell plate is open.

        Parameters
        ----------
        parameters
            As :meth:`encode` returns them.
        """

    @abstractmethod
    def marginals(self, parameters: list[Tensor]) -> dict[str, dist.TorchDistribution]:
        """Return q of each block alone.

        Parameters
        ----------
        parameters
            As :meth:`encode` returns them.
        """

    @abstractmethod
    def turn(self, name: str, matrix: Tensor, variance: Tensor) -> None:
        """Replace a block's z by ``matrix`` · z, as well as the family can.

        Parameters
        ----------
        name
            The block.
        matrix
            Shape (d, d).
        variance
            Shape (d,): the block's posterior variance, averaged over cells.
        """

    @abstractmethod
    def place(
        self, parameters: list[Tensor], noise: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the latents that standard normal noise stands for, and their log-densities.

        Parameters
        ----------
        parameters
            As :meth:`encode` returns them.
        noise
            Shape (B, D), D the dimensions of all blocks.

        Returns
        -------
        tuple
            One tensor (B, d) per block; and each block's log q, shape (B,), given those before
            it where the family has them depend.
        """
