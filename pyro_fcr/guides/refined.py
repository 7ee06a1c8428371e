"""Amortised encoders whose answer is improved cell by cell."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample

from pyro_fcr.errors import SlotError, sentence
from pyro_fcr.guides.amortised import Amortised
from pyro_fcr.guides.base import Guide
from pyro_fcr.guides.encoders import Encoders
from pyro_fcr.nn import in_cell_plate
from pyro_fcr.priors import bounded_exp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    import pyro.distributions as dist
    from torch import Tensor

    from pyro_fcr.data import Batch, Design
    from pyro_fcr.likelihoods import GeneStatistics, Likelihood
    from pyro_fcr.nn import Block

__all__ = ["SemiAmortised"]


SHARED_UNIT = 0.25
"""Unit of the parameters beside blocks' own, correlations say: one noise moves many of them."""


class SemiAmortised(Guide):
    """Encoders give each cell a start; gradient steps on its own ELBO do the rest.

    An encoder must answer for all cells at once and misses each one's optimum by the
    amortisation gap (Cremer et al., ICML 2018). Here the cell's variational parameters are moved
    by a few steps of Adam on its ELBO, the model held fixed (Kim et al., ICML 2018). Training is
    amortised, and the steps are taken whenever the guide is in evaluation mode: by ``latents``,
    ``posterior``, ``counterfactual`` and every other verb.

    A cell's own ELBO is that of its condition: whatever labels the priors and the decoder read,
    the refined guide reads too, and cells without them cannot be embedded.

    Parameters
    ----------
    base
        Encoders of any family; mean-field ones by default.
    steps
        Gradient steps per cell. Each costs two passes of the decoder.
    rate
        Size of the first step: of locations in posterior standard deviations, of log-scales in
        nats. It falls linearly to nothing.
    in_training
        Whether the steps are taken in training too: the decoder then learns from improved
        latents, and the encoders' gradient is the one at the improved parameters.
    """

    def __init__(
        self,
        base: Encoders | None = None,
        steps: int = 25,
        rate: float = 0.1,
        in_training: bool = False,
    ) -> None:
        super().__init__()
        base = Amortised() if base is None else base
        if not isinstance(base, Encoders):
            raise SlotError(
                sentence(
                    "only encoders have parameters to refine",
                    where="SemiAmortised(base=)",
                    expected="guides.Amortised, guides.Joint or other Encoders",
                    got=type(base).__name__,
                    hint="subclass guides.Encoders",
                )
            )
        self.base: Encoders = base
        self.steps, self.rate, self.in_training = steps, rate, in_training
        self.shared: dict[str, Tensor] = {}
        self._ready: tuple[Batch, list[Tensor]] | None = None

    def bind(
        self,
        blocks: Sequence[Block],
        design: Design,
        likelihood: Likelihood,
        genes: GeneStatistics,
    ) -> None:
        """Size the encoders."""
        self.base.bind(blocks, design, likelihood, genes)
        self.reads = self.base.reads

    def bind_model(self, model: Callable[[Batch], Any], betas: Mapping[str, float]) -> None:
        """Remember the model whose ELBO is climbed; its parameters stay its own."""
        self._model, self._betas = (model,), dict(betas)
        decoder = getattr(model, "decoder", None)
        parents = [block.parents for block in getattr(model, "blocks", ())]
        self.reads = self.base.reads.union(getattr(decoder, "reads", ()), *parents)

    def tell(self, shared: Mapping[str, Tensor]) -> None:
        """Condition the cells' ELBO on draws of the globals."""
        self.shared = {name: value.detach() for name, value in shared.items()}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Sample every block in the cell plate; one tensor (B, d) per block."""
        parameters = self.encode(batch)
        with pyro.plate("cells", batch.n_cells, subsample=batch.index):
            return self.base.draw(parameters)

    def encode(self, batch: Batch) -> list[Tensor]:
        """Return the cells' variational parameters, improved where that is due."""
        if self._ready is not None and self._ready[0] is batch:
            return self._ready[1]
        start = self.base.encode(batch)
        if self.training and not self.in_training:
            return start
        found = self.refine(start, batch)
        return [s + (f - s.detach()) for s, f in zip(start, found, strict=True)]

    @contextmanager
    def prepared(self, batch: Batch) -> Iterator[None]:
        """Refine once for repeated calls; where globals are drawn anew, each call refines."""
        self._ready = None if self.shared else (batch, self.encode(batch))
        try:
            yield
        finally:
            self._ready = None

    def posteriors(self, batch: Batch) -> dict[str, dist.TorchDistribution]:
        """Return q of each block alone: batch shape (B,), event shape (d,)."""
        return self.base.marginals(self.encode(batch))

    def turn(self, name: str, matrix: Tensor, variance: Tensor) -> None:
        """Turn the encoders; see :meth:`Amortised.turn`."""
        self.base.turn(name, matrix, variance)

    def elbo(self, parameters: list[Tensor], batch: Batch, noise: Tensor) -> Tensor:
        """Return each cell's ELBO in nats, estimated at some noise and at its negative.

        The blocks' divergences carry the factors that they have in the objective.

        Parameters
        ----------
        parameters
            As :meth:`encode` returns them.
        batch
            B cells.
        noise
            Shape (B, D), D the dimensions of all blocks.

        Returns
        -------
        Tensor
            Shape (B,), up to the globals' own terms.
        """
        both = [self._at(parameters, batch, sign * noise) for sign in (1, -1)]
        return torch.stack(both).mean(0)

    def refine(self, parameters: list[Tensor], batch: Batch) -> list[Tensor]:
        """Return the parameters after ``steps`` steps up each cell's ELBO, detached.

        Parameters
        ----------
        parameters
            As :meth:`encode` returns them.
        batch
            B cells.
        """
        start = [value.detach() for value in parameters]
        units = self._units(start)
        moved = [torch.zeros_like(value) for value in start]
        first = [torch.zeros_like(value) for value in start]
        second = [torch.zeros_like(value) for value in start]
        # Any sites in here are no business of whoever traces the guide.
        with poutine.block(), torch.enable_grad():
            for step in range(self.steps):
                free = [value.requires_grad_() for value in moved]
                placed = [s + u * m for s, u, m in zip(start, units, free, strict=True)]
                # Signs have a normal's first three moments and no spread in their squares, which
                # is what makes the gradients of log-scales noisy.
                noise = start[0].new_empty(len(batch), self.base.n_latent).normal_().sign()
                gradients = torch.autograd.grad(self.elbo(placed, batch, noise).sum(), free)
                rate = self.rate * (1 - step / self.steps)
                with torch.no_grad():
                    for k, gradient in enumerate(gradients):
                        first[k].lerp_(gradient, 0.1)
                        second[k].lerp_(gradient.square(), 0.05)
                        mean = first[k] / (1 - 0.9 ** (step + 1))
                        size = (second[k] / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8
                        moved[k] = moved[k].detach() + rate * mean / size
        return [s + u * m for s, u, m in zip(start, units, moved, strict=True)]

    def _units(self, start: list[Tensor]) -> list[Tensor]:
        units = [SHARED_UNIT * torch.ones_like(value) for value in start]
        for k, _ in enumerate(self.base.blocks):
            raw = start[k].chunk(2, dim=-1)[1]
            units[k] = torch.cat([bounded_exp(raw, 4.0), torch.ones_like(raw)], dim=-1)
        return units

    def _at(self, parameters: list[Tensor], batch: Batch, noise: Tensor) -> Tensor:
        z, log_q = self.base.place(parameters, noise)
        (model,) = self._model
        conditioned = poutine.condition(model, data={**self.shared, **z})
        trace = poutine.trace(conditioned).get_trace(batch)
        terms = []
        site: Any
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and in_cell_plate(site) and not site_is_subsample(site):
                log_p = site["fn"].log_prob(site["value"])
                if name in log_q:
                    log_p = self._betas.get(name, 1.0) * (log_p - log_q[name])
                terms.append(log_p)
        return torch.stack(terms).sum(0)
