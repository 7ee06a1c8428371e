r"""Crossed random effects: what a table of conditions has in common by row, by column, and not.

.. math:: r_{tx} = \mu + a_x + b_t + e_{tx} + \varepsilon_{tx},\quad
    \varepsilon_{tx} \sim N(0, s^2_{tx})

with :math:`a_x, b_t, e_{tx}` Gaussian of variances of a gene's own, :math:`\mu` a fixed effect
and :math:`s^2` known. Given the variances, all is linear algebra (Henderson 1975, Biometrics
31:423-447); the rows' effects are eliminated, so a gene costs T X² and not (T X)³.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]

__all__ = ["Components", "Predicted", "estimate_components", "log_likelihood", "predict"]

SCALES = (0.0, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)
"""Standard deviations that a component may have, in units of the values' root mean square."""

LEFT = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1)
"""Shares of the noise that may be left in the values."""

GENES = 500
"""Genes that tell how components are distributed, evenly spaced where there are more."""

ROUNDS = 200


class Components(NamedTuple):
    """Variances of a table's parts, by gene."""

    covariate: Floats
    """Shape (G,): of a_x."""

    treatment: Floats
    """Shape (G,): of b_t."""

    interaction: Floats
    """Shape (G,): of e_tx."""

    left: float
    """Share of the stated noise that the values hold."""


class Predicted(NamedTuple):
    r"""Best linear prediction of :math:`\mu + a_x + b_t + e_{tx}`; each of shape (T, X, G)."""

    mean: Floats
    """Of every condition, measured or not."""

    variance: Floats
    """Of its error."""

    change: Floats
    """Difference from row 0, the control."""

    change_variance: Floats
    """Of its error."""


def estimate_components(values: Floats, noise: Floats, *, absorbs: bool = False) -> Components:
    """Estimate the variances of a table's parts, gene by gene, in the light of all genes.

    Every combination of a grid of variances has a restricted likelihood under each gene; which
    share of the genes has which is estimated by expectation and maximisation, and a gene's
    variances are their posterior means under these shares (empirical Bayes without a shape).

    Parameters
    ----------
    values
        Shape (T, X, G); nan where a condition was not measured.
    noise
        Shape (T, X, G): their sampling variances.
    absorbs
        Whether the values may hold only a share of the noise, the same for all: residuals of a
        model that has followed the noise of the cells it was trained on.
    """
    n_genes = values.shape[-1]
    few = np.unique(np.linspace(0, n_genes - 1, min(n_genes, GENES)).astype(int))
    sample, its_noise = values[..., few], noise[..., few]
    centred = sample - np.nanmean(sample, (0, 1))
    unit = max(float(np.sqrt(np.nanmean(centred**2))), 1e-12)
    sds = np.asarray(SCALES) * unit
    best, left, shares = -np.inf, 1.0, np.empty(0)
    for share in LEFT if absorbs else (1.0,):
        logs = log_likelihood(sample, its_noise * share, sds**2)
        found = _shares(logs)
        top = logs.max(1)
        total = float((np.log(np.exp(logs - top[:, None]) @ found) + top).sum())
        if total > best:
            best, left, shares = total, share, found
    grid = np.stack(np.meshgrid(sds**2, sds**2, sds**2, indexing="ij"), -1).reshape(-1, 3)
    out = np.empty((n_genes, 3))
    for start in range(0, n_genes, GENES):
        rows = slice(start, start + GENES)
        logs = log_likelihood(values[..., rows], noise[..., rows] * left, sds**2)
        odds = np.exp(logs - logs.max(1, keepdims=True)) * shares
        out[rows] = odds @ grid / odds.sum(1, keepdims=True)
    interaction, treatment, covariate = out.T
    return Components(covariate, treatment, interaction, left)


def log_likelihood(values: Floats, noise: Floats, variances: Floats) -> NDArray[np.float64]:
    """Return each gene's restricted log-likelihood under all triples of variances, (G, K³).

    Parameters
    ----------
    values, noise
        As for :func:`estimate_components`.
    variances
        Shape (K,). The interaction's varies slowest, the covariate's fastest.
    """
    columns = []
    for interaction in variances:
        for treatment in variances:
            weight, gain, matrix, right, square, determinant = _eliminated(
                values, noise, interaction, treatment
            )
            root, axes = np.linalg.eigh(matrix)
            root = np.maximum(root, 0.0)
            ones, turned = axes.sum(1), np.einsum("gxk,gx->gk", axes, right)
            for covariate in variances:
                shrink = 1 / (1 + covariate * root)
                whole = np.maximum((ones**2 * root * shrink).sum(1), 1e-300)
                fitted = (ones * turned * shrink).sum(1) ** 2 / whole
                fitted = fitted + covariate * (turned**2 * shrink).sum(1)
                spread = determinant - np.log(shrink).sum(1) + np.log(whole)
                columns.append(-0.5 * (spread + square - fitted))
    return np.stack(columns, axis=1)


def predict(
    values: Floats, noise: Floats, components: Components, unseen: Floats | None = None
) -> Predicted:
    """Predict every condition's value without its noise, and its difference from the control's.

    Parameters
    ----------
    values, noise
        As for :func:`estimate_components`.
    components
        What that function found.
    unseen
        Shape (G,): variance of the interaction where nothing was measured; by default that of the
        others.
    """
    own = components.interaction
    unseen = own if unseen is None else unseen
    noise = noise * components.left
    seen = np.isfinite(values)
    weight, gain, matrix, right, _, _ = _eliminated(values, noise, own, components.treatment)
    n = values.shape[1]
    # A flat prior along the mean; a variance of zero would leave the others no inverse.
    floor = 1e-9 * (own.mean() + components.covariate.mean() + np.nanmean(noise))
    spread = np.maximum(components.covariate, floor)
    inverse = np.linalg.inv(matrix + (np.eye(n) - 1 / n) / spread[:, None, None])
    by_covariate = np.einsum("gxy,gy->xg", inverse, right)
    rest = np.where(seen, values - by_covariate, 0.0)
    by_treatment = gain * (weight * rest).sum(1)
    sides = np.einsum("gxy,tyg->txg", inverse, weight)
    mean = by_covariate + by_treatment[:, None]
    diagonal = np.einsum("gxx->xg", inverse)
    both = (weight * sides).sum(1)
    variance = diagonal - 2 * gain[:, None] * sides + (gain + gain**2 * both)[:, None]
    shared = (
        diagonal - gain[:, None] * sides - gain[0] * sides[0]
        + (gain * gain[0] * (weight * sides[0]).sum(1))[:, None]
    )  # fmt: skip
    kept = np.where(seen, own / np.maximum(own + np.where(seen, noise, 1.0), 1e-300), 0.0)
    left = np.where(seen, kept * np.where(seen, noise, 0.0), unseen)
    mean = mean + kept * np.where(seen, values - mean, 0.0)
    variance = (1 - kept) ** 2 * variance + left
    contrast = variance + variance[0] - 2 * (1 - kept) * (1 - kept[0]) * shared
    contrast[0] = 0.0
    return Predicted(mean, variance, mean - mean[0], np.maximum(contrast, 0.0))


def _eliminated(
    values: Floats, noise: Floats, interaction: Any, treatment: Any
) -> tuple[Floats, Floats, Floats, Floats, Floats, Floats]:
    """Return what is left of a gene's equations without the treatments' effects.

    Weights (T, X, G), gains of the treatments (T, G), matrix (G, X, X) and right-hand side (G, X)
    of the covariates, the weighted square of the values and the log-determinant (G,).
    """
    seen = np.isfinite(values)
    total = np.where(seen, noise + interaction, 1.0)
    weight = seen / np.maximum(total, 1e-12)
    value = np.where(seen, values, 0.0)
    sums = weight.sum(1)
    gain = treatment / (1 + treatment * sums)
    matrix = -np.einsum("tg,txg,tyg->gxy", gain, weight, weight, optimize=True)
    corner = np.arange(values.shape[1])
    matrix[:, corner, corner] += weight.sum(0).T
    told = (weight * value).sum(1)
    right = ((weight * value).sum(0) - (weight * (gain * told)[:, None]).sum(0)).T
    square = (weight * value**2).sum((0, 1)) - (gain * told**2).sum(0)
    determinant = np.where(seen, np.log(np.maximum(total, 1e-12)), 0.0).sum((0, 1))
    determinant = determinant + np.log1p(treatment * sums).sum(0)
    return weight, gain, matrix, right, square, determinant


def _shares(logs: Floats) -> NDArray[np.float64]:
    """Return which share of the genes (G, K) has which column, with one gene's worth of even."""
    odds = np.exp(logs - logs.max(1, keepdims=True))
    even = np.full(logs.shape[1], 1 / logs.shape[1])
    shares = even
    for _ in range(ROUNDS):
        posterior = odds * shares
        posterior /= posterior.sum(1, keepdims=True)
        shares = (posterior.sum(0) + even) / (len(logs) + 1)
    return shares
