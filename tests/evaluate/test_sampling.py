"""Sampling variances of mean profiles against a bootstrap and against numbers by hand."""

from __future__ import annotations

import numpy as np

from pyro_fcr.evaluate import log_normalised, pooled_variances, profile, sampled_profile


def test_variance_of_a_profile_is_that_of_a_bootstrap():
    rng = np.random.default_rng(0)
    depth = rng.gamma(5, 1, (80, 1))
    # Depth differs by cell, and the last two genes trade their molecules: no Poisson's ratio.
    rate = np.array([3.0, 10.0, 40.0, 20.0, 20.0]) * np.ones((80, 5))
    rate[:, 3:] *= rng.gamma(1, 1, (80, 1)) ** np.array([1.0, -0.2])
    counts = rng.poisson(depth * rate).astype(float)
    mean, variance = sampled_profile(np.array_split(counts, 3))
    np.testing.assert_allclose(mean, profile(counts))
    drawn = log_normalised(rng.multinomial(80, np.full(80, 1 / 80), 4000) @ counts).var(0)
    share = counts.sum(0) / counts.sum()
    molecules = (1 - share) / counts.sum(0)
    np.testing.assert_allclose(variance, np.maximum(drawn * 80 / 79, molecules), rtol=0.1)
    assert variance[3] > 5 * molecules[3]


def test_variance_of_a_mean_is_the_usual_one():
    values = np.random.default_rng(1).normal(size=(13, 4))
    mean, variance = sampled_profile([values[:5], values[5:]], log_normalise=False)
    np.testing.assert_allclose(mean, values.mean(0))
    np.testing.assert_allclose(variance, values.var(0, ddof=1) / 13)
    assert np.isnan(sampled_profile([values[:1]], log_normalise=False)[1]).all()


def test_few_cells_borrow_the_spread_of_the_others():
    """Worked by hand: spreads of a cell 4 (11 cells) and 1 (5), ten degrees of all."""
    given = np.array([[4 / 11, 1 / 5, np.nan]]).T
    pooled = (4 * 10 + 1 * 4) / 14
    wanted = [(40 + 10 * pooled) / 20 / 11, (4 + 10 * pooled) / 14 / 5, pooled]
    np.testing.assert_allclose(pooled_variances(given, [11, 5, 1])[:, 0], wanted)
    np.testing.assert_allclose(pooled_variances([[np.nan], [1.0]], [0, 9])[0], 1.0 * 9)
