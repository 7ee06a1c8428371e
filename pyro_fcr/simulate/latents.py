"""Conditional Gaussian blocks: their priors, draws from them, and whether they identify z_tx."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]

__all__ = ["BLOCKS", "conditional_prior", "draw_block", "rank_condition", "semi_orthogonal"]

BLOCKS = ("z_x", "z_t", "z_tx")
FIXED_SCALE = 0.8
SELECTION_SD = 1.0


def conditional_prior(
    variant: str,
    n_t: int,
    n_x: int,
    size: Mapping[str, int],
    rng: np.random.Generator,
    rng_variant: np.random.Generator,
    strength: float = 1.0,
) -> dict[str, dict[str, Floats]]:
    """Loc and scale of every block, each broadcast to (T, X, d) so that readers need no cases."""

    def loc(*shape: int) -> Floats:
        return rng.normal(0.0, 1.5, shape)

    def scale(*shape: int) -> Floats:
        return np.exp(rng.uniform(np.log(0.4), np.log(1.6), shape))

    d_x, d_t, d_tx = (size[name] for name in BLOCKS)
    loc_x, scale_x = loc(1, n_x, d_x), scale(1, n_x, d_x)
    loc_t, scale_t = loc(n_t, 1, d_t), scale(n_t, 1, d_t)
    loc_t[0], scale_t[0] = 0.0, 1.0
    loc_tx, scale_tx = loc(n_t, n_x, d_tx), scale(n_t, n_x, d_tx)
    if variant == "additive":
        # The mean of two natural parameters: additive by construction, precision positive.
        m_t, m_x = loc_tx[:, :1], loc_tx[:1]
        p_t, p_x = scale_tx[:, :1] ** -2, scale_tx[:1] ** -2
        precision, weighted = (p_t + p_x) / 2, (m_t * p_t + m_x * p_x) / 2
        if strength < 1:
            free = scale_tx**-2
            precision = strength * precision + (1 - strength) * free
            weighted = strength * weighted + (1 - strength) * loc_tx * free
        loc_tx, scale_tx = weighted / precision, precision**-0.5
    elif variant == "fixed_variance":
        scale_tx = _between(scale_tx, FIXED_SCALE, strength)
    elif variant == "selection":
        shift = strength * SELECTION_SD * rng_variant.standard_normal((n_t, 1, d_x))
        shift[0] = 0.0
        loc_x = loc_x + shift
    elif variant == "null":
        loc_t, loc_tx = (1 - strength) * loc_t, (1 - strength) * loc_tx
        scale_t, scale_tx = _between(scale_t, 1.0, strength), _between(scale_tx, 1.0, strength)
    blocks = {"z_x": (loc_x, scale_x), "z_t": (loc_t, scale_t), "z_tx": (loc_tx, scale_tx)}
    return {
        name: {
            "loc": np.broadcast_to(m, (n_t, n_x, size[name])).copy(),
            "scale": np.broadcast_to(s, (n_t, n_x, size[name])).copy(),
        }
        for name, (m, s) in blocks.items()
    }


def draw_block(
    prior: Mapping[str, Any],
    t_n: NDArray[np.integer[Any]],
    x_n: NDArray[np.integer[Any]],
    rng: np.random.Generator,
    correlation: float,
) -> Floats:
    """Draw a block (cells, d) given its cells' treatment and covariate; components correlate."""
    loc_nd, scale_nd = np.asarray(prior["loc"])[t_n, x_n], np.asarray(prior["scale"])[t_n, x_n]
    noise_nd = rng.standard_normal(loc_nd.shape)
    if correlation:
        shared = rng.standard_normal((len(loc_nd), 1))
        noise_nd = np.sqrt(1 - correlation) * noise_nd + np.sqrt(correlation) * shared
    return loc_nd + scale_nd * noise_nd


def semi_orthogonal(rng: np.random.Generator, n_in: int, n_out: int) -> Floats:
    """Draw a map (n_in, n_out) with orthonormal rows, uniformly."""
    q, r = np.linalg.qr(rng.standard_normal((n_out, n_in)))
    # Signs of R's diagonal fixed: without that QR does not draw from the Haar measure.
    return (q * np.sign(np.diag(r))).T


def rank_condition(loc: Floats, scale: Floats) -> dict[str, Any]:
    """Rank of the interaction contrasts of the true natural parameters (theorem of FCR)."""
    eta = np.concatenate([loc / scale**2, -0.5 / scale**2], axis=-1)
    contrasts = (eta - eta[:1] - eta[:, :1] + eta[:1, :1])[1:, 1:].reshape(-1, eta.shape[-1])
    # Columns of one size; a column of zeros (means that never move) stays one.
    size = np.sqrt((eta**2).mean((0, 1)))
    values = np.linalg.svd(contrasts / np.where(size > 0, size, 1.0), compute_uv=False)
    rank = int((values > 1e-8 * max(1.0, values.max())).sum())
    needed = eta.shape[-1]
    return {
        "rank": rank,
        "needed": needed,
        "holds": rank == needed,
        "singular_values": values,
        "ratio": float(values[-1] / values[0]) if rank == needed else 0.0,
    }


def _between(scale: Floats, to: float, strength: float) -> Floats:
    """Scales moved towards one value on the log axis; exactly there at strength 1."""
    return scale ** (1 - strength) * to**strength
