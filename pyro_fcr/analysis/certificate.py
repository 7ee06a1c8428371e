"""Whether the interaction block of a fitted model is identified."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro import poutine

from pyro_fcr.analysis.conditions import condition_cells
from pyro_fcr.analysis.draws import draw_globals, prior_moments
from pyro_fcr.errors import DesignError, sentence
from pyro_fcr.evaluate import Certificate, bootstrap_prior, rank_certificate

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyro_fcr.data import Batch, Cells, Design
    from pyro_fcr.model import LatentModel

__all__ = ["interaction_certificate", "learned_prior"]

DISAGREEMENT = 1.0
"""Prior means further than this from the cells, in prior standard deviations, tell of a model
that has not been trained to the end: the median over conditions and components."""

GLOBAL_DRAWS = 100
"""Draws of a Bayesian prior's parameters that its moments are averaged over."""


@torch.no_grad()
def learned_prior(
    model: LatentModel, guide: Callable[[Batch], Any], block: str, design: Design
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of a block's prior at every condition.

    Parameters
    ----------
    model, guide
        A fitted pair; the parameters of a Bayesian prior are averaged over the guide's draws.
    block
        The block's name.
    design
        The experiment.

    Returns
    -------
    loc, scale
        Shape (T, X, n) each, in the order of the design's treatment groups and joint covariates.
    """
    batch = condition_cells(design).batch().to(next(model.parameters()).device)
    shared = draw_globals(guide, batch, GLOBAL_DRAWS)
    # Without globals every draw is the same.
    shared = shared if shared[0] else shared[:1]
    found = []
    for values in shared:
        trace = poutine.trace(poutine.condition(model, data=dict(values))).get_trace(batch)
        found.append(prior_moments(trace.nodes[block]["fn"]))
    loc = torch.stack([mean for mean, _ in found]).mean(0)
    variance = torch.stack([variance for _, variance in found]).mean(0)
    shape = (design.n_treatment_levels, design.n_covariate_levels, loc.shape[-1])
    loc, scale = loc.double(), variance.double().sqrt()
    return loc.cpu().numpy().reshape(shape), scale.cpu().numpy().reshape(shape)


def interaction_certificate(
    mean: np.ndarray,
    sd: np.ndarray,
    cells: Cells,
    *,
    prior: tuple[np.ndarray, np.ndarray],
    replicates: int,
    seed: int,
) -> Certificate:
    """Certify the rank of a block's interaction contrasts.

    The theorem speaks of the prior, so the contrasts are the learned prior's, at the conditions
    that have cells. How well those cells determine it is told by the aggregate posterior: its
    bootstrap deviations are laid around the prior. Where the two disagree, no verdict can rest on
    that noise. A rank that the prior lacks exactly needs no noise to be told.

    Parameters
    ----------
    mean, sd
        Shape (N, n): posterior means and standard deviations of the block.
    cells
        The same cells, for their conditions; those of unknown ones (code -1) are left out.
    prior
        Mean and scale of the block's prior at every condition, from :func:`learned_prior`.
    replicates
        Number of bootstrap replicates.
    seed
        Governs the resampling.

    Raises
    ------
    DesignError
        If no cell's condition is known.
    """
    known = (cells.treatment_id >= 0) & (cells.covariate_id >= 0)
    if not known.any():
        raise DesignError(
            sentence(
                "no cell tells its condition",
                where="adata.obs",
                expected="cells of known treatment and covariates",
                got=f"none among {len(cells)}",
                hint="pass cells of the conditions the model was trained on",
            )
        )
    # Codes with leading zeros sort as the design does.
    treatment = np.char.zfill(cells.treatment_id[known].astype(str), 9)
    covariate = np.char.zfill(cells.covariate_id[known].astype(str), 9)
    cloud = bootstrap_prior(
        mean[known],
        treatment,
        covariate,
        control=min(treatment),
        variance=sd[known] ** 2,
        n_boot=replicates,
        seed=seed,
    )
    present = np.ix_([int(t) for t in cloud.treatments], [int(x) for x in cloud.covariates])
    empty = np.isnan(cloud.loc)
    loc, scale = (np.where(empty, np.nan, np.asarray(a, float)[present]) for a in prior)
    certificate = rank_certificate(
        loc,
        scale,
        loc + (cloud.loc_replicates - cloud.loc),
        scale * (cloud.scale_replicates / cloud.scale),
    )
    apart = float(np.nanmedian(np.abs(cloud.loc - loc) / scale)) if not empty.all() else 0.0
    if np.isfinite(certificate.p_value) and apart > DISAGREEMENT:
        return dataclasses.replace(
            certificate,
            verdict="undetermined",
            reason=f"prior and cells disagree, their means are {apart:.1f} prior standard "
            "deviations apart in half of the conditions or more, train longer",
        )
    return certificate
