"""The check of every slot on two cells, before the first step."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Normal
from pyro.poutine.util import site_is_factor
from torch.distributions import kl_divergence

from pyro_fcr.errors import SlotError, sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pyro.distributions import TorchDistribution

    from pyro_fcr.data import Batch
    from pyro_fcr.infer.objective import Objective
    from pyro_fcr.nn import Block

__all__ = ["check_decoded", "check_distribution", "check_priors", "check_terms"]

log = logging.getLogger(__name__)


def check_distribution(
    name: str, made: Any, batch_shape: tuple[int, ...], event_shape: tuple[int, ...]
) -> TorchDistribution:
    """Check what a slot returned.

    Parameters
    ----------
    name
        Site name, for the message.
    made
        What the slot returned.
    batch_shape, event_shape
        What is expected.

    Raises
    ------
    SlotError
        If the result is no distribution, has other shapes, or scores its own draw as non-finite.
    """
    if not hasattr(made, "log_prob"):
        raise SlotError(
            sentence(
                f"site '{name}' got no distribution",
                where="forward",
                expected="a pyro distribution",
                got=type(made).__name__,
                hint="return the distribution itself, not a sample of it",
            )
        )
    shapes = (tuple(made.batch_shape), tuple(made.event_shape))
    if shapes != (batch_shape, event_shape):
        raise SlotError(
            sentence(
                f"site '{name}' has the wrong shape",
                where="two cells",
                expected=f"batch shape {batch_shape} and event shape {event_shape}",
                got=f"{shapes[0]} and {shapes[1]}",
                hint="end with .to_event(1) and check the block's size",
            )
        )
    if not torch.isfinite(made.log_prob(made.sample())).all():
        raise SlotError(
            sentence(
                f"site '{name}' scores its own draw as non-finite",
                where="two cells",
                expected="a finite log-density",
                got="inf or nan",
                hint="bound the scale",
            )
        )
    return made


def check_decoded(decoded: Any, n_cells: int, n_out: int) -> None:
    """Check what a decoder returned for some cells.

    Parameters
    ----------
    decoded
        What the decoder returned.
    n_cells, n_out
        The expected shape.

    Raises
    ------
    SlotError
        If it is no finite tensor of that shape.
    """
    shape = tuple(getattr(decoded, "shape", ()))
    if shape != (n_cells, n_out) or not torch.isfinite(decoded).all():
        raise SlotError(
            sentence(
                "the decoder's output does not fit",
                where="decoder=",
                expected=f"finite values of shape {(n_cells, n_out)}: cells by outputs",
                got=f"shape {shape}" if shape != (n_cells, n_out) else "inf or nan",
                hint="its bind() is told the outputs: as many as start has",
            )
        )


def check_priors(
    blocks: Sequence[Block],
    priors: Mapping[str, Callable[[Batch], TorchDistribution]],
    batch: Batch,
) -> None:
    """Check each block's prior and say once which divergences must be estimated from draws.

    Parameters
    ----------
    blocks
        The latent blocks.
    priors
        A prior per block.
    batch
        A few cells.

    Raises
    ------
    SlotError
        If a prior's distribution does not fit its block.
    """
    with torch.no_grad():
        for block in blocks:
            prior = check_distribution(
                block.name, priors[block.name](batch), (len(batch),), (block.size,)
            )
            gaussian = Normal(torch.zeros(len(batch), block.size), 1.0).to_event(1)
            try:
                kl_divergence(gaussian, prior)
            except NotImplementedError:
                log.info("%s: no analytic divergence from a Gaussian; draws stand in", block.name)


def check_terms(objective: Objective, batch: Batch) -> None:
    """Check that the objective is a finite scalar, term by term.

    Raises
    ------
    SlotError
        Naming the first term that is not.
    """
    # Pyro's own checks would speak first, and of no slot.
    with torch.no_grad(), pyro.validation_enabled(False):
        factors = poutine.trace(objective.guide).get_trace(batch)
        terms = objective(batch)
    values = dict(terms.sites)
    site: Any
    for name, site in factors.nodes.items():
        if site["type"] == "sample" and site_is_factor(site):
            values[name] = site["fn"].log_factor
    for name, value in values.items():
        if value.shape != () or not torch.isfinite(value):
            raise SlotError(
                sentence(
                    f"term '{name}' is no finite scalar",
                    where="the first cells",
                    expected="shape () and a finite value",
                    got=f"shape {tuple(value.shape)}, {value.flatten()[:1].tolist()}",
                    hint="average a penalty over the cells; bound a density",
                )
            )
