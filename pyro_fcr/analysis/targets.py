"""Which latents a treatment moves, with the posterior's own doubts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from pyro import poutine
from scipy.stats import norm

from pyro_fcr.analysis.conditions import condition_cells
from pyro_fcr.evaluate import choose_targets
from pyro_fcr.nn import latent_sites

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyro_fcr.data import Batch, Design
    from pyro_fcr.model import LatentModel

__all__ = ["global_posteriors", "target_table"]


@torch.no_grad()
def global_posteriors(
    model: LatentModel, guide: Callable[[Batch], Any], block: str, batch: Batch
) -> dict[str, Any]:
    """Return the posterior of each global of a block's prior, by its attribute's name.

    Parameters
    ----------
    model, guide
        A fitted pair.
    block
        The block.
    batch
        Any cells.
    """
    prefix = f"priors.{block}."
    sites = latent_sites(poutine.trace(guide).get_trace(batch))
    return {n.removeprefix(prefix): s["fn"] for n, s in sites.items() if n.startswith(prefix)}


def target_table(
    model: LatentModel,
    guide: Callable[[Batch], Any],
    block: str,
    design: Design,
    device: torch.device,
    *,
    level: float,
    credible: float,
) -> pd.DataFrame:
    """Return what every treatment does to every latent of a block.

    Parameters
    ----------
    model, guide
        A fitted pair; the block's prior gives ``effects``.
    block
        The block.
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
    batch = condition_cells(design).batch(slice(0, 1)).to(device)
    prior: Any = model.priors[block]
    with torch.no_grad():
        effects = prior.effects(global_posteriors(model, guide, block, batch))
    inclusion, mean, sd = (values.detach().double().cpu().numpy() for values in effects)
    half = norm.ppf(0.5 + credible / 2) * sd
    latents = [f"{block}_{j}" for j in range(inclusion.shape[1])]
    index = pd.MultiIndex.from_product([design.treatments, latents], names=["treatment", "latent"])
    columns = {
        "inclusion": inclusion,
        "shift": mean,
        "lower": mean - half,
        "upper": mean + half,
        "selected": choose_targets(inclusion, level=level),
    }
    return pd.DataFrame({name: np.ravel(value) for name, value in columns.items()}, index=index)
