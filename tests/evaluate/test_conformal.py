"""Intervals around the additive rule, by hand and by their coverage."""

import numpy as np
import pytest

from pyro_fcr.errors import DesignError
from pyro_fcr.evaluate import conformal_additive


def test_five_conditions_by_hand():
    # Left out in turn, 0, 1, 2, 3, 4 are predicted as 2.5, 2.25, 2, 1.75, 1.5: errors 2.5, 1.25,
    # 0, 1.25, 2.5. At level 2/3 the rank is floor(6/3) = 2: the second smallest of 0, 1, 2, .5,
    # -1 and the second largest of 5, 3.5, 2, 3, 4.
    changes = np.array([0.0, 1, 2, 3, 4, np.nan]).reshape(1, 6, 1)
    low, high = conformal_additive(changes, level=2 / 3)
    assert low[0, 5, 0] == pytest.approx(0)
    assert high[0, 5, 0] == pytest.approx(4)
    assert np.isnan(low[0, :5]).all()
    assert np.isnan(high[0, :5]).all()


def test_other_treatments_lend_their_errors_not_their_changes():
    changes = np.full((2, 3, 1), np.nan)
    changes[0, :, 0] = 10, 11, 12
    changes[1, 0, 0] = -5
    # Three errors, 1.5, 0 and 1.5; at level 3/4 the rank is 1: all of them count.
    low, high = conformal_additive(changes, level=0.75)
    assert low[1, 1:, 0] == pytest.approx([-6.5, -6.5])
    assert high[1, 1:, 0] == pytest.approx([-3.5, -3.5])


def test_too_few_conditions_tell_nothing_of_a_gene_alone():
    changes = np.random.default_rng(0).normal(size=(1, 6, 40))
    changes[0, 0] = np.nan
    low, high = conformal_additive(changes)
    assert np.isinf(low[0, 0]).all()
    assert np.isinf(high[0, 0]).all()
    low, high = conformal_additive(changes, pooled=True)
    assert np.isfinite([low[0, 0], high[0, 0]]).all()


@pytest.mark.parametrize("pooled", [False, True])
def test_coverage_is_nominal_where_conditions_are_exchangeable(pooled):
    rng = np.random.default_rng(1)
    inside = []
    for _ in range(60):
        noise = rng.normal(size=(6, 6, 30)) * np.exp(rng.normal(size=30))
        truth = rng.normal(size=(6, 1, 30)) + noise
        missing = np.zeros(36, bool)
        missing[rng.choice(36, 7, replace=False)] = True
        missing = missing.reshape(6, 6)
        changes = np.where(missing[..., None], np.nan, truth)
        low, high = conformal_additive(changes, pooled=pooled)
        inside.append(((low <= truth) & (truth <= high))[missing].mean())
    # 420 conditions; the tolerance is three standard errors.
    assert np.mean(inside) == pytest.approx(0.9, abs=0.03)


def test_errors_need_a_treatment_in_two_groups():
    changes = np.full((2, 2, 3), np.nan)
    changes[0, 0] = changes[1, 1] = 0.0
    with pytest.raises(DesignError, match="no errors to learn"):
        conformal_additive(changes)
