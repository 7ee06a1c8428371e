import numpy as np
import pytest
from scipy.stats import kstest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from pyro_fcr.errors import DesignError
from pyro_fcr.evaluate import auc_within, balanced_accuracy_within, hsic_test, separability
from pyro_fcr.evaluate.probes import _score


def planted(seed, leak, *, n=60, n_t=4, n_x=3):
    """Latents that move with the stratum, and with the label by a share of the variance."""
    rng = np.random.default_rng(seed)
    t = np.tile(np.repeat(np.arange(n_t), n), n_x)
    x = np.repeat(np.arange(n_x), n_t * n)
    effect = rng.normal(size=(n_t, 3))
    effect = (effect - effect.mean(0)) / effect.std(0)
    noise = rng.normal(size=(len(t), 3))
    return np.sqrt(1 - leak) * noise + np.sqrt(leak) * effect[t] + 3 * x[:, None], t, x


def test_scores_agree_with_sklearn():
    rng = np.random.default_rng(0)
    codes = np.concatenate([np.arange(4), rng.integers(4, size=80)])
    p = rng.dirichlet(np.ones(4), 84)
    assert _score(codes, p, "auc") == pytest.approx(
        roc_auc_score(codes, p, multi_class="ovr", average="macro")
    )
    assert _score(codes, p, "balanced_accuracy") == pytest.approx(
        balanced_accuracy_score(codes, p.argmax(1))
    )
    p2 = rng.dirichlet(np.ones(2), 84)
    assert _score(codes % 2, p2, "auc") == pytest.approx(roc_auc_score(codes % 2, p2[:, 1]))


def test_separability_of_what_is_separable_and_of_what_is_not():
    z, t, x = planted(0, 0.5)
    result = separability(z, t, x, n_splits=3)
    assert result.excess > 0.2
    assert result.interval[0] > 0.1
    assert result.chance == pytest.approx(0.25)
    assert len(result.per_stratum) == 6
    z, t, x = planted(1, 0.0)
    null = separability(z, t, x, n_splits=3)
    assert abs(null.excess) < 0.06
    assert null.interval[0] < 0 < null.interval[1] + 0.05


def test_strata_hide_what_they_explain():
    # Labels and latents both follow the stratum, and are independent within it.
    rng = np.random.default_rng(2)
    x = np.repeat([0, 1], 300)
    t = (rng.random(600) < np.where(x == 1, 0.8, 0.2)).astype(int)
    z = rng.normal(size=(600, 2)) + 4 * x[:, None]
    assert auc_within(z, t, n_splits=3) > 0.2
    assert abs(auc_within(z, t, x, n_splits=3)) < 0.07


def test_boosting_finds_what_logistic_regression_cannot():
    rng = np.random.default_rng(3)
    z = rng.normal(size=(600, 2))
    t = (z[:, 0] * z[:, 1] > 0).astype(int)
    result = separability(z, t, n_splits=3)
    assert result.classifier == "boosting"
    assert result.excess > 0.35
    logistic = result.per_stratum.set_index("classifier").loc["logistic", "score"]
    assert logistic < 0.6


def test_labels_too_rare_to_split_are_left_out():
    z, t, x = planted(4, 0.3)
    t = t.astype(str)
    t[0] = "rare"
    assert "rare" not in t[1:]
    assert separability(z, t, x, n_splits=3).chance == pytest.approx(0.25)
    assert balanced_accuracy_within(z, t, x, n_splits=3) > 0.1


def test_hsic_statistic_by_its_definition():
    rng = np.random.default_rng(5)
    z, t = rng.normal(size=(40, 2)), rng.integers(3, size=40)
    result = hsic_test(z, t, n_permutations=9)
    a = z / z.std(0)
    distance = ((a[:, None] - a[None]) ** 2).sum(-1)
    k = np.exp(-distance / np.median(distance[np.triu_indices(40, 1)]))
    labels = (t[:, None] == t[None]).astype(float)
    h = np.eye(40) - 1 / 40
    assert result.statistic == pytest.approx(np.trace(k @ h @ labels @ h) / 40**2)


def test_normalised_hsic_is_one_for_a_one_to_one_code():
    t = np.repeat([0, 1], 50)
    result = hsic_test(t[:, None].astype(float), t, n_permutations=99)
    assert result.normalised == pytest.approx(1, abs=0.03)
    assert result.p_value == pytest.approx(0.01)


def test_hsic_level_on_permuted_data():
    p = []
    for seed in range(200):
        z, t, x = planted(seed, 0.0, n=15)
        p.append(hsic_test(z, t, x, n_permutations=99, seed=seed).p_value)
    # Binomial(200, 0.05): 2 to 19 holds 99.8 %.
    assert 2 <= np.sum(np.asarray(p) <= 0.05) <= 19
    assert kstest(p, "uniform").pvalue > 0.005


def test_hsic_power_at_five_percent_leakage():
    p = [hsic_test(*planted(s, 0.05), n_permutations=199, seed=s).p_value for s in range(20)]
    assert np.mean(np.asarray(p) <= 0.05) >= 0.95


def test_hsic_within_strata_ignores_what_the_stratum_explains():
    rng = np.random.default_rng(6)
    x = np.repeat([0, 1], 100)
    t = (rng.random(200) < np.where(x == 1, 0.8, 0.2)).astype(int)
    z = rng.normal(size=(200, 1)) + 3 * x[:, None]
    assert hsic_test(z, t, n_permutations=99).p_value == pytest.approx(0.01)
    assert hsic_test(z, t, x, n_permutations=99).p_value > 0.05


def test_deterministic_by_seed():
    z, t, x = planted(7, 0.1)
    assert hsic_test(z, t, x, seed=1) == hsic_test(z, t, x, seed=1)
    a, b = (separability(z, t, x, n_splits=2, seed=1) for _ in range(2))
    assert str(a) == str(b)


def test_errors():
    with pytest.raises(DesignError, match="nothing to tell apart"):
        separability(np.ones((6, 1)), ["a"] * 6)
    with pytest.raises(DesignError, match="nothing to test"):
        hsic_test(np.ones((6, 1)), ["a"] * 6)
    with pytest.raises(DesignError, match="one label"):
        hsic_test(np.ones((6, 1)), ["a"] * 5)
