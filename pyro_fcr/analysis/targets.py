"""Which latents a treatment moves, with the posterior's own doubts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from pyro import poutine
from scipy.stats import norm

from pyro_fcr import arguments
from pyro_fcr.analysis.conditions import condition_cells
from pyro_fcr.evaluate import choose_targets
from pyro_fcr.nn import latent_sites

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyro_fcr.data import Batch, Design
    from pyro_fcr.model import Conditional, LatentModel

__all__ = ["global_posteriors", "sparse_priors", "target_table"]


@torch.no_grad()
def global_posteriors(guide: Callable[[Batch], Any], path: str, batch: Batch) -> dict[str, Any]:
    """Return the posterior of each global of a part, by its attribute's name.

    Parameters
    ----------
    guide
        A fitted one.
    path
        What the names of the part's sites begin with.
    batch
        Any cells.
    """
    sites = latent_sites(poutine.trace(guide).get_trace(batch))
    return {n.removeprefix(path): s["fn"] for n, s in sites.items() if n.startswith(path)}


def sparse_priors(model: LatentModel) -> dict[str, Conditional]:
    """Return the priors over latents that tell treatments' ``effects``, by name."""
    held = model.conditionals()
    return {
        name: one
        for name, one in held.items()
        if hasattr(one.prior, "effects")
        and (one.added or any("treatment" in block.parents for block in one.blocks))
    }


def target_table(
    model: LatentModel,
    guide: Callable[[Batch], Any],
    name: str,
    design: Design,
    device: torch.device,
    *,
    level: float,
    credible: float,
) -> pd.DataFrame:
    """Return what every treatment does to every latent.

    Parameters
    ----------
    model, guide
        A fitted pair.
    name
        One of :func:`sparse_priors`.
    design
        The experiment.
    device
        Where the weights live.
    level
        Nominal false discovery rate of the selected targets.
    credible
        Mass of the intervals.

    Returns
    -------
    pandas.DataFrame
        See :meth:`pyro_fcr.fitted.Fitted.targets`.
    """
    wide = norm.ppf(arguments.tails(credible, "credible=")[1])
    batch = condition_cells(design).batch(slice(0, 1)).to(device)
    found = model.conditionals()[name]
    with torch.no_grad():
        effects = found.prior.effects(global_posteriors(guide, found.path, batch))
    inclusion, mean, sd = (values.detach().double().cpu().numpy() for values in effects)
    half = wide * sd
    latents = [f"{block.name}_{j}" for block in found.blocks for j in range(block.size)]
    index = pd.MultiIndex.from_product([design.treatments, latents], names=["treatment", "latent"])
    columns = {
        "inclusion": inclusion,
        "shift": mean,
        "lower": mean - half,
        "upper": mean + half,
        "selected": choose_targets(inclusion, level=level),
    }
    return pd.DataFrame({name: np.ravel(value) for name, value in columns.items()}, index=index)
