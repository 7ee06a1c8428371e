"""Crossed random effects against matrices written out, simulations, and their limits."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_fcr.analysis.crossed import (
    Components,
    _shares,
    estimate_components,
    log_likelihood,
    predict,
)


def table(n_t=3, n_x=4, n_genes=2, missing=((1, 2), (2, 0)), seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n_t, n_x, n_genes))
    noise = rng.gamma(3, 0.1, values.shape)
    for t, x in missing:
        values[t, x] = np.nan
    return values, noise


def simulated(n_t, n_x, n_genes, variances, *, noise=0.2, seed=0):
    """Values without and with noise; ``variances`` of covariate, treatment and interaction."""
    rng = np.random.default_rng(seed)
    a, b, e = np.sqrt(variances)
    truth = (
        0.3
        + a * rng.normal(size=(1, n_x, n_genes))
        + b * rng.normal(size=(n_t, 1, n_genes))
        + e * rng.normal(size=(n_t, n_x, n_genes))
    )
    spread = noise * rng.uniform(0.5, 1.5, truth.shape)
    return truth, truth + np.sqrt(spread) * rng.normal(size=truth.shape), spread


def dense(values, noise, variances):
    """One gene by generalised least squares: covariances of all cells, solved as they stand."""
    n_t, n_x = values.shape
    a, b, e = variances
    t, x = (i.ravel() for i in np.indices(values.shape))
    whole = a * (x[:, None] == x) + b * (t[:, None] == t) + e * np.eye(n_t * n_x)
    seen = np.isfinite(values.ravel())
    y, v = values.ravel()[seen], whole[np.ix_(seen, seen)] + np.diag(noise.ravel()[seen])
    inverse, ones = np.linalg.inv(v), np.ones(seen.sum())
    information = ones @ inverse @ ones
    mu = ones @ inverse @ y / information
    gain = whole[:, seen] @ inverse
    mean = mu + gain @ (y - mu)
    lack = 1 - gain @ ones
    cov = whole - gain @ whole[seen] + np.outer(lack, lack) / information
    rest = y - mu
    reml = -0.5 * (np.linalg.slogdet(v)[1] + np.log(information) + rest @ inverse @ rest)
    return mean.reshape(n_t, n_x), cov.reshape(n_t, n_x, n_t, n_x), reml


@pytest.mark.parametrize("variances", [(0.5, 0.3, 0.2), (0.4, 0.0, 0.1), (0.0, 0.7, 0.0)])
def test_prediction_is_that_of_generalised_least_squares(variances):
    values, noise = table()
    found = predict(values, noise, Components(*(np.full(2, v) for v in variances), 1.0))
    for g in range(2):
        mean, cov, _ = dense(values[..., g], noise[..., g], variances)
        np.testing.assert_allclose(found.mean[..., g], mean, atol=1e-6)
        variance = np.einsum("txtx->tx", cov)
        np.testing.assert_allclose(found.variance[..., g], variance, atol=1e-6)
        np.testing.assert_allclose(found.change[..., g], mean - mean[0], atol=1e-6)
        contrast = [
            [cov[t, x, t, x] + cov[0, x, 0, x] - 2 * cov[t, x, 0, x] for x in range(4)]
            for t in range(3)
        ]
        np.testing.assert_allclose(found.change_variance[..., g], contrast, atol=1e-6)


def test_likelihood_is_the_restricted_one():
    """Up to a constant: differences between triples are those of the matrices written out."""
    values, noise = table(missing=((0, 1),))
    sizes = np.array([0.0, 0.2, 0.9])
    found = log_likelihood(values, noise, sizes)
    triples = [(a, b, e) for e in sizes for b in sizes for a in sizes]
    for g in range(2):
        wanted = np.array([dense(values[..., g], noise[..., g], v)[2] for v in triples])
        np.testing.assert_allclose(found[g] - found[g, 0], wanted - wanted[0], atol=1e-8)


def test_error_is_as_large_as_stated():
    """Where the variances are known, the mean squared error is the stated variance."""
    variances = (0.3, 0.2, 0.1)
    truth, values, noise = simulated(3, 5, 4000, variances)
    values[2, 4] = np.nan
    found = predict(values, noise, Components(*(np.full(4000, v) for v in variances), 1.0))
    for mine, error in (
        (found.variance, (found.mean - truth) ** 2),
        (found.change_variance[1:], (found.change - (truth - truth[0]))[1:] ** 2),
    ):
        np.testing.assert_allclose(error.mean(-1), mine.mean(-1), rtol=0.08)


def test_components_of_a_simulation_are_found():
    half = [simulated(6, 7, 400, v, noise=0.05, seed=s) for s, v in enumerate(
        [(0.5, 0.05, 0.1), (0.02, 0.3, 0.1)])]  # fmt: skip
    values, noise = (np.concatenate([one[i] for one in half], -1) for i in (1, 2))
    found = estimate_components(values, noise)
    # The grid's steps are factors of four; the mean over genes lies between two of them.
    for part, wanted in (("covariate", (0.5, 0.02)), ("treatment", (0.05, 0.3)),
                         ("interaction", (0.1, 0.1))):  # fmt: skip
        of_gene = getattr(found, part)
        assert of_gene[:400].mean() == pytest.approx(wanted[0], rel=0.35, abs=0.03)
        assert of_gene[400:].mean() == pytest.approx(wanted[1], rel=0.35, abs=0.03)
    assert found.left == 1


def test_a_model_that_followed_the_noise_is_noticed():
    """Residuals with a quarter of the noise and nothing else are no interactions too small."""
    rng = np.random.default_rng(2)
    noise = rng.gamma(2, 0.1, (3, 6, 500))
    values = rng.normal(size=noise.shape) * np.sqrt(0.25 * noise)
    assert estimate_components(values, noise, absorbs=True).left == 0.25
    assert estimate_components(values, noise).left == 1


def test_what_is_left_of_the_noise_is_all_that_counts():
    """A share of the noise is as much less noise, in predictions and in the components."""
    values, noise = table()
    parts = [np.full(2, v) for v in (0.5, 0.3, 0.2)]
    for one, other in zip(
        predict(values, noise, Components(*parts, 0.25)),
        predict(values, 0.25 * noise, Components(*parts, 1.0)),
        strict=True,
    ):
        np.testing.assert_allclose(one, other)
    rng = np.random.default_rng(4)
    noise = rng.gamma(0.3, 4.0, (6, 6, 500))
    mixed = np.sqrt(0.2 + 0.25 * noise) * rng.normal(size=noise.shape)
    found = estimate_components(mixed, noise, absorbs=True)
    assert 0.15 <= found.left <= 0.35
    assert found.interaction.mean() == pytest.approx(0.2, rel=0.35)


def test_an_interaction_never_seen_widens_its_own_condition_alone():
    values, noise = table()
    parts = Components(*(np.full(2, v) for v in (0.5, 0.3, 0.2)), 1.0)
    usual, wider = predict(values, noise, parts), predict(values, noise, parts, np.full(2, 0.9))
    np.testing.assert_array_equal(wider.mean, usual.mean)
    more = np.where(np.isnan(values), 0.9 - 0.2, 0.0)
    np.testing.assert_allclose(wider.variance - usual.variance, more, atol=1e-12)
    np.testing.assert_allclose(wider.change_variance - usual.change_variance, more, atol=1e-12)


def test_shares_by_hand():
    """Two genes sure of the first of four variances, and one gene's worth that is of all alike."""
    logs = np.tile([0.0, -1e3, -1e3, -1e3], (2, 1))
    np.testing.assert_allclose(_shares(logs), [2.25 / 3, 0.25 / 3, 0.25 / 3, 0.25 / 3])
    # Genes that know nothing leave the even shares as they are.
    np.testing.assert_allclose(_shares(np.zeros((5, 4))), 0.25)


def test_limits():
    """No variance: the mean alone. A covariate's alone: what its control shows. Nothing: prior."""
    values, noise = table(missing=((1, 2),), n_genes=1)
    none, much = np.zeros(1), np.full(1, 1e4)
    flat = predict(values, noise, Components(none, none, none, 1.0)).mean
    weight = np.isfinite(values) / noise
    expected = np.nansum(weight * values) / weight.sum()
    np.testing.assert_allclose(flat, expected, atol=1e-6)
    of_covariate = predict(values, noise, Components(much, none, none, 1.0))
    own = (weight * np.nan_to_num(values))[:, 2].sum() / weight[:, 2].sum()
    assert of_covariate.mean[1, 2] == pytest.approx(own, abs=1e-3)
    np.testing.assert_allclose(of_covariate.change, 0, atol=1e-9)
    # Main effects without shrinkage: the additive rule of a complete table but for one cell.
    clean = np.zeros_like(noise) + 1e-8
    both = predict(values, clean, Components(much, much, none + 1e-4, 1.0)).mean[1, 2]
    rows, columns = [0, 2], [0, 1, 3]
    y = values[..., 0]
    rule = (
        y[rows, 2].mean() + y[1, columns].mean() - y[np.ix_(rows, columns)].mean()
    )  # least squares of a two-way table with one cell missing
    assert both[0] == pytest.approx(rule, abs=1e-3)


def test_genes_do_not_mix_and_their_order_is_nothing():
    values, noise = table(n_genes=7, seed=3)
    found = estimate_components(values, noise)
    turned = estimate_components(values[..., ::-1], noise[..., ::-1])
    for one, other in zip(found[:3], turned[:3], strict=True):
        np.testing.assert_allclose(one, other[::-1])
