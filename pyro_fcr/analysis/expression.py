"""Expected expression: under an intervention, or of the cells as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pyro_fcr import arguments
from pyro_fcr.analysis.draws import CHUNK, draw_observations

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    import torch

    from pyro_fcr.analysis.contract import Intervened
    from pyro_fcr.data import Batch, Cells
    from pyro_fcr.model import LatentModel

__all__ = ["Expression", "expected_counts", "expected_under", "sampled_counts"]

DRAWN_VALUES = 64_000_000
"""Draws × cells × genes held at a time: 256 MB."""


class Expression(NamedTuple):
    """Posterior of the cells' expected counts; each of shape (N, G), float32."""

    mean: np.ndarray
    sd: np.ndarray
    q05: np.ndarray
    q95: np.ndarray


def expected_counts(
    model: LatentModel,
    guide: Callable[[Batch], Any],
    factual: Cells,
    intervened: Cells,
    *,
    redraw: Collection[str],
    draws: int,
    seed: int,
    device: torch.device,
    into: Expression | None = None,
) -> Expression:
    """Summarise the expected counts of cells over posterior draws.

    Parameters
    ----------
    model, guide
        A fitted pair.
    factual, intervened
        The same N cells as they were observed and with the labels that were set.
    redraw
        Blocks drawn anew from their priors; see
        :func:`~pyro_fcr.analysis.draws.draw_observation`.
    draws
        Number of posterior draws.
    seed
        Governs the draws.
    device
        Where to compute.
    into
        Arrays to write to, on disk perhaps; new ones by default.

    Returns
    -------
    Expression
        In molecules, at each cell's own library size. The spread is that of the *expected*
        count, without the sampling noise of molecules.
    """
    n, genes = len(factual), factual.design.n_genes
    arguments.whole(draws, "draws=", least=1)
    out = into or Expression(*(np.empty((n, genes), np.float32) for _ in range(4)))
    drawn = draw_observations(
        model, guide, factual, intervened, redraw=redraw, draws=draws, seed=seed, device=device,
        size=max(1, min(CHUNK, DRAWN_VALUES // max(1, draws * genes))),
    )  # fmt: skip
    for rows, _, observations in drawn:
        means = np.stack([observation.mean.cpu().numpy() for observation in observations])
        out.mean[rows] = means.mean(0)
        out.sd[rows] = means.std(0, ddof=1 if draws > 1 else 0)
        out.q05[rows], out.q95[rows] = _quantiles(means, (0.05, 0.95))
    return out


def expected_under(
    fitted: Intervened, cells: Cells, do: Mapping[str, Any], *, draws: int, seed: int
) -> Expression:
    """Summarise the expected counts of cells under an intervention.

    Parameters
    ----------
    fitted
        A fitted model.
    cells
        As they were observed.
    do
        What to set, as for :meth:`~pyro_fcr.data.Design.do`.
    draws, seed
        As for :func:`expected_counts`.
    """
    return expected_counts(
        fitted.model, fitted.guide, cells, cells.design.do(cells, do),
        redraw=fitted.descendants(do), draws=draws, seed=seed, device=fitted.device,
    )  # fmt: skip


def sampled_counts(
    model: LatentModel,
    guide: Callable[[Batch], Any],
    factual: Cells,
    intervened: Cells,
    *,
    redraw: Collection[str],
    draws: int,
    seed: int,
    device: torch.device,
) -> np.ndarray:
    """Draw counts of cells; shape (draws, N, G), float32. Parameters as for expected counts."""
    out = np.empty((draws, len(factual), factual.design.n_genes), np.float32)
    drawn = draw_observations(
        model, guide, factual, intervened, redraw=redraw, draws=draws, seed=seed, device=device
    )
    for rows, _, observations in drawn:
        for d, observation in enumerate(observations):
            out[d, rows] = observation.sample().cpu().numpy()
    return out


def _quantiles(values: np.ndarray, levels: tuple[float, ...]) -> list[np.ndarray]:
    # A partition around the few order statistics needed is several times faster than a sort.
    last = len(values) - 1
    below = [int(level * last) for level in levels]
    above = [min(low + 1, last) for low in below]
    ordered = np.partition(values, sorted({*below, *above}), axis=0)
    return [
        ordered[low] + (level * last - low) * (ordered[high] - ordered[low])
        for level, low, high in zip(levels, below, above, strict=True)
    ]
