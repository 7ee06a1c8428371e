"""Draws from a fitted pair of model and guide: of latents, and of expression under ``do``."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine

from pyro_fcr import arguments
from pyro_fcr.model import OBSERVATION
from pyro_fcr.nn import in_cell_plate, latent_sites, marginal

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from torch import Tensor

    from pyro_fcr.data import Batch, Cells
    from pyro_fcr.model import LatentModel

__all__ = [
    "draw_globals",
    "draw_observation",
    "draw_observations",
    "draw_sites",
    "moments",
    "prior_moments",
    "seeded",
]

CHUNK = 512
"""Cells that are drawn at a time."""


@contextmanager
def seeded(seed: int, part: int = 0) -> Iterator[None]:
    """Make draws inside the context depend on the arguments alone and leave no trace outside.

    Parameters
    ----------
    seed
        The user's seed.
    part
        Which part of the work this is, so that parts do not repeat one another's noise.
    """
    arguments.whole(seed, "seed=", least=0)
    # Far apart, so that neighbouring seeds never meet in some part of one another's work.
    seed = (int(seed) * 1_000_003 + part) % 2**63
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def moments(guide: Callable[[Batch], Any], batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Return posterior mean and standard deviation of each cell-level site.

    Parameters
    ----------
    guide
        Called with the batch.
    batch
        B cells.

    Returns
    -------
    dict
        Site name to mean and standard deviation, each of shape (B, d).
    """
    trace = poutine.trace(guide).get_trace(batch)
    return {
        name: (marginal(site).mean, marginal(site).variance.sqrt())
        for name, site in latent_sites(trace).items()
        if in_cell_plate(site)
    }


def prior_moments(prior: Any) -> tuple[Tensor, Tensor]:
    """Return mean and variance of a prior, from draws where it has no closed form.

    Parameters
    ----------
    prior
        Batch shape (B,), event shape (d,).
    """
    try:
        return prior.mean, prior.variance
    except NotImplementedError:
        drawn = prior.sample((2000,))
        return drawn.mean(0), drawn.var(0)


@torch.no_grad()
def draw_globals(
    guide: Callable[[Batch], Any], batch: Batch, draws: int
) -> list[dict[str, Tensor]]:
    """Return draws of the sites outside the cell plate, for all chunks of cells to share.

    Parameters
    ----------
    guide
        Called with the batch.
    batch
        Any cells; a guide without globals is not run more than once.
    draws
        Number of draws.
    """
    arguments.whole(draws, "draws=", least=1)
    trace = poutine.trace(guide).get_trace(batch)
    names = [name for name, site in latent_sites(trace).items() if not in_cell_plate(site)]
    if not names:
        return [{} for _ in range(draws)]
    drawn = (latent_sites(poutine.trace(guide).get_trace(batch)) for _ in range(draws))
    return [{name: sites[name]["value"] for name in names} for sites in drawn]


@torch.no_grad()
def draw_sites(
    guide: Callable[[Batch], Any], batch: Batch, shared: Sequence[Mapping[str, Tensor]]
) -> Iterator[dict[str, Tensor]]:
    """Yield one draw of all latent sites at a time, by site name.

    Parameters
    ----------
    guide
        Called with the batch.
    batch
        B cells.
    shared
        The globals of each draw, from :func:`draw_globals`.
    """
    prepared = getattr(guide, "prepared", nullcontext)
    with prepared(batch):
        for values in shared:
            trace = poutine.trace(poutine.condition(guide, data=dict(values))).get_trace(batch)
            local = {name: site["value"] for name, site in latent_sites(trace).items()}
            yield {**values, **local}


@torch.no_grad()
def draw_observation(
    model: LatentModel,
    guide: Callable[[Batch], Any],
    factual: Batch,
    intervened: Batch,
    *,
    redraw: Collection[str],
    shared: Sequence[Mapping[str, Tensor]],
) -> Iterator[Any]:
    """Yield the distribution of the cells' counts under an intervention, one draw at a time.

    The guide is traced on the factual cells; the blocks the intervention leaves alone are kept,
    those in ``redraw`` are drawn anew from their priors under the intervention, and the result
    is decoded. Keeping all latents instead would leave the intervention without effect.

    Parameters
    ----------
    model, guide
        A fitted pair.
    factual
        B cells as they were observed.
    intervened
        The same cells with the labels that were set.
    redraw
        Names of the blocks that descend from what was set; empty for a reconstruction.
    shared
        The globals of each draw, from :func:`draw_globals`.

    Yields
    ------
    TorchDistribution
        Batch shape (B,), event shape (G,).
    """
    for sites in draw_sites(guide, factual, shared):
        kept = {name: value for name, value in sites.items() if name not in redraw}
        trace = poutine.trace(poutine.condition(model, data=kept)).get_trace(intervened)
        yield trace.nodes[OBSERVATION]["fn"]


def draw_observations(
    model: LatentModel,
    guide: Callable[[Batch], Any],
    factual: Cells,
    intervened: Cells,
    *,
    redraw: Collection[str],
    draws: int,
    seed: int,
    device: torch.device,
    size: int = CHUNK,
) -> Iterator[tuple[slice, Batch, Iterator[Any]]]:
    """Yield :func:`draw_observation` of many cells, some at a time; all share a draw's globals.

    Parameters
    ----------
    model, guide
        A fitted pair.
    factual, intervened
        The same N cells as they were observed and with the labels that were set.
    redraw
        Names of the blocks that descend from what was set.
    draws
        Number of posterior draws.
    seed
        Governs the draws; each chunk has noise of its own.
    device
        Where to compute.
    size
        Cells at a time.

    Yields
    ------
    rows, batch, observations
        Which cells, the cells as observed, and a distribution of their counts for each draw; to
        be read, and sampled from, before the next chunk.
    """
    with seeded(seed):
        shared = draw_globals(guide, factual.batch(slice(0, 2)).to(device), draws)
    for start in range(0, len(factual), size):
        rows = slice(start, start + size)
        before = factual.batch(rows).to(device)
        after = before if intervened is factual else intervened.batch(rows).to(device)
        with seeded(seed, start + 1):
            yield (
                rows,
                before,
                draw_observation(model, guide, before, after, redraw=redraw, shared=shared),
            )
