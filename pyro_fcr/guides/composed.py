"""Amortised locals beside automatic globals."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide, AutoGuideList, AutoNormal
from torch import nn

from pyro_fcr.errors import SlotError, sentence
from pyro_fcr.guides.amortised import Amortised
from pyro_fcr.guides.base import Guide
from pyro_fcr.nn import Part, latent_sites

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pyro_fcr.data import Batch, Design
    from pyro_fcr.likelihoods import GeneStatistics, Likelihood
    from pyro_fcr.nn import Block

__all__ = ["Composed"]


class Composed(Guide):
    """An amortised guide for the cells' latents and any AutoGuide for the globals.

    Parameters
    ----------
    locals
        The guide of the latent blocks.
    globals
        An AutoGuide class, or a function from a model to a guide; it sees only the global
        sites. ``AutoGuideList`` cannot share the cell plate with amortised locals and is
        refused.

    Examples
    --------
    >>> from pyro.infer.autoguide import AutoLowRankMultivariateNormal
    >>> guide = Composed(globals=AutoLowRankMultivariateNormal)
    """

    def __init__(
        self,
        locals: Guide | None = None,
        globals: Callable[..., AutoGuide] = AutoNormal,
    ) -> None:
        super().__init__()
        if isinstance(globals, type) and issubclass(globals, AutoGuideList):
            raise SlotError(
                sentence(
                    "AutoGuideList cannot hold the globals",
                    where="guides.Composed(globals=)",
                    expected="one AutoGuide class",
                    got="AutoGuideList",
                    hint="use AutoNormal, AutoLowRankMultivariateNormal or AutoMultivariateNormal",
                )
            )
        self.locals: Guide = Amortised() if locals is None else locals
        self.globals: Any = globals
        self._parts: tuple[Part, ...] = ()

    def bind(
        self,
        blocks: Sequence[Block],
        design: Design,
        likelihood: Likelihood,
        genes: GeneStatistics,
    ) -> None:
        """Size the locals' guide."""
        self.locals.bind(blocks, design, likelihood, genes)
        self.reads = self.locals.reads

    def bind_model(self, model: Callable[[Batch], Any], betas: Mapping[str, float]) -> None:
        """Tell the locals' guide of the model; remember the parts that guide their own globals."""
        self.locals.bind_model(model, betas)
        self.reads = self.locals.reads
        # In a tuple, so that they stay the model's children: a second parent would rename sites.
        parts = model.modules() if isinstance(model, nn.Module) else ()
        self._parts = tuple(part for part in parts if isinstance(part, Part))

    @contextmanager
    def prepared(self, batch: Batch) -> Iterator[None]:
        """Prepare the locals' guide."""
        with self.locals.prepared(batch):
            yield

    def missing(self, sites: Sequence[str], batch: Batch) -> list[str]:
        """Return those of the model's global sites that nothing here samples yet.

        Parameters
        ----------
        sites
            Names of the model's global sites.
        batch
            A few cells.
        """
        if not sites:
            return []
        with torch.no_grad(), torch.random.fork_rng():
            own = latent_sites(poutine.trace(self).get_trace(batch))
        return [name for name in sites if name not in own]

    def bind_globals(self, model: Callable[..., Any], sites: Sequence[str]) -> None:
        """Make the guide of the model's global sites, the only ones it will see."""
        self.global_guide = self.globals(poutine.block(model, expose=list(sites)))

    def forward(self, batch: Batch) -> Any:
        """Sample the globals, then the cells' latents."""
        with poutine.trace() as capture:
            for part in self._parts:
                part.guide_globals()
            if hasattr(self, "global_guide"):
                self.global_guide(batch)
        # Those that are conditioned on count as drawn.
        drawn = latent_sites(capture.trace, observed=True)
        if drawn:
            self.locals.tell({name: site["value"] for name, site in drawn.items()})
        return self.locals(batch)
