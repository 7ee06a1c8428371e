"""One amortised Gaussian over all blocks, with full covariance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch

from pyro_fcr.distributions import FactoredNormal
from pyro_fcr.guides.encoders import Encoders, log_normal
from pyro_fcr.priors import bounded_exp

if TYPE_CHECKING:
    from torch import Tensor


__all__ = ["Joint"]


class Joint(Encoders):
    r"""q(z_1, …, z_K | y) = N(m(y), S(y)) with a full covariance across all dimensions.

    Latents that explain the same genes are correlated given a cell; a mean-field posterior, whose
    axes are independent, is too narrow for them. The covariance is amortised by its Cholesky
    factor, :math:`S = L L^\top` with :math:`L = \operatorname{diag}(s)(I + N)` and N strictly
    lower triangular, which starts near zero: near the mean field. Blocks keep their sites, each
    sampled given those before it, so that the product of the sites' densities is the joint one.

    Parameters: see :class:`~pyro_fcr.guides.encoders.Encoders`.
    """

    axes: Tensor
    below: Tensor

    def bind_family(self) -> None:
        """Start near the mean field, in axes that can be turned."""
        with torch.no_grad():
            self.encoders.last_weight_kdo[-1].mul_(0.1)
        # Turned with the gauge: what the encoders give is meant in these axes.
        self.register_buffer("axes", torch.eye(self.n_latent))
        below = torch.tril_indices(self.n_latent, self.n_latent, offset=-1)
        self.register_buffer("below", below, persistent=False)

    def shared_sizes(self) -> list[int]:
        """Return the number of entries below the diagonal."""
        return [self.n_latent * (self.n_latent - 1) // 2]

    def joint(self, parameters: list[Tensor]) -> FactoredNormal:
        """Return q of all blocks together: batch shape (B,), event shape (D,)."""
        *own, below = parameters
        loc = torch.cat([output.chunk(2, dim=-1)[0] for output in own], dim=-1)
        raw = torch.cat([output.chunk(2, dim=-1)[1] for output in own], dim=-1)
        unit = torch.diag_embed(torch.ones_like(loc))
        unit[..., self.below[0], self.below[1]] = below
        return FactoredNormal(loc, bounded_exp(raw, 4.0)[..., None] * unit, self.axes)

    def draw(self, parameters: list[Tensor]) -> dict[str, Tensor]:
        """Sample each block given those before it; the cell plate is open."""
        joint, marginals = self.joint(parameters), self.marginals(parameters)
        noise = joint.loc[:, :0]
        z: dict[str, Tensor] = {}
        for block in self.blocks:
            before = noise.shape[-1]
            own = slice(before, before + block.size)
            axes, rows = self.axes[own, own], joint.scale_tril[:, own]
            carried = axes @ (rows[..., :before] @ noise[..., None])
            q = FactoredNormal(joint.loc[:, own] + carried.squeeze(-1), rows[..., own], axes)
            told: Any = {"marginal": marginals[block.name], "joint": joint}
            z[block.name] = pyro.sample(block.name, q, infer=told)
            noise = torch.cat([noise, q.whiten(z[block.name])], dim=-1)
        return z

    def marginals(self, parameters: list[Tensor]) -> dict[str, dist.TorchDistribution]:
        """Return q of each block's dimensions one by one: Normal, event shape (d,)."""
        joint = self.joint(parameters)
        sizes = [block.size for block in self.blocks]
        parts = zip(joint.mean.split(sizes, -1), joint.variance.split(sizes, -1), strict=True)
        return {
            block.name: dist.Normal(mean, variance.sqrt()).to_event(1)
            for block, (mean, variance) in zip(self.blocks, parts, strict=True)
        }

    def place(
        self, parameters: list[Tensor], noise: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return m + L ε and its log-density, block given block."""
        joint = self.joint(parameters)
        values, slope = joint.place(noise), joint.scale_tril.diagonal(dim1=-2, dim2=-1).log()
        z, log_q = {}, {}
        for name, own in self.columns().items():
            axes = torch.linalg.slogdet(self.axes[own, own]).logabsdet
            z[name] = values[..., own]
            log_q[name] = log_normal(noise[..., own]) - slope[..., own].sum(-1) - axes
        return z, log_q

    def turn(self, name: str, matrix: Tensor, variance: Tensor) -> None:
        """Replace a block's z by ``matrix`` · z, with its whole covariance.

        Parameters
        ----------
        name
            The block.
        matrix
            Shape (d, d).
        variance
            Shape (d,): not needed, since nothing is approximated.
        """
        index = [block.name for block in self.blocks].index(name)
        own = self.columns()[name]
        matrix = matrix.to(self.axes.dtype)
        full = torch.block_diag(matrix, torch.eye(len(matrix)).to(matrix))
        self.encoders.turn(index, full, torch.zeros_like(full[0]))
        self.axes[own, own] = matrix @ self.axes[own, own]
