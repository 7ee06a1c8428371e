"""A mixture of the guide's own posteriors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_fcr.data import label_batch
from pyro_fcr.errors import SlotError, sentence
from pyro_fcr.nn import Block, condition_map
from pyro_fcr.priors.base import Prior

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyro_fcr.data import Batch, Design

__all__ = ["VampPrior"]

DEPTH = 1e4
"""Molecules of a pseudo-cell; encoders read shares of the library."""


class VampPrior(Prior):
    r"""The aggregate posterior, approximated at K learned pseudo-cells.

    .. math:: p(z \mid c) = \sum_k \pi_k(c)\, q(z \mid u_k)

    with q the guide's own posterior of the block and :math:`u_k` expression profiles that are
    learned with it (Tomczak & Welling 2018, arXiv 1705.07120). Beyond the paper, the weights vary
    with the condition; all are equal at the start. The prior's gradient reaches the encoders, as
    in the paper. Pseudo-cells carry the labels of observed conditions in turn, for encoders that
    read labels. Its divergence has no closed form; draws stand in.

    The guide must tell its posteriors (``posteriors(batch)``, as the package's amortised guides
    do). Until it has met a guide, the prior's components are standard normal. When the guide is
    trained on with the model as it is (``calibrate``), the prior keeps the components it had.

    Parameters
    ----------
    components
        K, the number of pseudo-cells; each step encodes them all.
    condition
        How the weights read the condition: ``"table"``, ``"embedding"``, ``"mlp"`` or
        ``"features"``.
    """

    kept: Tensor
    has_left: Tensor

    def __init__(self, components: int = 20, condition: str = "table") -> None:
        super().__init__()
        self.components, self.condition = components, condition

    def bind(self, block: Block, design: Design) -> None:
        """Make the pseudo-cells and the map of weights."""
        self.name, self.size = block.name, block.size
        self.shares = design.library == "totals"
        spread = torch.full((self.components,), 0.05)
        self.table = condition_map(self.condition, design, block.parents, spread)
        self.register_buffer("rate", torch.zeros(design.n_genes))
        self.pseudo = nn.Parameter(torch.randn(self.components, design.n_genes))
        self.register_buffer("kept", torch.zeros(2, self.components, block.size))
        self.register_buffer("has_left", torch.tensor(False))
        self._look()
        cells = label_batch(design, self.components)
        depth = DEPTH if self.shares else 1.0
        self._labels = cells.replace(library=depth * cells.library)
        self._posteriors: Callable[[Batch], Any] | None = None

    def meet(self, guide: nn.Module, rate: Tensor) -> None:
        """Take the guide's posteriors for components, and the mean cell for a start."""
        found = getattr(guide, "locals", guide)
        # Of a guide that refines its encoders' answer, the encoders: refining asks for the prior.
        posteriors = getattr(getattr(found, "base", found), "posteriors", None)
        if posteriors is None:
            raise SlotError(
                sentence(
                    f"the VampPrior of '{self.name}' needs the guide's posteriors",
                    where="guide=",
                    expected="a guide with posteriors(batch), such as guides.Amortised",
                    got=type(guide).__name__,
                    hint="use priors.Mixture, or another guide",
                )
            )
        self._posteriors = posteriors
        with torch.no_grad():
            self.rate.copy_(rate)

    @torch.no_grad()
    def leave(self) -> None:
        """Keep the components' means and variances as they are."""
        parts = self.parts()
        self.kept.copy_(torch.stack([parts.mean, parts.variance.sqrt()]))
        self.has_left.fill_(True)
        self._look()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._look()

    def _look(self) -> None:
        # Once, so that no step has to wait for the device to tell.
        self._left = bool(self.has_left)

    def pseudo_cells(self) -> Batch:
        """Return the pseudo-cells as a batch of K."""
        if self._labels.device != self.pseudo.device:
            self._labels = self._labels.to(self.pseudo.device)
        if not self.shares:
            return self._labels.replace(counts=self.rate + self.pseudo)
        profile = torch.log(self.rate + 1e-7) + self.pseudo
        return self._labels.replace(counts=DEPTH * profile.softmax(-1))

    def parts(self) -> dist.TorchDistribution:
        """Return the components: batch shape (K,), event shape (d,)."""
        if self._left:
            return dist.Normal(self.kept[0], self.kept[1]).to_event(1)
        if self._posteriors is None:
            zeros = self.pseudo.new_zeros(self.components, self.size)
            return dist.Normal(zeros, 1.0).to_event(1)
        return self._posteriors(self.pseudo_cells())[self.name]

    def forward(self, batch: Batch) -> dist.TorchDistribution:
        """Return the mixture with batch shape (B,) and event shape (d,)."""
        weights = dist.Categorical(logits=self.table(batch))
        parts = self.parts().expand([len(batch), self.components])
        return dist.MixtureSameFamily(weights, parts)
