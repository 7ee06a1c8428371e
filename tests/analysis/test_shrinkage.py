"""Shrinkage: against the exact posterior of a known population, and what it must leave alone."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_fcr.analysis.effects import expected_fdr
from pyro_fcr.analysis.shrinkage import SCALES, mixture_weights, shrink, shrink_effects

SMALL, LARGE, SHARE = 0.1, 1.0, 0.2


@pytest.fixture(scope="module")
def population():
    """Effects of which a fifth are large, estimated with unequal errors; 400 draws of each."""
    rng = np.random.default_rng(0)
    n = 4000
    truth = rng.normal(size=n) * np.where(rng.random(n) < SHARE, LARGE, SMALL)
    sd = rng.uniform(0.05, 0.6, n)
    estimate = truth + sd * rng.normal(size=n)
    draws = estimate + sd * rng.normal(size=(400, n))
    return truth, estimate, sd, draws


def exact(estimate, sd):
    """Posterior mean under the true population, worked out by hand."""
    parts = []
    for share, scale in ((1 - SHARE, SMALL), (SHARE, LARGE)):
        variance = sd**2 + scale**2
        density = share * np.exp(-(estimate**2) / (2 * variance)) / np.sqrt(variance)
        parts.append((density, estimate * scale**2 / variance))
    total = sum(density for density, _ in parts)
    return sum(density * mean for density, mean in parts) / total


def test_the_population_is_found(population) -> None:
    _, estimate, sd, _ = population
    weights = mixture_weights(estimate, sd)
    assert weights.sum() == pytest.approx(1)
    assert weights[SCALES > 0.4].sum() == pytest.approx(SHARE, abs=0.05)
    assert weights @ SCALES**2 == pytest.approx(
        SHARE * LARGE**2 + (1 - SHARE) * SMALL**2, rel=0.15
    )


def test_effects_are_those_of_the_exact_posterior(population) -> None:
    truth, estimate, sd, draws = population
    shrunk = shrink(draws, mixture_weights(estimate, sd), np.random.default_rng(1))
    by_hand = exact(estimate, sd)
    assert np.sqrt(np.mean((shrunk.mean(0) - by_hand) ** 2)) < 0.05
    assert np.mean((shrunk.mean(0) - truth) ** 2) < 1.05 * np.mean((by_hand - truth) ** 2)
    assert np.mean((shrunk.mean(0) - truth) ** 2) < 0.6 * np.mean((estimate - truth) ** 2)


def test_intervals_hold_and_false_ones_are_counted(population) -> None:
    truth, estimate, sd, draws = population
    shrunk = shrink(draws, mixture_weights(estimate, sd), np.random.default_rng(1))
    low, high = np.quantile(shrunk, (0.05, 0.95), axis=0)
    assert np.mean((low <= truth) & (truth <= high)) == pytest.approx(0.9, abs=0.02)
    wrong = {}
    for name, values in (("shrunk", shrunk), ("as estimated", draws)):
        chosen = expected_fdr((np.abs(values) > 0.25).mean(0)) <= 0.1
        wrong[name] = np.mean(np.abs(truth[chosen]) <= 0.25)
    assert wrong["shrunk"] < 0.12
    assert wrong["as estimated"] > 0.2


def test_what_is_known_well_stays_where_it_is() -> None:
    rng = np.random.default_rng(2)
    truth = rng.normal(size=500)
    draws = truth + 1e-3 * rng.normal(size=(50, 500))
    shrunk = shrink(draws, mixture_weights(truth, np.full(500, 1e-3)), rng)
    np.testing.assert_allclose(shrunk, draws, atol=1e-3)


def test_errors_that_are_shared_stay_shared() -> None:
    rng = np.random.default_rng(3)
    shared = rng.normal(size=(2000, 1))
    draws = 3.0 + 0.3 * shared + 0.01 * rng.normal(size=(2000, 2))
    weights = np.where(np.arange(len(SCALES)) == len(SCALES) - 1, 1.0, 0.0)
    assert np.corrcoef(shrink(draws, weights, rng).T)[0, 1] > 0.99


def test_treatments_without_an_effect_are_told_from_those_with_one() -> None:
    rng = np.random.default_rng(4)
    truth = np.stack([np.zeros((3, 300)), np.tile(rng.normal(size=300), (3, 1))])
    sd = 0.4
    estimate = truth + sd * rng.normal(size=truth.shape)
    draws = (estimate + sd * rng.normal(size=(100, *truth.shape))).astype(np.float32)
    unseen = draws[:, 1, 2].copy()
    seen = np.array([[True, True, True], [True, True, False]])
    shrink_effects(draws, seen, rng)
    rms = np.sqrt((draws.mean(0) ** 2).mean(-1))
    assert rms[0].max() < 0.15
    assert rms[1, :2].min() > 0.85
    # Nothing was measured of the last condition: what the model extrapolates is left alone.
    np.testing.assert_array_equal(draws[:, 1, 2], unseen)


def test_one_group_of_cells_has_no_part_of_its_own() -> None:
    rng = np.random.default_rng(5)
    draws = (2 + 0.1 * rng.normal(size=(60, 1, 1, 40))).astype(np.float32)
    shrink_effects(draws, np.array([[True]]), rng)
    assert draws.mean() == pytest.approx(2, abs=0.05)
    assert np.isfinite(draws).all()
