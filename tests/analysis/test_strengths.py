"""Strengths of interactions: against what was planted, with errors that genes share."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_fcr.analysis.changes import _errors_of_counts
from pyro_fcr.analysis.shrinkage import mixture_weights, posterior_moments
from pyro_fcr.analysis.strengths import Squares

GENES, DRAWS, GROUPS = 400, 200, 4


def planted(rng, *, strength, shared):
    """Return the true mean squares, measured changes, and draws of their errors."""
    truth = np.zeros((2, GROUPS, GENES))
    truth[1, 0] = strength * rng.standard_normal(GENES) * (rng.random(GENES) < 0.3)
    truth += rng.standard_normal(GENES)  # what all groups have in common
    sd = rng.uniform(0.1, 0.5, GENES)
    loading = shared * rng.standard_normal(GENES)

    def errors(*shape):
        own = sd * rng.standard_normal((*shape, GENES))
        return own + loading * rng.standard_normal((*shape, 1))

    specific = truth - truth.mean(1, keepdims=True)
    change = truth + errors(2, GROUPS)
    return (specific**2).mean(-1), change, errors(DRAWS, 2, GROUPS)


def estimated(change, error) -> Squares:
    """All of it measured."""
    return Squares.estimate(change, error, error, np.ones(change.shape[:2], bool))


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0.0, 0.15])
def test_intervals_hold_what_was_planted(shared) -> None:
    inside, found, wanted, nothing = [], [], [], []
    for seed in range(20):
        truth, change, error = planted(np.random.default_rng(seed), strength=0.8, shared=shared)
        squares = estimated(change, error).strength
        low, high = np.quantile(squares, (0.05, 0.95), axis=0)
        inside.append((low <= truth) & (truth <= high))
        found.append(squares.mean(0)[1])
        wanted.append(truth[1])
        nothing.append(low[0] <= 0)
        naive = ((change - change.mean(1, keepdims=True)) ** 2).mean(-1)
        # Noise alone would be taken for an interaction of this size.
        assert squares.mean(0)[0].mean() < 0.3 * naive[0].mean()
    assert np.mean(inside) > 0.85
    assert np.mean(found) == pytest.approx(np.mean(wanted), rel=0.1)
    assert np.mean(nothing) > 0.9


def test_errors_that_genes_share_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    change = np.tile(rng.standard_normal(GENES), (1, 2, 1))
    change[0, 0] += 4
    own = 0.2 * rng.standard_normal((2000, 1, 2, GENES))
    together = np.tile(0.2 * rng.standard_normal((2000, 1, 2, 1)), GENES)
    spread = [estimated(change, error).strength.std(0)[0, 0] for error in (own, together)]
    # δ = ±2 in all genes, error sd .2/√2: of the mean 2·2·.2/√2, by √G less where independent.
    assert spread[1] == pytest.approx(4 * 0.2 / np.sqrt(2), rel=0.05)
    assert spread[1] > 10 * spread[0]


def test_shares_of_genes_are_those_of_the_truth() -> None:
    """Half of the genes answer alike everywhere, the others in one of the groups alone."""
    rng = np.random.default_rng(1)
    truth = np.zeros((3, GROUPS, 300))
    truth[:, :, :150] = rng.standard_normal((3, 1, 150))
    truth[:, 0, 150:] = 2 * rng.standard_normal((3, 150))
    squares = estimated(
        truth + 0.2 * rng.standard_normal(truth.shape),
        0.2 * rng.standard_normal((DRAWS, *truth.shape)),
    )
    own, common = squares.own.sum(1), squares.common.sum(1)
    alone = slice(150, None)
    for values, exact, where in (
        (own, ((truth - truth.mean(1, keepdims=True)) ** 2).mean(1).sum(0), alone),
        (common, (truth.mean(1) ** 2).sum(0), slice(None)),
    ):
        low, high = np.quantile(values[:, where], (0.05, 0.95), axis=0)
        assert ((low <= exact[where]) & (exact[where] <= high)).mean() > 0.8
        assert values[:, where].mean() == pytest.approx(exact[where].mean(), rel=0.05)
    # Genes of the other half have none; what is left of their noise is little beside an effect.
    assert own[:, :150].mean() < 0.03 * own[:, alone].mean()


def test_what_was_not_measured_is_as_large_as_its_draws() -> None:
    rng = np.random.default_rng(2)
    drawn = rng.standard_normal((500, 1, 2, 50))
    seen = np.array([[True, False]])
    found = Squares.estimate(drawn.mean(0), drawn - drawn.mean(0), drawn, seen).strength
    assert found[:, 0, 1].mean() == pytest.approx(0.5, rel=0.05)
    assert found[:, 0, 0].mean() < 0.1


def test_one_group_has_no_interaction() -> None:
    rng = np.random.default_rng(1)
    squares = estimated(rng.standard_normal((2, 1, 50)), rng.standard_normal((20, 2, 1, 50)))
    np.testing.assert_allclose(squares.strength, 0, atol=1e-12)


def test_posterior_moments_are_those_of_the_mixture() -> None:
    rng = np.random.default_rng(2)
    scales, weights = np.array([0.1, 2.0]), np.array([0.7, 0.3])
    truth = scales[(rng.random(400_000) < 0.3).astype(int)] * rng.standard_normal(400_000)
    estimate = truth + 0.5 * rng.standard_normal(400_000)
    for at in (0.0, 1.0, 2.5):
        near = np.abs(estimate - at) < 0.05
        mean, square = posterior_moments(np.array([at]), np.array([0.5]), weights, scales=scales)
        assert mean[0] == pytest.approx(truth[near].mean(), abs=0.05)
        assert square[0] == pytest.approx((truth[near] ** 2).mean(), rel=0.07, abs=0.02)
    np.testing.assert_allclose(
        mixture_weights(estimate[:20_000], np.full(20_000, 0.5), scales=scales), weights, atol=0.02
    )


def test_errors_of_counts_are_never_less_than_the_bootstrap_knows() -> None:
    rng = np.random.default_rng(3)
    drawn = (5 + rng.standard_normal((4000, 1, 2, 2))).astype(np.float32)
    least = np.array([[[0.0, 4.0], [0.0, 4.0]]])
    errors = _errors_of_counts(drawn, least, np.array([[3.0, 1000.0]]), rng)
    np.testing.assert_allclose(errors.mean(0), 0, atol=0.1)
    # Three units: the bootstrap's variance is half of the mean's.
    np.testing.assert_allclose(errors.var(0)[0], [[2, 4], [1, 4]], rtol=0.1)
