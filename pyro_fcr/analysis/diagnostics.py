"""Is the posterior to be trusted? Importance weights, predictive checks, use of the blocks."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from pyro import poutine
from scipy.special import logsumexp

from pyro_fcr.analysis.draws import (
    draw_globals,
    draw_observations,
    draw_sites,
    prior_moments,
    seeded,
)
from pyro_fcr.evaluate import randomised_pit, sbc_ranks
from pyro_fcr.model import OBSERVATION
from pyro_fcr.nn import in_cell_plate, latent_sites, marginal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from pyro_fcr.data import Batch, Cells
    from pyro_fcr.model import LatentModel

__all__ = [
    "Importance",
    "block_use",
    "importance",
    "pit_values",
    "predictive_checks",
    "reweighted_moments",
    "simulated_ranks",
]

K_HAT_BAD = 0.7
"""Above this, importance weights have no useful mean (Vehtari et al. 2024, arXiv 1507.02646)."""


class Importance(NamedTuple):
    """How well the guide covers each cell's exact posterior; N cells, S draws."""

    k_hat: NDArray[np.float64]
    """Shape (N,): tail index of the weights; above 0.7 the guide misses the posterior."""

    bound: NDArray[np.float64]
    """Shape (N,): importance-weighted bound on log p(counts | condition), in nats."""

    elbo: NDArray[np.float64]
    """Shape (N,): the ordinary bound from the same draws, in nats."""

    log_weights: NDArray[np.float64]
    """Shape (N, S): Pareto-smoothed, each row's exponentials adding up to one."""

    draws: dict[str, NDArray[np.float32]]
    """The latents behind the weights, (N, S, d) by block."""

    def __repr__(self) -> str:
        """Return how well the guide covers the posterior, and where to see it."""
        cells, draws = self.log_weights.shape
        bad = 100 * float(np.mean(self.k_hat > K_HAT_BAD))
        return (
            f"Importance({cells:,} cells, {draws} draws; k-hat above {K_HAT_BAD} in {bad:.0f} % "
            f"of cells; bound {np.mean(self.bound - self.elbo):.2f} nats above the ELBO)\n"
            "  see pf.plots.importance, pf.diagnostics.reweighted_moments"
        )


def importance(
    model: LatentModel,
    guide: Callable[[Batch], Any],
    batches: Iterable[Batch],
    *,
    draws: int,
    seed: int,
) -> Importance:
    r"""Weigh the guide's draws by the model, cell by cell.

    .. math:: w_s = p(y \mid z_s)\, p(z_s \mid \text{condition}) / q(z_s \mid y)

    Smoothed by Pareto smoothing (Vehtari et al. 2024, arXiv 1507.02646); the bound is
    log mean w (Burda et al. 2016, arXiv 1509.00519). Global latents are held at one draw.

    Parameters
    ----------
    model, guide
        A fitted pair.
    batches
        The cells, in order.
    draws
        Draws per cell.
    seed
        Governs the draws.
    """
    weights, kept = [], []
    for part, batch in enumerate(batches):
        with seeded(seed, part), torch.no_grad():
            if not part:
                shared = draw_globals(guide, batch, 1)[0]
            both = [_weigh(model, guide, batch, shared) for _ in range(draws)]
        weights.append(np.stack([w.double().cpu().numpy() for w, _ in both], axis=1))
        kept.append({k: np.stack([z[k].cpu().numpy() for _, z in both], 1) for k in both[0][1]})
    raw = np.concatenate(weights)
    smoothed, k_hat = _smoothed(raw)
    top = raw.max(1, keepdims=True)
    bound = np.log(np.exp(raw - top).mean(1)) + top[:, 0]
    z = {name: np.concatenate([part[name] for part in kept]) for name in kept[0]}
    return Importance(k_hat, bound, raw.mean(1), smoothed, z)


def _smoothed(raw: NDArray) -> tuple[NDArray, NDArray]:
    """Return normalised smoothed log-weights (N, S) and k-hat (N,), infinite without a tail."""
    arviz = import_module("arviz")
    if hasattr(arviz, "psislw"):
        smoothed, k_hat = arviz.psislw(raw)
        return np.asarray(smoothed), np.asarray(k_hat)
    # Version 1 reads log-likelihoods, whose negatives are the log-weights, and refuses a tail
    # that it cannot fit, where the version before left the weights alone.
    smooth = import_module("arviz_stats.base").array_stats.psislw
    smoothed, k_hat = raw.copy(), np.full(len(raw), np.inf)
    for row in range(len(raw)):
        with suppress(ValueError):
            smoothed[row], k_hat[row] = smooth(-raw[row])
    return smoothed - logsumexp(smoothed, axis=1, keepdims=True), k_hat


def _weigh(
    model: LatentModel, guide: Callable[[Batch], Any], batch: Batch, shared: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    guided = poutine.trace(poutine.condition(guide, data=shared)).get_trace(batch)
    q = {k: s for k, s in latent_sites(guided).items() if in_cell_plate(s)}
    data = {**shared, **{name: site["value"] for name, site in q.items()}}
    trace = poutine.trace(poutine.condition(model, data=data)).get_trace(batch)
    log_w = _log_prob(trace.nodes[OBSERVATION])
    for name, site in q.items():
        if name in trace.nodes:
            log_w = log_w + _log_prob(trace.nodes[name])
        log_w = log_w - _log_prob(site)
    return log_w, {name: site["value"] for name, site in q.items()}


def _log_prob(site: Any) -> Any:
    return site["fn"].log_prob(site["value"])


def _distribution(site: Any) -> Any:
    return site["fn"]


def reweighted_moments(found: Importance) -> dict[str, tuple[NDArray, NDArray]]:
    """Return mean and standard deviation (N, d) of each block under the importance weights."""
    share = np.exp(found.log_weights)[..., None]
    moments = {}
    for name, z in found.draws.items():
        mean = (share * z).sum(1)
        moments[name] = mean, np.sqrt((share * (z - mean[:, None]) ** 2).sum(1))
    return moments


def block_use(
    guide: Callable[[Batch], Any], model: LatentModel, batches: Iterable[Batch], *, seed: int = 0
) -> pd.DataFrame:
    """Say how much each component of each block tells of the single cell.

    Parameters
    ----------
    guide, model
        A fitted pair.
    batches
        The cells.
    seed
        Governs the draws where a divergence has no closed form.

    Returns
    -------
    pandas.DataFrame
        One row per block: ``size``, ``information`` (mean divergence of posterior from prior,
        in nats per cell), ``overlap`` (mean share that prior and posterior of a component have
        in common, 1 for a component that tells nothing), ``used`` (components whose variance of
        posterior means is at least a tenth of the prior's spread within conditions).
    """
    totals: dict[str, list[Any]] = {}
    for part, batch in enumerate(batches):
        with seeded(seed, part), torch.no_grad():
            guided = poutine.trace(guide).get_trace(batch)
            trace = poutine.trace(poutine.replay(model, trace=guided)).get_trace(batch)
        for name, site in latent_sites(guided).items():
            if not in_cell_plate(site) or name not in trace.nodes:
                continue
            q, p = marginal(site), _distribution(trace.nodes[name])
            gain = (_log_prob(site) - p.log_prob(site["value"])).cpu().numpy()
            moments = [m.cpu().numpy() for m in (q.mean, q.variance, *prior_moments(p))]
            totals.setdefault(name, []).append((gain, *moments))
    rows = []
    for name, parts in totals.items():
        gain, mean, variance, prior_mean, prior_variance = (
            np.concatenate(column) for column in zip(*parts, strict=True)
        )
        shown = (mean - prior_mean).var(0) / prior_variance.mean(0)
        overlap = _overlap(mean, variance, prior_mean, prior_variance)
        rows.append(
            {
                "block": name,
                "size": mean.shape[1],
                "information": gain.mean(),
                "overlap": overlap.mean(),
                "used": int((shown > 0.1).sum()),
            }
        )
    return pd.DataFrame(rows).set_index("block")


def _overlap(mean: NDArray, variance: NDArray, other: NDArray, spread: NDArray) -> NDArray:
    """Return the Bhattacharyya coefficient of two Gaussians, per cell and component."""
    both = variance + spread
    return np.sqrt(2 * np.sqrt(variance * spread) / both) * np.exp(
        -((mean - other) ** 2) / (4 * both)
    )


def pit_values(
    model: LatentModel,
    guide: Callable[[Batch], Any],
    factual: Cells,
    *,
    draws: int,
    seed: int,
    device: torch.device,
) -> NDArray[np.float32]:
    """Return randomised probability integral transforms of the counts, shape (N, G).

    Uniform where the model is right (Czado, Gneiting and Held 2009). The latents were read from
    the same counts, so cells that the model has not been trained on make the fairer test.

    Parameters
    ----------
    model, guide
        A fitted pair.
    factual
        N cells.
    draws
        Predictive draws per count.
    seed
        Governs draws and randomisation.
    device
        Where to compute.
    """
    out = np.empty((len(factual), factual.design.n_genes), np.float32)
    for rows, observed, drawn in _replicated(model, guide, factual, draws, seed, device):
        out[rows] = randomised_pit(np.stack(list(drawn)), observed, seed=seed + rows.start)
    return out


def predictive_checks(
    model: LatentModel,
    guide: Callable[[Batch], Any],
    factual: Cells,
    *,
    draws: int,
    seed: int,
    device: torch.device,
    pairs: int = 200,
) -> pd.DataFrame:
    """Compare what was measured with what the fitted model would have measured.

    Parameters
    ----------
    model, guide
        A fitted pair.
    factual
        N cells.
    draws
        Replicated data sets.
    seed
        Governs draws and the choice of pairs.
    device
        Where to compute.
    pairs
        Pairs of genes, of the fifty with most variance, whose correlation is compared.

    Returns
    -------
    pandas.DataFrame
        One row per check: ``observed``, ``replicated`` (mean over replicates), ``low``, ``high``
        (their range), ``agreement`` (Pearson correlation over genes or pairs of what was
        observed and replicated; missing for a single number). Checks: total counts of a cell and
        their spread, share of zeros, variance of genes (log10), correlation of genes.
    """
    stored = [np.empty((len(factual), factual.design.n_genes), np.float32) for _ in range(draws)]
    observed = np.empty_like(stored[0])
    for rows, counts, drawn in _replicated(model, guide, factual, draws, seed, device):
        observed[rows] = counts
        for store, values in zip(stored, drawn, strict=True):
            store[rows] = values
    rng = np.random.default_rng(seed)
    busiest = np.argsort(-_log1p_share(observed).var(0))[:50]
    first, second = rng.choice(busiest, (2, pairs))
    kept = first != second
    chosen = first[kept], second[kept]
    made = [_statistics(values, chosen) for values in stored]
    table = []
    for name, seen in _statistics(observed, chosen).items():
        replicated = np.stack([found[name] for found in made])
        middle = replicated.mean(-1) if replicated.ndim > 1 else replicated
        row = {
            "check": name,
            "observed": float(np.mean(seen)),
            "replicated": float(middle.mean()),
            "low": float(middle.min()),
            "high": float(middle.max()),
            "agreement": np.nan,
        }
        if np.ndim(seen):
            row["agreement"] = float(np.corrcoef(seen, replicated.mean(0))[0, 1])
        table.append(row)
    return pd.DataFrame(table).set_index("check")


def _statistics(counts: NDArray, pairs: tuple[NDArray, NDArray]) -> dict[str, Any]:
    total, share = counts.sum(1), _log1p_share(counts)
    centred = share - share.mean(0)
    spread = np.maximum(np.sqrt((centred**2).mean(0)), 1e-12)
    a, b = pairs
    return {
        "total counts of a cell": total.mean(),
        "spread of total counts (sd of log10)": np.log10(np.maximum(total, 1)).std(),
        "share of zeros by gene": (counts == 0).mean(0),
        "mean of genes (log10)": np.log10(counts.mean(0) + 1e-3),
        "variance of genes (log10)": np.log10(counts.var(0) + 1e-3),
        "correlation of genes": (centred[:, a] * centred[:, b]).mean(0) / (spread[a] * spread[b]),
    }


def _log1p_share(counts: NDArray) -> NDArray:
    return np.log1p(1e4 * counts / np.maximum(counts.sum(1, keepdims=True), 1))


def _replicated(
    model: LatentModel,
    guide: Callable[[Batch], Any],
    cells: Cells,
    draws: int,
    seed: int,
    device: torch.device,
) -> Iterator[tuple[slice, NDArray, Iterator[NDArray]]]:
    """Yield rows, their counts, and replicated counts one draw at a time."""
    drawn = draw_observations(
        model, guide, cells, cells, redraw=(), draws=draws, seed=seed, device=device
    )
    for rows, batch, observations in drawn:
        replicates = (observation.sample().cpu().numpy() for observation in observations)
        yield rows, batch.counts.cpu().numpy(), replicates


def simulated_ranks(
    model: LatentModel,
    guide: Callable[[Batch], Any],
    batches: Iterable[Batch],
    *,
    draws: int,
    seed: int,
) -> dict[str, NDArray[np.int64]]:
    """Rank latents drawn from the fitted model among the guide's draws for the counts they make.

    Simulation-based calibration (Talts et al. 2018, arXiv 1804.06788) of the amortised posterior
    under the fitted model: every cell keeps its condition and library size, its latents come
    from the prior, its counts from the likelihood. Ranks are uniform where the guide is right.

    Parameters
    ----------
    model, guide
        A fitted pair.
    batches
        The cells whose conditions are simulated.
    draws
        Guide draws L per cell; ranks run from 0 to L.
    seed
        Governs all draws.

    Returns
    -------
    dict
        Ranks (N, d) by block.
    """
    parts: dict[str, list[NDArray]] = {}
    for part, batch in enumerate(batches):
        with seeded(seed, part), torch.no_grad():
            made = poutine.trace(poutine.uncondition(model)).get_trace(batch)
            truth = {k: s["value"] for k, s in latent_sites(made).items() if in_cell_plate(s)}
            counts = truth.pop(OBSERVATION)
            simulated = batch.replace(counts=counts)
            shared = draw_globals(guide, simulated, draws)
            drawn = list(draw_sites(guide, simulated, shared))
        for name, z in truth.items():
            if name in drawn[0]:
                found = np.stack([sites[name].cpu().numpy() for sites in drawn])
                parts.setdefault(name, []).append(sbc_ranks(found, z.cpu().numpy(), seed=seed))
    return {name: np.concatenate(values) for name, values in parts.items()}
