"""Targets by hand-worked numbers."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_fcr.errors import DesignError
from pyro_fcr.evaluate import choose_targets, match_latents, score_targets


def test_matching_is_by_absolute_correlation() -> None:
    z = np.random.default_rng(0).normal(size=(200, 3))
    found = np.column_stack([-z[:, 1], np.zeros(200), 3 * z[:, 0] + 7, z[:, 2] + 0.1 * z[:, 0]])
    order, correlation = match_latents(found, z)
    assert order.tolist() == [2, 0, 3]
    assert correlation[:2] == pytest.approx([1.0, 1.0])
    assert 0.98 < correlation[2] < 1.0


def test_one_latent_is_matched_once() -> None:
    z = np.random.default_rng(1).normal(size=(300, 2))
    found = np.column_stack([z[:, 0] + z[:, 1], np.ones(300)])
    order, correlation = match_latents(found, z)
    assert sorted(order.tolist()) == [0, 1]
    assert min(correlation) == 0.0


def test_chosen_at_the_level() -> None:
    # Errors 0, .1, .2, .3: means 0, .05, .1, .15.
    probability = np.array([[1.0, 0.7], [0.9, 0.8]])
    assert choose_targets(probability, level=0.1).tolist() == [[True, False], [True, True]]
    assert choose_targets(probability, level=0.2).all()
    assert not choose_targets(np.array([0.5, 0.4]), level=0.1).any()


def test_scores_by_hand() -> None:
    probability = np.array([[0.99, 0.95], [0.9, 0.2], [0.6, 0.1]])
    truth = np.array([[True, False], [True, False], [True, True]])
    found = score_targets(probability, truth, level=0.06)
    # More probable than not: 4 entries, 3 of them true, of 4 true ones.
    assert found["f1"] == pytest.approx(2 * 3 / (4 + 4))
    # Chosen: errors .01, .05, .1 have mean .053; with .4 it is .14.
    assert (found["n_chosen"], found["fdr"]) == (3, pytest.approx(1 / 3))
    assert found["power"] == pytest.approx(2 / 4)
    assert found["f1_chosen"] == pytest.approx(2 * 2 / (3 + 4))
    # Precision at the ranks of the true ones, 1, 3, 4 and 6.
    assert found["auprc"] == pytest.approx((1 / 1 + 2 / 3 + 3 / 4 + 4 / 6) / 4)


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(DesignError, match="cannot be matched"):
        match_latents(np.zeros((3, 1)), np.zeros((3, 2)))
    with pytest.raises(DesignError, match="0 true"):
        score_targets(np.ones((2, 2)), np.zeros((2, 2)))
