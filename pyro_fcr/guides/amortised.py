"""The amortised mean-field guide of the latent blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyro
import pyro.distributions as dist
import torch

from pyro_fcr.guides.encoders import Encoders, log_normal
from pyro_fcr.priors import bounded_exp

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Amortised"]


class Amortised(Encoders):
    """q(z_k | y) or q(z_k | y, labels): one Gaussian encoder per block, all axes independent.

    Parameters: see :class:`~pyro_fcr.guides.encoders.Encoders`.
    """

    def draw(self, parameters: list[Tensor]) -> dict[str, Tensor]:
        """Sample every block; the cell plate is open."""
        return {name: pyro.sample(name, q) for name, q in self.marginals(parameters).items()}

    def marginals(self, parameters: list[Tensor]) -> dict[str, dist.TorchDistribution]:
        """Return q of each block: Normal, batch shape (B,), event shape (d,)."""
        posteriors = {}
        for block, output in zip(self.blocks, parameters, strict=True):
            loc, raw = output.chunk(2, dim=-1)
            posteriors[block.name] = dist.Normal(loc, bounded_exp(raw, 4.0)).to_event(1)
        return posteriors

    def place(
        self, parameters: list[Tensor], noise: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return m + s ε and its log-density per block."""
        z, log_q = {}, {}
        parts = noise.split([block.size for block in self.blocks], dim=-1)
        for block, output, part in zip(self.blocks, parameters, parts, strict=True):
            loc, raw = output.chunk(2, dim=-1)
            scale = bounded_exp(raw, 4.0)
            z[block.name] = loc + scale * part
            log_q[block.name] = log_normal(part) - scale.log().sum(-1)
        return z, log_q

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
