r"""The test behind the rank certificate: how weak the weakest direction of the contrasts is.

:math:`J = \min_v \min_{a,b} \sum_{t,x} (v^\top\eta_{tx} - a_t - b_x)^2 / v^\top\Sigma_{tx}v`
is a Cragg-Donald statistic with unequal noise: chi-square with (rows - 2n + 1) degrees of
freedom when K lacks one rank, and smaller when it lacks more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import optimize, stats

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]

__all__ = [
    "fisher_information",
    "noise_covariance",
    "noncentrality_detectable",
    "noncentrality_upper",
    "weakest_direction",
]


def fisher_information(m: Floats, s: Floats) -> Floats:
    """Covariance of (z, z^2) per condition: (C, 2n, 2n), components independent."""
    c, n = m.shape
    out = np.zeros((c, 2 * n, 2 * n))
    k = np.arange(n)
    out[:, k, k] = s**2
    out[:, k, n + k] = out[:, n + k, k] = 2 * m * s**2
    out[:, n + k, n + k] = 2 * s**4 + 4 * m**2 * s**2
    return out


def noise_covariance(replicates: Floats, fisher: Floats) -> tuple[Floats, float]:
    """Noise covariance of eta per condition (C, 2n, 2n), and the number of cells it equals.

    A covariance of 2n columns from R replicates is poor, so each condition's own is shrunk to
    the Fisher form: one correlation structure for all, one level per condition.
    """
    n_replicates, _, columns = replicates.shape
    deviation = replicates - replicates.mean(0)
    deviation *= np.sqrt(n_replicates / (n_replicates - 1))
    factor = np.linalg.cholesky(fisher)
    standard = np.einsum("cij,rci->rcj", factor, deviation)
    level = np.maximum((standard**2).mean((0, 2)), 1e-300)
    shape = np.einsum("rci,rcj,c->ij", standard, standard, 1 / level)
    shape /= n_replicates * len(level)
    back = np.linalg.inv(factor)
    pooled = np.einsum("cki,kl,clj,c->cij", back, shape, back, level)
    own = np.einsum("rci,rcj->cij", deviation, deviation) / n_replicates
    weight = n_replicates / (n_replicates + 4 * columns)
    # The median: a condition with a degenerate scale must not speak for the rest.
    return weight * own + (1 - weight) * pooled, float(1 / np.median(level))


def weakest_direction(
    eta: Floats, noise: Floats, additive: Floats, basis: Floats, unit: Floats
) -> float:
    """Minimise J over directions v, from every singular direction of the scaled contrasts.

    Shapes, for C conditions: eta (C, 2n), noise (C, 2n, 2n), additive (C, T + X) the design of
    what is no interaction, basis (rows, C) of the contrasts, unit (2n, 2n) what one cell tells.
    """
    # Directions are searched in per-cell units, where the problem is well scaled.
    y = eta @ unit.T
    cov = unit @ noise @ unit.T
    ridge = 1e-9 * np.trace(cov, axis1=1, axis2=2).mean() / cov.shape[-1]
    cov = cov + ridge * np.eye(cov.shape[-1])

    def objective(v: Floats) -> tuple[float, Floats]:
        v = v / np.linalg.norm(v)
        spread = cov @ v
        weight = 1 / (spread @ v)
        root = np.sqrt(weight)[:, None]
        fit = np.linalg.lstsq(root * additive, root[:, 0] * (y @ v), rcond=None)[0]
        residual = (y @ v - additive @ fit) * weight
        value = float((residual**2 / weight).sum())
        # Envelope theorem: the fitted additive part does not move the derivative.
        gradient = 2 * (y.T @ residual - (residual**2) @ spread)
        return value, gradient - (gradient @ v) * v

    noise_unit = np.linalg.inv(np.linalg.cholesky(cov.mean(0)))
    _, _, directions = np.linalg.svd(basis @ y @ noise_unit.T, full_matrices=False)
    starts = directions @ noise_unit
    best = np.inf
    for start in starts[::-1][:4]:
        start = start / np.linalg.norm(start)
        found = optimize.minimize(objective, start, jac=True, method="L-BFGS-B")
        best = min(best, float(found.fun))
    return best


def noncentrality_upper(statistic: float, freedom: int) -> float:
    """95 % upper bound of the noncentrality of a chi-square that came out at ``statistic``."""

    def excess(value: float) -> float:
        return float(stats.ncx2.cdf(statistic, freedom, value)) - 0.05

    if stats.chi2.cdf(statistic, freedom) <= 0.05:
        return 0.0
    high = max(4.0 * statistic, 10.0) + 40.0
    return float(optimize.brentq(excess, 1e-12, high))


def noncentrality_detectable(freedom: int, alpha: float, power: float = 0.8) -> float:
    """Noncentrality that a chi-square test of level alpha finds with the given power."""
    critical = stats.chi2.isf(alpha, freedom)

    def excess(value: float) -> float:
        return float(stats.ncx2.sf(critical, freedom, value)) - power

    return float(optimize.brentq(excess, 1e-9, 20.0 + 10.0 * np.sqrt(freedom)))
