r"""The rank certificate: whether a conditional Gaussian prior pins z_tx down.

With natural parameters :math:`\eta(t, x) = (m/s^2, -1/(2 s^2))` of each component of z_tx, the
interaction contrasts :math:`\eta(t,x) - \eta(t,x_0) - \eta(t_0,x) + \eta(t_0,x_0)` stacked over
(t, x) form a matrix K of 2n columns. Rank 2n suffices for component-wise identifiability
(FCR, Mao et al. 2024, arXiv 2410.22472, in the checkable form for Gaussian priors).

Two yardsticks make the question answerable from noisy parameters:

* **size**: contrasts are measured in units of what one cell tells (the inverse Fisher
  information of a Gaussian). That unit undoes any shift or rescaling of a component, which is
  the freedom that an identified z_tx has.
* **noise**: the smallest direction of K is tested against the noise of the replicates
  (:mod:`pyro_fcr.evaluate.rank_test`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import stats

from pyro_fcr.errors import DesignError, sentence
from pyro_fcr.evaluate.rank_test import (
    fisher_information,
    noise_covariance,
    noncentrality_detectable,
    noncentrality_upper,
    weakest_direction,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.floating[Any]]
    Verdict = Literal["identified", "not identified", "undetermined"]

__all__ = [
    "Certificate",
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

    verdict: Verdict
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
        numbers = f"smallest over largest singular value {self.ratio:.3g}"
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
            f"for the {self.n_needed} that size {self.n_needed // 2} needs; {numbers}.{beside}"
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
    fisher = fisher_information(loc[seen], scale[seen])
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

    def judged(verdict: Verdict, reason: str) -> Certificate:
        return Certificate(verdict=verdict, reason=reason, **numbers)

    if rows < columns:
        return judged(
            "not identified",
            f"too few conditions: take a z_tx of size {rows // 2} at most, or add more",
        )
    if sigma[-1] < _EXACT:
        n_zero = int((sigma < _EXACT).sum())
        return judged(
            "not identified",
            f"{n_zero} of {columns} directions show no interaction at all "
            "(additive parameters, or a scale that is fixed)",
        )
    if loc_replicates is None or scale_replicates is None:
        return judged("undetermined", "the rank is full, but no replicates say how noisy it is")

    replicates = _replicates(loc_replicates, scale_replicates, loc.shape, seen)
    ratios = [_ratio(_singular_values(basis @ e @ unit.T, columns)) for e in replicates]
    numbers["interval"] = tuple(float(q) for q in np.quantile(ratios, [0.025, 0.975]))
    noise, cells = noise_covariance(replicates, fisher)
    statistic = weakest_direction(eta, noise, additive, basis, unit)
    freedom = rows - columns + 1
    p_value = float(stats.chi2.sf(statistic, freedom))
    scale_of_effect = np.sqrt(cells * rows)
    effect = float(np.sqrt(max(statistic - freedom, 0.0)) / scale_of_effect)
    upper = float(np.sqrt(noncentrality_upper(statistic, freedom)) / scale_of_effect)
    detectable = float(np.sqrt(noncentrality_detectable(freedom, alpha)) / scale_of_effect)
    numbers.update(
        statistic=statistic,
        p_value=p_value,
        effect=effect,
        effect_upper=upper,
        detectable=detectable,
    )
    if p_value < alpha and effect >= threshold:
        return judged("identified", "interaction reaches every direction, beyond its noise")
    # Minimising over directions biases J down: with little power a low J proves nothing.
    if max(upper, detectable) < threshold:
        return judged(
            "not identified", "at least one direction shows no interaction worth the name"
        )
    return judged(
        "undetermined",
        f"the weakest interaction cannot be told from noise (this design detects "
        f"{detectable:.2f}) or from the threshold of {threshold:g}",
    )


def _additive_design(seen: NDArray[np.bool_]) -> Floats:
    t, x = np.nonzero(seen)
    return np.concatenate([np.eye(seen.shape[0])[t], np.eye(seen.shape[1])[x]], axis=1)


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
