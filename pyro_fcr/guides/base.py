"""What a guide promises, and the check that it covers its model."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from pyro.infer.util import check_fully_reparametrized

from pyro_fcr.errors import SlotError, sentence
from pyro_fcr.nn import Part, in_cell_plate, latent_sites, marginal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pyro.poutine import Trace
    from torch import Tensor

    from pyro_fcr.data import Batch, Design
    from pyro_fcr.likelihoods import GeneStatistics, Likelihood
    from pyro_fcr.nn import Block

__all__ = ["Guide", "check_coverage"]

_PLACE = {True: "in", False: "outside"}


class Guide(Part):
    """An approximate posterior that is sized when it is bound to a model.

    A guide need not be one of these: any module called with a batch that samples the model's
    sites will do.
    """

    reads: frozenset[str] = frozenset()
    """Labels the encoders read, of ``"treatment"``, ``"covariates"`` and ``"batch"``: cells
    without them cannot be embedded. Known once the guide is bound."""

    def bind(
        self,
        blocks: Sequence[Block],
        design: Design,
        likelihood: Likelihood,
        genes: GeneStatistics,
    ) -> None:
        """Make the networks for the latent blocks; nothing by default."""

    def bind_model(self, model: Callable[[Batch], Any], betas: Mapping[str, float]) -> None:
        """Learn of the model, for a guide that evaluates it; nothing by default.

        Parameters
        ----------
        model
            Called with a batch.
        betas
            Factors on the blocks' divergences in the objective, by block; 1 for those not named.
        """

    def tell(self, shared: Mapping[str, Tensor]) -> None:
        """Learn of the globals' draws before the cells are sampled; nothing by default."""

    @contextmanager
    def prepared(self, batch: Batch) -> Iterator[None]:
        """Share, among repeated calls with the batch, what is the same in all; nothing by default.

        Weights must not change within the context.
        """
        yield

    @abstractmethod
    def forward(self, batch: Batch) -> Any:
        """Sample the latent sites for B cells."""


def check_coverage(model: Callable[..., Any], guide: Callable[..., Any], batch: Batch) -> None:
    """Check that model and guide sample the same latent sites, alike in plate and shape.

    Every site of the guide must be reparametrised too: gradients reach a guide through its draws
    alone. And a cell's sites must have a mean and a variance: that is where a cell is said to lie.

    Parameters
    ----------
    model, guide
        Called with the batch.
    batch
        A few cells.

    Raises
    ------
    SlotError
        Naming the first site that is missing, superfluous, in the wrong plate, of the wrong shape,
        not reparametrised or without moments, and what to do about it.
    """
    with torch.no_grad():
        guide_trace = poutine.trace(guide).get_trace(batch)
        model_trace = poutine.trace(model).get_trace(batch)
    in_model = latent_sites(model_trace)
    in_guide = latent_sites(guide_trace)
    for name, site in in_model.items():
        owner = (
            "sample it in the guide's cell plate, as guides.Amortised does for every block"
            if in_cell_plate(site)
            else "sample it outside the plate, or give the globals an AutoGuide: "
            "guides.Composed(locals=a pf.Guide of the cells, globals=AutoNormal)"
        )
        if name not in in_guide:
            raise SlotError(
                sentence(
                    f"the guide misses the model's site '{name}'",
                    where="guide=",
                    expected=f"sites {sorted(in_model)}",
                    got=f"{sorted(in_guide)}",
                    hint=owner,
                )
            )
        if in_cell_plate(site) != in_cell_plate(in_guide[name]):
            inside = in_cell_plate(site)
            raise SlotError(
                sentence(
                    f"site '{name}' is {_PLACE[not inside]} the cell plate in the guide",
                    where="guide=",
                    expected=f"{_PLACE[inside]}, as in the model",
                    got=f"plates {[frame.name for frame in in_guide[name]['cond_indep_stack']]}",
                    hint="sample what each cell has, and nothing else, in "
                    "pyro.plate('cells', batch.n_cells, subsample=batch.index)",
                )
            )
        expected, got = tuple(site["value"].shape), tuple(in_guide[name]["value"].shape)
        if expected != got:
            raise SlotError(
                sentence(
                    f"site '{name}' has another shape in the guide than in the model",
                    where="guide=",
                    expected=str(expected),
                    got=str(got),
                    hint="check to_event and the sizes of both",
                )
            )
    _check_reparametrised(guide_trace)
    _check_moments(guide_trace)
    if extra := sorted(set(in_guide) - set(in_model)):
        raise SlotError(
            sentence(
                f"the guide samples '{extra[0]}', which the model does not have",
                where="guide=",
                expected=f"sites {sorted(in_model)}",
                got=f"{sorted(in_guide)}",
                hint="rename the site, or mark it infer={'is_auxiliary': True}",
            )
        )


def _check_reparametrised(trace: Trace) -> None:
    trace.compute_score_parts()
    for name, site in latent_sites(trace, auxiliary=True).items():
        try:
            check_fully_reparametrized(site)
        except NotImplementedError as error:
            innermost = site["fn"]
            while hasattr(innermost, "base_dist"):
                innermost = innermost.base_dist
            raise SlotError(
                sentence(
                    f"site '{name}' is not reparametrised in the guide",
                    where="guide=",
                    expected="a distribution with rsample, so that gradients pass through draws",
                    got=type(innermost).__name__,
                    hint="use a Normal or a transformed one",
                )
            ) from error


def _check_moments(trace: Trace) -> None:
    for name, site in latent_sites(trace).items():
        alone = marginal(site)
        try:
            if in_cell_plate(site):
                _ = alone.mean, alone.variance
        except NotImplementedError as error:
            raise SlotError(
                sentence(
                    f"site '{name}' has no known mean in the guide",
                    where="guide=",
                    expected="a distribution with mean and variance",
                    got=type(alone).__name__,
                    hint="tell them: pyro.sample(..., infer={'marginal': Normal(mean, sd)})",
                )
            ) from error
