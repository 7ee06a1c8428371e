"""What the theory takes for granted and a fit can contradict.

Identifiability of z_tx rests on more than the rank of its prior's interactions: z_x must not
depend on the treatment given the covariates (nor z_t on the covariates given the treatment), and
the components of z_tx must be independent within a condition. A model that assumes both fits data
that break them as well as it can; what it cannot fit shows in the aggregate posterior.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import optimize, stats

from pyro_fcr.errors import DesignError, sentence

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.floating[Any]]

__all__ = ["CommonCorrelation", "PriorShift", "common_correlation", "prior_shift"]

FEWEST = 5
"""Conditions below which any covariances can be explained by one correlation."""

STARTS = 4
"""Of the search for the common correlation; its objective has local optima."""


@dataclass(frozen=True, kw_only=True)
class PriorShift:
    """How far groups of cells lie from where a block's prior says.

    Attributes
    ----------
    effect
        Root mean square over groups and components, in prior standard deviations, with what
        sampling explains subtracted.
    statistic, freedom, p_value
        Of a chi-square test.
    """

    effect: float
    statistic: float
    freedom: int
    p_value: float


@dataclass(frozen=True, kw_only=True)
class CommonCorrelation:
    """What a correlation shared by all conditions explains beyond independent components.

    Attributes
    ----------
    gain
        Log-likelihood gained, in nats per cell.
    left
        Dependence of the jointly most independent axes, in nats per cell, sampling subtracted.
    correlation
        The shared correlation (d, d), in its own axes.
    statistic, freedom, p_value
        Of the likelihood ratio test of Gaussian components.
    """

    gain: float
    left: float
    correlation: Floats = field(repr=False)
    statistic: float
    freedom: int
    p_value: float


def prior_shift(deviation: ArrayLike, group: ArrayLike) -> PriorShift:
    r"""Test that groups of cells lie where their prior says, whatever else they depend on.

    .. math:: S = \sum_g n_g \lVert \bar d_g \rVert^2

    over groups of a label that is no parent of the block. Where the block does not depend on the
    label, posterior means vary around the prior's by no more than the prior itself, so S is at
    most chi-square with (groups · components) degrees of freedom: the test errs, if at all, on the
    side of silence.

    Parameters
    ----------
    deviation
        (cells, d): posterior mean minus prior mean, in prior standard deviations.
    group
        (cells,): the label.

    Raises
    ------
    DesignError
        There are no cells, or not one label each.

    Examples
    --------
    >>> found = prior_shift([[0.1], [0.3], [-0.2], [-0.2]], ["a", "a", "b", "b"])
    >>> round(found.statistic, 6), found.freedom
    (0.16, 2)
    """
    d_nd = np.asarray(deviation, float)
    labels = np.asarray(group)
    if d_nd.ndim != 2 or not len(d_nd) or len(d_nd) != len(labels):
        raise DesignError(
            sentence(
                "deviations cannot be grouped",
                where="deviation, group",
                expected="(cells, d) and a label a cell",
                got=f"{d_nd.shape} and {labels.shape}",
                hint="pass both for the same cells",
            )
        )
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), d_nd.shape[1]))
    np.add.at(sums, index, d_nd)
    statistic = float((sums**2 / counts[:, None]).sum())
    freedom = sums.size
    return PriorShift(
        effect=float(np.sqrt(max(statistic - freedom, 0.0) / d_nd.size)),
        statistic=statistic,
        freedom=freedom,
        p_value=float(stats.chi2.sf(statistic, freedom)),
    )


def common_correlation(covariance: ArrayLike, size: ArrayLike) -> CommonCorrelation:
    r"""Ask whether one correlation explains what joint diagonalisation leaves.

    Independent components have covariances that one matrix A makes diagonal in every condition.
    Components that correlate alike everywhere, with scales of their own in every condition, have
    :math:`A S_c A^\top = D_c R D_c`, which no matrix makes diagonal in all of them. Both are
    fitted by maximum likelihood; twice the difference is chi-square with d(d - 1)/2 degrees of
    freedom where R is the identity. Residual correlations that differ in sign and size between
    conditions, as an imperfect decoder leaves them, gain nothing from a common R.

    Parameters
    ----------
    covariance
        (conditions, d, d), positive definite: of the aggregate posterior in each condition.
    size
        (conditions,): numbers of cells.

    Raises
    ------
    DesignError
        There are fewer than two components or five conditions: nothing could contradict R.
    """
    s, n = np.asarray(covariance, float), np.asarray(size, float)
    if s.ndim != 3 or s.shape[1] < 2 or len(s) < FEWEST or len(n) != len(s):
        raise DesignError(
            sentence(
                "a common correlation cannot be told",
                where="covariance, size",
                expected=f"(conditions, d, d) of {FEWEST} conditions and d of 2, at least",
                got=f"{s.shape} and {n.shape}",
                hint="more conditions, or leave this check out",
            )
        )
    weight, d = n / n.sum(), s.shape[1]
    whitener = np.linalg.inv(np.linalg.cholesky(np.einsum("c,cij->ij", weight, s)))
    white = whitener @ s @ whitener.T
    saturated = float(weight @ np.linalg.slogdet(white)[1]) + d
    alone = optimize.minimize(
        _independent, np.eye(d).ravel(), (white, weight), "L-BFGS-B", jac=True,
        options={"maxiter": 2000},
    )  # fmt: skip
    axes = alone.x.reshape(d, d)
    best: Any = None
    rng = np.random.default_rng(0)
    for k in range(STARTS):
        turn = axes if k == 0 else np.linalg.qr(rng.standard_normal((d, d)))[0]
        spread = np.diagonal(turn @ white @ turn.T, axis1=1, axis2=2)
        start = np.concatenate([turn.ravel(), np.eye(d).ravel(), np.log(spread).ravel() / 2])
        found = optimize.minimize(
            _correlated, start, (white, weight), "L-BFGS-B", jac=True, options={"maxiter": 2000}
        )
        best = found if best is None or found.fun < best.fun else best
    half = best.x[d * d : 2 * d * d].reshape(d, d)
    shared = np.linalg.inv(half.T @ half)
    root = np.sqrt(np.diag(shared))
    freedom = d * (d - 1) // 2
    statistic = max(float(n.sum() * (alone.fun - best.fun)), 0.0)
    noise = len(s) * freedom / n.sum()
    return CommonCorrelation(
        gain=statistic / n.sum() / 2,
        left=max(float(alone.fun) - saturated - noise, 0.0) / 2,
        correlation=shared / np.outer(root, root),
        statistic=statistic,
        freedom=freedom,
        p_value=float(stats.chi2.sf(statistic, freedom)),
    )


def _independent(flat: Floats, white: Floats, weight: Floats) -> tuple[float, Floats]:
    """Return -2 log-likelihood per cell of axes, and its gradient, with scales at their best."""
    d = white.shape[1]
    a = flat.reshape(d, d)
    turned = a @ white
    spread = np.einsum("cij,ij->ci", turned, a)
    value = weight @ np.log(spread).sum(1) - 2 * np.linalg.slogdet(a)[1] + d
    gradient = 2 * np.einsum("c,ci,cij->ij", weight, 1 / spread, turned) - 2 * np.linalg.inv(a).T
    return float(value), gradient.ravel()


def _correlated(flat: Floats, white: Floats, weight: Floats) -> tuple[float, Floats]:
    """Return the same of axes, a root of the common precision, and all log-scales."""
    d = white.shape[1]
    a, b = flat[: d * d].reshape(d, d), flat[d * d : 2 * d * d].reshape(d, d)
    log_scale = flat[2 * d * d :].reshape(-1, d)
    precision, shrink = b.T @ b, np.exp(-log_scale)
    both = shrink[:, :, None] * shrink[:, None, :]
    turned = a @ white
    z = both * (turned @ a.T)
    value = weight @ (2 * log_scale.sum(1) + np.einsum("ij,cij->c", precision, z))
    value -= 2 * np.linalg.slogdet(a)[1] + 2 * np.linalg.slogdet(b)[1]
    of_a = 2 * np.einsum("c,cij,ij,cjk->ik", weight, both, precision, turned)
    of_b = 2 * b @ np.einsum("c,cij->ij", weight, z)
    of_scale = 2 * weight[:, None] * (1 - np.einsum("ij,cij->ci", precision, z))
    gradient = [of_a - 2 * np.linalg.inv(a).T, of_b - 2 * np.linalg.inv(b).T, of_scale]
    return float(value), np.concatenate([g.ravel() for g in gradient])
