"""Whether the cells contradict what the identifiability of the interaction block rests on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro import poutine

from pyro_fcr.analysis.draws import draw_globals, prior_moments, seeded
from pyro_fcr.evaluate import common_correlation, prior_shift
from pyro_fcr.infer.gauge import condition_moments
from pyro_fcr.nn import in_cell_plate, latent_sites, marginal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pyro_fcr.data import Batch, Cells
    from pyro_fcr.model import LatentModel

__all__ = ["doubts", "posterior_and_prior"]

LEVEL = 0.01
"""Of the tests."""

LEAST_SHIFT = 0.03
"""Groups nearer to their prior than this, in its standard deviations, are not worth a word."""

FEWEST = 5
"""Conditions, for a common correlation to be told."""

LEAST_GAIN = 0.01
"""Nats per cell that a common correlation must gain: fits to valid data leave .003 at most."""


def posterior_and_prior(
    model: LatentModel, guide: Callable[[Batch], Any], batches: Iterable[Batch], *, seed: int
) -> dict[str, tuple[np.ndarray, ...]]:
    """Return each block's posterior mean and variance, and its prior's, for every cell.

    Parameters
    ----------
    model, guide
        A fitted pair; globals are held at one draw.
    batches
        The cells, in order.
    seed
        Governs the draws.

    Returns
    -------
    dict
        Four arrays (N, d) by block.
    """
    parts: dict[str, list[list[np.ndarray]]] = {}
    for part, batch in enumerate(batches):
        with seeded(seed, part), torch.no_grad():
            if not part:
                shared = draw_globals(guide, batch, 1)[0]
            guided = poutine.trace(poutine.condition(guide, data=shared)).get_trace(batch)
            trace = poutine.trace(poutine.replay(model, trace=guided)).get_trace(batch)
            for name, site in latent_sites(guided).items():
                if in_cell_plate(site) and name in trace.nodes:
                    prior: Any = trace.nodes[name]["fn"]
                    q = marginal(site)
                    found = [q.mean, q.variance, *prior_moments(prior)]
                    parts.setdefault(name, []).append([m.cpu().numpy() for m in found])
    return {
        name: tuple(np.concatenate(column) for column in zip(*rows, strict=True))
        for name, rows in parts.items()
    }


def doubts(
    moments: Mapping[str, tuple[np.ndarray, ...]],
    parents: Mapping[str, frozenset[str]],
    cells: Cells,
    block: str,
) -> tuple[str, ...]:
    """Say in words which assumptions behind the certificate the cells contradict.

    Parameters
    ----------
    moments
        From :func:`posterior_and_prior`, of the training cells.
    parents
        By block, which of ``"treatment"`` and ``"covariates"`` it depends on.
    cells
        The same cells; those of unknown conditions are left out.
    block
        The interaction block, whose components should be independent within conditions.
    """
    known = (cells.treatment_id >= 0) & (cells.covariate_id >= 0)
    treatment, covariate = cells.treatment_id[known], cells.covariate_id[known]
    found = []
    for name, (mean, _, prior, variance) in moments.items():
        deviation = ((mean - prior) / np.sqrt(variance))[known]
        for role, label in (("treatment", treatment), ("covariates", covariate)):
            if role in parents[name] or len(set(label)) < 2:
                continue
            shift = prior_shift(deviation, label)
            if shift.p_value < LEVEL and shift.effect > LEAST_SHIFT:
                found.append(
                    f"{name} depends on the {role} against its prior, by {shift.effect:.2f} "
                    f"standard deviations (p = {shift.p_value:.1g}): selection of cells, or a "
                    "block that is too small"
                )
    centre, spread = (torch.from_numpy(a[known]) for a in moments[block][:2])
    condition = torch.from_numpy(cells.condition_id[known])
    _, size, _, covariance = condition_moments(centre, spread, condition)
    if centre.shape[1] > 1 and len(size) >= FEWEST:
        shared = common_correlation(covariance.numpy(), size.numpy())
        if shared.p_value < LEVEL and shared.gain > LEAST_GAIN:
            r = np.abs(shared.correlation[np.triu_indices(centre.shape[1], 1)]).mean()
            found.append(
                f"components of {block} correlate within conditions (about {r:.1f} in size, "
                f"p = {shared.p_value:.1g}), which its prior excludes"
            )
    return tuple(found)
