import numpy as np
import pytest

from pyro_fcr.errors import DesignError
from pyro_fcr.evaluate import DCI, dci, mig, sap


def test_dci_of_importances_by_hand():
    perfect = DCI.of(np.eye(3))
    assert (perfect.disentanglement, perfect.completeness) == (1, 1)
    # Components that tell all factors alike, and factors told by all alike.
    even = DCI.of(np.ones((3, 3)))
    assert even.disentanglement == pytest.approx(0)
    assert even.completeness == pytest.approx(0)
    # Two components for one factor: each pure, the factor split in halves between them.
    split = DCI.of([[1, 0], [1, 0], [0, 1]])
    assert split.disentanglement == pytest.approx(1)
    # Factor 1 has entropy log 2 of log 3 and two thirds of the weight.
    assert split.completeness == pytest.approx(2 / 3 * (1 - np.log(2) / np.log(3)) + 1 / 3)
    # One component tells both factors at 3 to 1: entropy .5623 of log 2 = .6931.
    mixed = DCI.of([[0.75, 0.25]])
    assert mixed.disentanglement == pytest.approx(1 - 0.5623351 / 0.6931472, abs=1e-6)


@pytest.fixture
def factors():
    return np.random.default_rng(0).uniform(-1, 1, (2000, 3))


def rotate(v):
    # An orthogonal map whose two largest entries of every row and column are alike.
    return v @ np.array([[-1, 2, 2], [2, -1, 2], [2, 2, -1]]) / 3


def test_aligned_latents_score_high_and_rotated_ones_low(factors):
    aligned = factors[:, [2, 0, 1]] ** 3
    found, turned = dci(aligned, factors), dci(rotate(factors), factors)
    assert found.disentanglement > 0.95
    assert found.completeness > 0.95
    assert found.informativeness > 0.95
    assert turned.disentanglement < 0.6
    assert mig(aligned, factors) > 0.5 > 0.1 > mig(rotate(factors), factors)
    assert sap(aligned, factors) > 0.7 > 0.1 > sap(rotate(factors), factors)


def test_noise_scores_nothing(factors):
    z = np.random.default_rng(2).normal(size=(2000, 3))
    assert dci(z, factors).informativeness < 0.05
    assert mig(z, factors) == pytest.approx(0, abs=0.02)
    assert sap(z, factors) == pytest.approx(0, abs=0.02)


def test_mig_and_sap_by_hand_on_discrete_factors():
    v = np.tile([0, 1, 2, 3], 500)[:, None]
    # One component is the factor, another its parity: log 4 and log 2 of log 4.
    z = np.concatenate([v, v % 2], axis=1)
    assert mig(z, v) == pytest.approx(0.5)
    assert mig(v, v) == pytest.approx(1)
    assert mig(np.concatenate([v, v], axis=1), v) == pytest.approx(0)
    # The component tells all four levels, its parity two of them: accuracies 1 and 1/2.
    assert sap(z, v) == pytest.approx(0.5)


def test_sap_of_a_linear_factor_by_hand():
    rng = np.random.default_rng(3)
    v, e = rng.normal(size=(2, 4000))
    # Squared correlations 1 and .64 with the factor.
    z = np.stack([v, 0.8 * v + 0.6 * e], axis=1)
    assert sap(z, v) == pytest.approx(1 - 0.64, abs=0.03)


def test_cells_must_match():
    with pytest.raises(DesignError, match="same ten cells"):
        dci(np.zeros((20, 2)), np.zeros((19, 2)))
