"""Tests of the theory's assumptions: by hand, under their null, and where they are broken."""

import numpy as np
import pytest
from scipy import stats

from pyro_fcr.errors import DesignError
from pyro_fcr.evaluate import common_correlation, prior_shift


def covariances(seed, correlation, *, conditions=40, cells=100, d=4):
    """Sample covariances of components with scales of their own, mixed by one matrix."""
    rng = np.random.default_rng(seed)
    r = np.full((d, d), correlation) + (1 - correlation) * np.eye(d)
    mix = rng.standard_normal((d, d))
    scale = np.exp(rng.uniform(np.log(0.4), np.log(1.6), (conditions, d)))
    z = rng.multivariate_normal(np.zeros(d), r, (conditions, cells)) * scale[:, None] @ mix.T
    z -= z.mean(1, keepdims=True)
    return np.einsum("cni,cnj->cij", z, z) / (cells - 1), np.full(conditions, cells)


def test_shift_by_hand():
    deviation = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 2.0], [-1.0, 0.0]])
    found = prior_shift(deviation, [0, 0, 1, 1])
    # Group means (1, 0) and (0, 1), two cells each: 2 · 1 + 2 · 1; four degrees of freedom.
    assert found.statistic == pytest.approx(4)
    assert found.freedom == 4
    assert found.effect == 0
    assert found.p_value == pytest.approx(stats.chi2.sf(4, 4))
    many = prior_shift(np.tile(deviation, (100, 1)), np.tile([0, 0, 1, 1], 100))
    # The mean squared shift is 1/2; sampling explains 4 / 800 of it.
    assert many.effect == pytest.approx(np.sqrt(0.5 - 0.005))


def test_shift_has_its_level_and_its_power():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(8), 50)
    null = [prior_shift(rng.standard_normal((400, 3)), group).p_value for _ in range(500)]
    assert stats.kstest(null, "uniform").pvalue > 1e-3
    # Posterior means shrink: the test can only grow more silent.
    shrunk = [prior_shift(0.8 * rng.standard_normal((400, 3)), group).p_value for _ in range(200)]
    assert np.mean(np.array(shrunk) < 0.05) < 0.05
    shift = 0.3 * rng.standard_normal((8, 3))[group]
    found = prior_shift(rng.standard_normal((400, 3)) + shift, group)
    assert found.p_value < 1e-6
    assert found.effect == pytest.approx(np.sqrt((shift**2).mean()), abs=0.1)


def test_no_correlation_gains_what_chi_square_says():
    found = [common_correlation(*covariances(seed, 0.0)) for seed in range(60)]
    assert found[0].freedom == 6
    # Six parameters gain three nats over all cells: the mean of 60 within four standard errors.
    statistics = [f.statistic for f in found]
    assert np.mean(statistics) == pytest.approx(6, abs=4 * np.sqrt(12 / 60))
    assert np.mean([f.p_value < 0.05 for f in found]) < 0.15
    assert max(f.left for f in found) < 0.01


@pytest.mark.parametrize("seed", range(3))
def test_a_common_correlation_is_found_with_its_size(seed):
    found = common_correlation(*covariances(seed, 0.6))
    assert found.p_value < 1e-20
    assert np.abs(found.correlation[np.triu_indices(4, 1)]).mean() == pytest.approx(0.6, abs=0.08)
    # It explains nearly all that joint diagonalisation leaves.
    assert found.gain == pytest.approx(found.left, rel=0.2)


def test_correlations_of_each_conditions_own_gain_little():
    rng = np.random.default_rng(0)
    own = np.tril(0.25 * rng.standard_normal((40, 4, 4)), -1)
    correlation = np.eye(4) + own + own.swapaxes(1, 2)
    scale = np.exp(rng.uniform(-1, 1, (40, 4)))
    found = common_correlation(scale[:, :, None] * correlation * scale[:, None], np.full(40, 900))
    assert found.left > 0.1
    assert found.gain < 0.3 * found.left


def test_what_cannot_be_told_is_refused():
    covariance, size = covariances(0, 0.0, conditions=4)
    with pytest.raises(DesignError, match="common correlation cannot be told"):
        common_correlation(covariance, size)
    with pytest.raises(DesignError, match="common correlation cannot be told"):
        common_correlation(np.ones((9, 1, 1)), np.ones(9))
    with pytest.raises(DesignError, match="deviations cannot be grouped"):
        prior_shift(np.zeros((3, 2)), [0, 1])
