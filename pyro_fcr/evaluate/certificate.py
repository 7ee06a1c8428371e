r"""The rank certificate: whether a conditional Gaussian prior pins z_tx down.

With natural parameters :math:`\eta(t, x) = (m/s^2, -1/(2 s^2))` of each component of z_tx, the
interaction contrasts :math:`\eta(t,x) - \eta(t,x_0) - \eta(t_0,x) + \eta(t_0,x_0)` stacked over
(t, x) form a matrix K of 2n columns. Rank 2n suffices for component-wise identifiability
(FCR, Mao et al. 2024, arXiv 2410.22472, in the checkable form for Gaussian priors).

Two yardsticks make the question answerable from noisy parameters:

* **size**: contrasts are measured in units of what one cell tells (the inverse Fisher
  information of a Gaussian). That unit undoes any shift or rescaling of a component, which is
  the freedom that an identified z_tx has.
* **noise**: the smallest direction of K is tested against the noise of the replicates.
  :math:`J = \min_v \min_{a,b} \sum_{t,x} (v^\top\eta_{tx} - a_t - b_x)^2 / v^\top\Sigma_{tx}v`
  is a Cragg-Donald statistic with unequal noise: chi-square with (rows - 2n + 1) degrees of
  freedom when K lacks one rank, and smaller when it lacks more.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import optimize, stats

from pyro_fcr.errors import DesignError, sentence

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.floating[Any]]

__all__ = [
    "Certificate",
    "PriorReplicates",
    "bootstrap_prior",
    "interaction_contrasts",
    "natural_parameters",
    "rank_certificate",
]

#: Contrasts below this many per-cell units are zero to machine precision.
_EXACT = 1e-6


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What the interaction contrasts of a prior say about the identifiability of z_tx.

    Attributes
    ----------
    verdict
        "identified", "not identified" or "undetermined".
    reason
        The verdict's ground, in words.
    n_contrasts, n_needed
        Rows and columns of K: independent interaction contrasts and 2 n_tx.
    singular_values
        Of K in per-cell units, root mean square over contrasts, descending.
    ratio
        sigma_min / sigma_max.
    interval
        95 % interval of ``ratio`` over the replicates. Noise pulls small ratios up, so the verdict
        rests on ``p_value`` and ``effect``, never on this.
    statistic, p_value
        J and its p-value against a K that lacks one rank; nan without replicates.
    effect, effect_upper
        Interaction along the weakest direction (root mean square over contrasts, in standard
        deviations of one cell), noise subtracted, and its 95 % upper bound.
    detectable
        The effect that the test finds with 80 % power, in the same unit.
    threshold
        The effect below which a direction counts as absent.
    doubts
        Assumptions beside the rank that the cells contradict, each in words; with any,
        "identified" becomes "undetermined".
    """

    verdict: Literal["identified", "not identified", "undetermined"]
    reason: str
    n_contrasts: int
    n_needed: int
    singular_values: Floats = field(repr=False)
    ratio: float
    interval: tuple[float, float]
    statistic: float
    p_value: float
    effect: float
    effect_upper: float
    detectable: float
    threshold: float
    doubts: tuple[str, ...] = ()

    @property
    def identified(self) -> bool:
        """Whether the verdict is "identified"."""
        return self.verdict == "identified"

    def __str__(self) -> str:
        """Verdict, reason and numbers in plain words."""
        numbers = f"sigma_min/sigma_max = {self.ratio:.3g}"
        if np.isfinite(self.interval[0]):
            numbers += f" (95 % {self.interval[0]:.3g} to {self.interval[1]:.3g})"
        if np.isfinite(self.p_value):
            numbers += (
                f"; weakest interaction {self.effect:.2f} cell standard deviations "
                f"(at most {self.effect_upper:.2f}), p = {self.p_value:.2g}"
            )
        beside = f" Beside the rank: {'; '.join(self.doubts)}." if self.doubts else ""
        return (
            f"z_tx is {self.verdict}: {self.reason}. {self.n_contrasts} interaction contrasts "
            f"for the {self.n_needed} that n_tx = {self.n_needed // 2} needs; {numbers}.{beside}"
        )

    def doubting(self, doubts: tuple[str, ...]) -> Certificate:
        """Return the certificate in the light of broken assumptions.

        Parameters
        ----------
        doubts
            In words; the certificate itself where there are none.
        """
        if not doubts:
            return self
        if not self.identified:
            return replace(self, doubts=doubts)
        reason = "the rank is full, but the cells contradict what the theory assumes beside it"
        return replace(self, verdict="undetermined", reason=reason, doubts=doubts)


@dataclass(frozen=True, kw_only=True)
class PriorReplicates:
    """Conditional means and scales of a block with bootstrap replicates of both.

    Attributes
    ----------
    loc, scale
        (T, X, n), nan where a condition has too few cells. The control comes first.
    loc_replicates, scale_replicates
        (R, T, X, n).
    treatments, covariates
        Names of the first two axes.
    """

    loc: Floats
    scale: Floats
    loc_replicates: Floats
    scale_replicates: Floats
    treatments: tuple[str, ...]
    covariates: tuple[str, ...]


def natural_parameters(loc: ArrayLike, scale: ArrayLike) -> Floats:
    """Natural parameters (m / s^2, -1 / (2 s^2)) of independent Gaussians.

    Parameters
    ----------
    loc, scale
        (..., n); scales must be positive.

    Returns
    -------
    eta
        (..., 2n): the n linear parameters, then the n quadratic ones.

    Examples
    --------
    >>> natural_parameters([2.0], [0.5])
    array([ 8., -2.])
    """
    m, s = np.asarray(loc, float), np.asarray(scale, float)
    if (s <= 0).any():
        raise DesignError(
            sentence(
                "a prior scale is not positive",
                where="scale",
                expected="every scale > 0",
                got=f"a minimum of {np.nanmin(s):.3g}",
                hint="pass standard deviations, not their logarithms",
            )
        )
    return np.concatenate([m / s**2, -0.5 / s**2], axis=-1)


def interaction_contrasts(eta: ArrayLike) -> Floats:
    """Stack the contrasts eta(t,x) - eta(t,x0) - eta(t0,x) + eta(t0,x0).

    Parameters
    ----------
    eta
        Natural parameters (T, X, 2n), the reference condition at index (0, 0).

    Returns
    -------
    K
        ((T - 1)(X - 1), 2n), treatments varying slowest.

    Examples
    --------
    >>> interaction_contrasts([[[0.0], [1.0]], [[2.0], [5.0]]])
    array([[2.]])
    """
    eta = np.asarray(eta, float)
    if eta.ndim != 3:
        raise DesignError(
            sentence(
                "natural parameters have the wrong shape",
                where="eta",
                expected="(treatments, covariates, 2n)",
                got=str(eta.shape),
                hint="use natural_parameters(loc, scale) on arrays of shape (T, X, n)",
            )
        )
    return (eta - eta[:1] - eta[:, :1] + eta[:1, :1])[1:, 1:].reshape(-1, eta.shape[-1])


def rank_certificate(
    loc: ArrayLike,
    scale: ArrayLike,
    loc_replicates: ArrayLike | None = None,
    scale_replicates: ArrayLike | None = None,
    *,
    alpha: float = 0.05,
    threshold: float = 0.1,
) -> Certificate:
    """Judge whether the interaction contrasts of a prior have full column rank.

    The verdict is "not identified" when there are fewer contrasts than 2n, when K is deficient
    to machine precision, or when the weakest interaction is below ``threshold`` with 95 %
    confidence in a test with 80 % power at the threshold; "identified" when it is above the noise
    (p < alpha) and not below the threshold; "undetermined" otherwise, and always when no
    replicates say how noisy the parameters are.

    Parameters
    ----------
    loc, scale
        Conditional mean and scale of z_tx (T, X, n), the control at t = 0. Conditions that were
        never seen may be nan.
    loc_replicates, scale_replicates
        Bootstrap replicates (R, T, X, n), components in the order of ``loc``; at least 20.
        The noise is taken to be independent between conditions.
    alpha
        Level of the rank test.
    threshold
        Interaction (root mean square over contrasts, in standard deviations of one cell) below
        which a direction counts as absent.

    Returns
    -------
    certificate
        The numbers and the verdict; ``print`` it for a sentence.

    Raises
    ------
    DesignError
        Shapes do not agree, or there are too few replicates.
    """
    loc, scale = np.asarray(loc, float), np.asarray(scale, float)
    if loc.ndim != 3 or loc.shape != scale.shape:
        raise DesignError(
            sentence(
                "prior parameters have the wrong shape",
                where="loc, scale",
                expected="two arrays (treatments, covariates, n)",
                got=f"{loc.shape} and {scale.shape}",
                hint="evaluate the prior on the full grid, nan where a condition is unseen",
            )
        )
    seen = np.isfinite(loc).all(-1) & np.isfinite(scale).all(-1)
    additive = _additive_design(seen)
    # Rows of `basis` span what no additive table can: orthonormal interaction contrasts.
    left, values, _ = np.linalg.svd(additive, full_matrices=True)
    basis = left[:, int((values > 1e-9).sum()) :].T
    rows, columns = len(basis), 2 * loc.shape[-1]

    eta = natural_parameters(loc[seen], scale[seen])
    fisher = _fisher(loc[seen], scale[seen])
    unit = np.linalg.inv(np.linalg.cholesky(np.linalg.inv(fisher).mean(0)))
    sigma = _singular_values(basis @ eta @ unit.T, columns)
    ratio = _ratio(sigma)
    nan = float("nan")
    numbers: dict[str, Any] = {
        "n_contrasts": rows,
        "n_needed": columns,
        "singular_values": sigma,
        "ratio": ratio,
        "interval": (nan, nan),
        "statistic": nan,
        "p_value": nan,
        "effect": float(sigma[-1]),
        "effect_upper": nan,
        "detectable": nan,
        "threshold": threshold,
    }
    if rows < columns:
        return Certificate(
            verdict="not identified",
            reason=f"too few conditions, use n_tx <= {rows // 2} or add conditions",
            **numbers,
        )
    if sigma[-1] < _EXACT:
        n_zero = int((sigma < _EXACT).sum())
        return Certificate(
            verdict="not identified",
            reason=f"{n_zero} of {columns} directions show no interaction at all "
            "(additive parameters, or a scale that is fixed)",
            **numbers,
        )
    if loc_replicates is None or scale_replicates is None:
        return Certificate(
            verdict="undetermined",
            reason="the rank is full, but no replicates say how noisy it is",
            **numbers,
        )

    replicates = _replicates(loc_replicates, scale_replicates, loc.shape, seen)
    ratios = [_ratio(_singular_values(basis @ e @ unit.T, columns)) for e in replicates]
    numbers["interval"] = tuple(float(q) for q in np.quantile(ratios, [0.025, 0.975]))
    noise, cells = _noise(replicates, fisher)
    statistic = _weakest(eta, noise, additive, basis, unit)
    freedom = rows - columns + 1
    p_value = float(stats.chi2.sf(statistic, freedom))
    scale_of_effect = np.sqrt(cells * rows)
    effect = float(np.sqrt(max(statistic - freedom, 0.0)) / scale_of_effect)
    upper = float(np.sqrt(_noncentrality_upper(statistic, freedom)) / scale_of_effect)
    detectable = float(np.sqrt(_noncentrality_detectable(freedom, alpha)) / scale_of_effect)
    numbers.update(
        statistic=statistic,
        p_value=p_value,
        effect=effect,
        effect_upper=upper,
        detectable=detectable,
    )
    if p_value < alpha and effect >= threshold:
        return Certificate(
            verdict="identified",
            reason="interaction reaches every direction, beyond its noise",
            **numbers,
        )
    # Minimising over directions biases J down: with little power a low J proves nothing.
    if max(upper, detectable) < threshold:
        return Certificate(
            verdict="not identified",
            reason="at least one direction shows no interaction worth the name",
            **numbers,
        )
    return Certificate(
        verdict="undetermined",
        reason=f"the weakest interaction cannot be told from noise (this design detects "
        f"{detectable:.2f}) or from the threshold of {threshold:g}",
        **numbers,
    )


def bootstrap_prior(
    z: ArrayLike,
    treatment: ArrayLike,
    covariate: ArrayLike,
    *,
    control: str,
    variance: ArrayLike | None = None,
    n_boot: int = 100,
    min_cells: int = 5,
    seed: int = 0,
) -> PriorReplicates:
    """Fit a Gaussian per condition to latents, with replicates by resampling cells.

    The aggregate posterior of a trained model matches its prior, so these moments stand for the
    learned prior and their spread for its sampling noise.

    Parameters
    ----------
    z
        Latents (cells, n): true ones, or posterior means.
    treatment, covariate
        Labels, one a cell.
    control
        The label of the control; it becomes the first treatment.
    variance
        Posterior variances (cells, n), added to the variance of the means (law of total variance).
    n_boot
        Replicates.
    min_cells
        Conditions with fewer cells are nan.
    seed
        Seed of the resampling.

    Returns
    -------
    replicates
        Ready for `rank_certificate`.
    """
    z_nd = np.asarray(z, float)
    v_nd = np.zeros_like(z_nd) if variance is None else np.asarray(variance, float)
    t, x = np.asarray(treatment).astype(str), np.asarray(covariate).astype(str)
    if not (len(z_nd) == len(t) == len(x)) or control not in t:
        raise DesignError(
            sentence(
                "labels do not describe these latents",
                where="treatment, covariate, control",
                expected=f"{len(z_nd)} labels each, {control!r} among the treatments",
                got=f"{len(t)} and {len(x)}, treatments {sorted(set(t))[:5]}",
                hint="pass one label a cell and the control's own name",
            )
        )
    treatments = (control, *sorted(set(t) - {control}))
    covariates = tuple(sorted(set(x)))
    shape = (len(treatments), len(covariates), z_nd.shape[1])
    loc, scale = np.full(shape, np.nan), np.full(shape, np.nan)
    locs, scales = np.full((n_boot, *shape), np.nan), np.full((n_boot, *shape), np.nan)
    rng = np.random.default_rng(seed)
    for i, a in enumerate(treatments):
        for j, b in enumerate(covariates):
            rows = np.flatnonzero((t == a) & (x == b))
            n = len(rows)
            if n < min_cells:
                continue
            weights = rng.multinomial(n, np.full(n, 1 / n), size=n_boot) / n
            # Centred first: the moments are then free of cancellation.
            center = z_nd[rows].mean(0)
            d, v = z_nd[rows] - center, v_nd[rows]
            loc[i, j] = center
            scale[i, j] = np.sqrt(((d**2).sum(0) / (n - 1)) + v.mean(0))
            m = weights @ d
            locs[:, i, j] = center + m
            # A replicate has seen about 1 - 1/e of the cells, yet has n draws: n - 1 still holds.
            spread = (weights @ d**2 - m**2) * n / (n - 1) + weights @ v
            scales[:, i, j] = np.sqrt(np.maximum(spread, 1e-12))
    return PriorReplicates(
        loc=loc,
        scale=scale,
        loc_replicates=locs,
        scale_replicates=scales,
        treatments=treatments,
        covariates=covariates,
    )


def _additive_design(seen: NDArray[np.bool_]) -> Floats:
    t, x = np.nonzero(seen)
    return np.concatenate([np.eye(seen.shape[0])[t], np.eye(seen.shape[1])[x]], axis=1)


def _fisher(m: Floats, s: Floats) -> Floats:
    """Covariance of (z, z^2) per condition: (C, 2n, 2n), components independent."""
    c, n = m.shape
    out = np.zeros((c, 2 * n, 2 * n))
    k = np.arange(n)
    out[:, k, k] = s**2
    out[:, k, n + k] = out[:, n + k, k] = 2 * m * s**2
    out[:, n + k, n + k] = 2 * s**4 + 4 * m**2 * s**2
    return out


def _singular_values(k: Floats, columns: int) -> Floats:
    values = np.linalg.svd(k, compute_uv=False) if k.size else np.zeros(0)
    return np.pad(values, (0, columns - len(values))) / np.sqrt(max(len(k), 1))


def _ratio(sigma: Floats) -> float:
    return float(sigma[-1] / sigma[0]) if sigma[0] > _EXACT else 0.0


def _replicates(
    loc: ArrayLike, scale: ArrayLike, shape: tuple[int, ...], seen: NDArray[np.bool_]
) -> Floats:
    loc, scale = np.asarray(loc, float), np.asarray(scale, float)
    if loc.shape != scale.shape or loc.shape[1:] != shape or len(loc) < 20:
        raise DesignError(
            sentence(
                "replicates of the prior have the wrong shape",
                where="loc_replicates, scale_replicates",
                expected=f"(R, {', '.join(map(str, shape))}) with R >= 20",
                got=f"{loc.shape} and {scale.shape}",
                hint="bootstrap the fitted prior at least 20 times",
            )
        )
    return natural_parameters(loc[:, seen], scale[:, seen])


def _noise(replicates: Floats, fisher: Floats) -> tuple[Floats, float]:
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


def _weakest(eta: Floats, noise: Floats, additive: Floats, basis: Floats, unit: Floats) -> float:
    """Minimise J over directions v, from every singular direction of the scaled contrasts."""
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


def _noncentrality_upper(statistic: float, freedom: int) -> float:
    """95 % upper bound of the noncentrality of a chi-square that came out at ``statistic``."""

    def excess(value: float) -> float:
        return float(stats.ncx2.cdf(statistic, freedom, value)) - 0.05

    if stats.chi2.cdf(statistic, freedom) <= 0.05:
        return 0.0
    high = max(4.0 * statistic, 10.0) + 40.0
    return float(optimize.brentq(excess, 1e-12, high))


def _noncentrality_detectable(freedom: int, alpha: float, power: float = 0.8) -> float:
    """Noncentrality that a chi-square test of level alpha finds with the given power."""
    critical = stats.chi2.isf(alpha, freedom)

    def excess(value: float) -> float:
        return float(stats.ncx2.sf(critical, freedom, value)) - power

    return float(optimize.brentq(excess, 1e-9, 20.0 + 10.0 * np.sqrt(freedom)))
