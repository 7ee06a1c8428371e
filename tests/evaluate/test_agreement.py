import numpy as np
import pytest

from pyro_fcr.errors import DesignError
from pyro_fcr.evaluate import restart_agreement


@pytest.fixture
def condition():
    return np.repeat([str(i) for i in range(8)], 60)


def test_agreement_up_to_what_identifiability_leaves_free(condition):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(480, 3))
    q = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    runs = [{"z": z}, {"z": -2 * z[:, [1, 2, 0]] + 5}, {"z": z @ q}]
    table = restart_agreement(runs, condition).set_index(["first", "second"])
    assert table.loc[(0, 1), "mcc"] == pytest.approx(1)
    assert table.loc[(0, 1), "r2"] > 0.97
    # A rotation is the same block, with other components.
    assert table.loc[(0, 2), "r2"] > 0.97
    assert table.loc[(0, 2), "mcc"] < 0.95


def test_shared_labels_are_no_agreement(condition):
    rng = np.random.default_rng(1)
    means = 5 * rng.normal(size=(8, 2))[condition.astype(int)]
    runs = [{"z": means + rng.normal(size=(480, 2))} for _ in range(3)]
    table = restart_agreement(runs, condition)
    assert len(table) == 3
    assert table["mcc"].max() < 0.2
    assert table["r2"].max() < 0.1


def test_a_noisy_copy_has_the_correlation_it_was_given(condition):
    rng = np.random.default_rng(2)
    z, e = rng.normal(size=(2, 480, 2))
    found = restart_agreement([{"z": z}, {"z": 0.8 * z + 0.6 * e}], condition)
    assert found["mcc"].item() == pytest.approx(0.8, abs=0.05)
    assert found["r2"].item() == pytest.approx(0.64, abs=0.08)


def test_runs_must_share_blocks(condition):
    z = np.zeros((480, 1))
    for runs in ([{"z": z}], [{"z": z}, {"w": z}]):
        with pytest.raises(DesignError, match="the same blocks"):
            restart_agreement(runs, condition)
