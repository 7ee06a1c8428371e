"""The amortised mean-field guide of the latent blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_fcr.guides.base import Guide
from pyro_fcr.nn import ConditionTable, ParallelMLP, check_labels
from pyro_fcr.priors import bounded_exp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyro_fcr.data import Batch, Design
    from pyro_fcr.likelihoods import GeneStatistics, Likelihood
    from pyro_fcr.nn import Block

__all__ = ["Amortised"]


class Amortised(Guide):
    """q(z_k | y) or q(z_k | y, parents of z_k): one Gaussian encoder per block.

    Parameters
    ----------
    labels
        Whether each encoder also sees the labels its block's prior is conditioned on, as in
        FCR's paper; or the names of labels that all of them see. Without any (the default) a
        latent holds what the cell's own genes say, and cells whose treatment or covariates are
        unknown can be embedded too.
    width, depth
        Hidden layers of each encoder.
    """

    def __init__(
        self, labels: bool | Sequence[str] = False, width: int = 128, depth: int = 2
    ) -> None:
        super().__init__()
        self.labels = labels if isinstance(labels, bool) else tuple(labels)
        self.width, self.depth = width, depth

    def bind(
        self,
        blocks: Sequence[Block],
        design: Design,
        likelihood: Likelihood,
        genes: GeneStatistics,
    ) -> None:
        """Make one encoder per block, fused into one pass over the genes."""
        self.blocks = tuple(blocks)
        self._features = likelihood.features
        self.register_buffer("mean_g", genes.mean.clone())
        self.register_buffer("scale_g", genes.scale.clone())
        sizes = [2 * block.size for block in blocks]
        self.encoders = ParallelMLP(design.n_genes, sizes, width=self.width, depth=self.depth)
        if self.labels:
            start = torch.full((self.width,), 0.1)
            chosen = None if isinstance(self.labels, bool) else frozenset(self.labels)
            read = [block.parents if chosen is None else chosen for block in blocks]
            where = "Amortised(labels=)"
            self.reads = check_labels(frozenset().union(*read), design, where=where)
            self.label_tables = nn.ModuleList(
                ConditionTable(design, labels, start) for labels in read
            )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Sample every block in the cell plate; one tensor (B, d) per block."""
        posteriors = self.posteriors(batch)
        with pyro.plate("cells", batch.n_cells, subsample=batch.index):
            return {name: pyro.sample(name, q) for name, q in posteriors.items()}

    def turn(self, name: str, matrix: Tensor, variance: Tensor) -> None:
        """Replace a block's posterior mean m by ``matrix`` · m, and its scales accordingly.

        A mean-field posterior stays one: of the turned covariance the diagonal is kept, in the
        log-scales to first order about the average cell.

        Parameters
        ----------
        name
            The block.
        matrix
            Shape (d, d).
        variance
            Shape (d,): the block's posterior variance, averaged over cells.
        """
        index = [block.name for block in self.blocks].index(name)
        shares = matrix.square() * variance
        turned = shares.sum(1)
        full = torch.block_diag(matrix, shares / turned[:, None]).to(self.mean_g.dtype)
        offset = 0.5 * (turned.log() - (shares / turned[:, None]) @ variance.log())
        offset = torch.cat([torch.zeros_like(offset), offset]).to(self.mean_g.dtype)
        self.encoders.turn(index, full, offset)

    def posteriors(self, batch: Batch) -> dict[str, dist.TorchDistribution]:
        """Return q of each block: Normal, batch shape (B,), event shape (d,)."""
        features = (self._features(batch) - self.mean_g) / self.scale_g
        shift = None
        if self.labels:
            shift = torch.cat([table(batch) for table in self.label_tables], dim=-1)
        outputs = self.encoders(features, shift)
        posteriors = {}
        for block, output in zip(self.blocks, outputs, strict=True):
            loc, raw = output.chunk(2, dim=-1)
            posteriors[block.name] = dist.Normal(loc, bounded_exp(raw, 4.0)).to_event(1)
        return posteriors
