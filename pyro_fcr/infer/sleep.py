"""The sleep phase: encoders trained on cells that the model itself made up."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_fcr.nn import in_cell_plate, latent_sites

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pyro_fcr.data import Batch, BatchSource

__all__ = ["dream", "sleep", "sleep_loss"]

RISE = 50
"""Steps over which the learning rate rises to its peak, at most."""


@torch.no_grad()
def dream(
    model: Callable[[Batch], Any], guide: Callable[[Batch], Any], batch: Batch
) -> tuple[dict[str, Tensor], dict[str, Tensor], Batch]:
    """Draw latents and counts for cells of the batch's conditions and library sizes.

    Globals are drawn from the guide, what belongs to a cell from the model.

    Parameters
    ----------
    model, guide
        Called with the batch.
    batch
        B cells; their counts are not read by the draw.

    Returns
    -------
    tuple
        The globals, the cells' latents by site, and the batch with the drawn counts.
    """
    drawn = latent_sites(poutine.trace(guide).get_trace(batch))
    shared = {name: site["value"] for name, site in drawn.items() if not in_cell_plate(site)}
    # The innermost handler comes first: were it the other way, globals would be drawn anew.
    made = poutine.condition(poutine.uncondition(model), data=shared)
    trace = poutine.trace(made).get_trace(batch)
    observed = [
        name
        for name, site in trace.iter_stochastic_nodes()
        if (site["infer"] or {}).get("was_observed")
    ]
    local = {
        name: site["value"]
        for name, site in latent_sites(trace).items()
        if name not in (*shared, *observed)
    }
    (counts,) = (trace.nodes[name]["value"] for name in observed)
    return shared, local, batch.replace(counts=counts)


def sleep_loss(
    guide: Callable[[Batch], Any],
    shared: Mapping[str, Tensor],
    local: Mapping[str, Tensor],
    batch: Batch,
) -> Tensor:
    """Return −log q(z | y) of known latents, in nats per cell.

    Parameters
    ----------
    guide
        Called with the batch.
    shared, local
        Values of the global and of the cells' sites.
    batch
        B cells whose counts those latents made.
    """
    trace = poutine.trace(poutine.condition(guide, data={**shared, **local})).get_trace(batch)
    sites: dict[str, Any] = dict(trace.nodes)
    densities = [sites[name]["fn"].log_prob(value).sum() for name, value in local.items()]
    return -torch.stack(densities).sum() / len(batch)


def sleep(
    model: Callable[[Batch], Any],
    guide: nn.Module,
    source: BatchSource,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    device: torch.device,
) -> list[float]:
    r"""Train a guide on simulated cells, whose latents are known; the model stays as it is.

    It minimises :math:`E_{p(y)}\, KL(p(z \mid y) \,\|\, q(z \mid y))` over cells that the model
    draws anew at every step, of the training cells' conditions and library sizes (the sleep phase
    of wake-sleep: Hinton, Dayan, Frey and Neal 1995). An ELBO's encoders have seen their cells
    before, and a Gaussian fitted by the reverse divergence is too narrow; here neither holds: the
    posterior is as wide as the encoders' own errors demand.

    Parameters
    ----------
    model, guide
        Called with a batch.
    source
        Batches of the training cells.
    steps
        Number of steps.
    learning_rate
        Peak learning rate; it falls to zero along a cosine.
    seed
        Governs all draws; the global random state is left as it was.
    device
        Where the parts are.

    Returns
    -------
    list of float
        The loss of every step, in nats per cell.
    """
    parameters = [p for p in guide.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=learning_rate, betas=(0.9, 0.99), foreach=True)
    rise = min(RISE, max(1, steps // 10))
    losses = []
    with torch.random.fork_rng([device] if device.type == "cuda" else []), pyro.settings.context(
        validate_distributions_pyro=False, validate_distributions_torch=False,
        validate_poutine=False, validate_infer=False,
    ):  # fmt: skip
        torch.manual_seed(seed)
        for step, batch in enumerate(itertools.islice(_endless(source), steps)):
            fall = 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * fall * min(1.0, (step + 1) / rise)
            loss = sleep_loss(guide, *dream(model, guide, batch.to(device)))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 200.0)
            optimiser.step()
            losses.append(loss.detach())
    return torch.stack(losses).tolist()


def _endless(source: BatchSource) -> Iterable[Batch]:
    for epoch in itertools.count():
        yield from source.batches(epoch=epoch)
