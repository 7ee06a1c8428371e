"""The one generative skeleton."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_fcr.nn import LocalModule, in_cell_plate, latent_sites, touch_globals

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyro.distributions as dist

    from pyro_fcr.data import Batch
    from pyro_fcr.decoders import Decoder
    from pyro_fcr.likelihoods import Likelihood
    from pyro_fcr.nn import Block
    from pyro_fcr.priors import Prior

__all__ = ["OBSERVATION", "Conditional", "LatentModel", "global_sites"]

OBSERVATION = "counts"
"""Name of the observed site."""


class Conditional(NamedTuple):
    """A prior over latents, and where in the model it stands."""

    prior: Any
    blocks: tuple[Block, ...]
    """The blocks whose latents it is about, side by side."""

    path: str
    """What the names of its globals' sites begin with."""

    added: bool
    """Whether the decoder adds its mean to latents that do not hold it."""


class LatentModel(LocalModule):
    """Conditional priors, a decoder and a likelihood: the generative half of every system.

    ::

        condition of the cell ──> z_1, ..., z_K  (one site per block)
                                       │
                                    decoder ──> likelihood ──> counts

    The model is plain Pyro: trace it, condition it, hand it to ``Predictive`` or ``NUTS``.

    Parameters
    ----------
    blocks
        The latent blocks in decoding order.
    priors
        A bound prior per block, by the block's name.
    decoder
        A bound decoder.
    likelihood
        A bound likelihood.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        *,
        priors: Mapping[str, Prior],
        decoder: Decoder,
        likelihood: Likelihood,
    ) -> None:
        super().__init__()
        self.blocks = tuple(blocks)
        parts = {block.name: priors[block.name] for block in blocks}
        self.priors: Any = PyroModule[nn.ModuleDict](parts)  # type: ignore[arg-type]
        self.decoder = decoder
        self.likelihood = likelihood

    def forward(self, batch: Batch) -> Tensor:
        """Run the generative process on B cells and return their counts, shape (B, G).

        The cell plate stands for ``batch.n_cells`` cells and is scaled accordingly.
        """
        touch_globals(self)
        with pyro.plate("cells", batch.n_cells, subsample=batch.index):
            z = {
                block.name: pyro.sample(block.name, self.priors[block.name](batch))
                for block in self.blocks
            }
            return pyro.sample(OBSERVATION, self.observation(z, batch), obs=batch.counts)

    def conditionals(self) -> dict[str, Conditional]:
        """Return the priors over latents: by block, and as ``decoder.effects`` those it adds."""
        found = {
            block.name: Conditional(
                self.priors[block.name], (block,), f"priors.{block.name}.", added=False
            )
            for block in self.blocks
        }
        if (effects := getattr(self.decoder, "effects", None)) is not None:
            name = "decoder.effects"
            found[name] = Conditional(effects, self.blocks, f"{name}.", added=True)
        return found

    def observation(self, z: Mapping[str, Tensor], batch: Batch) -> dist.TorchDistribution:
        """Return the distribution of the counts given latents.

        Parameters
        ----------
        z
            One tensor (..., B, d) per block.
        batch
            B cells; their library sizes and what labels the decoder reads.
        """
        latents = torch.cat([z[block.name] for block in self.blocks], dim=-1)
        return self.likelihood(self.decoder(latents, batch), batch)


def global_sites(model: LatentModel, batch: Batch) -> list[str]:
    """Return the names of the model's latent variables outside the cell plate."""
    with torch.no_grad():
        trace = poutine.trace(model).get_trace(batch)
    return [name for name, site in latent_sites(trace).items() if not in_cell_plate(site)]
