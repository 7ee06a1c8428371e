import numpy as np
import pytest
from scipy import stats

from pyro_fcr.errors import DesignError
from pyro_fcr.evaluate import (
    de_genes,
    de_pr_auc,
    energy_distance,
    half_profiles,
    halve,
    interpolated_duplicate,
    log_normalised,
    profile,
    two_sample_test,
)


def test_two_samples_of_one_law_cannot_be_told_apart():
    rng = np.random.default_rng(0)
    p = [two_sample_test(*rng.normal(size=(2, 40, 3)), seed=s).p_value for s in range(20)]
    # Level 0.05, and below it as the binomial is discrete: of 20 tests at most 4 by chance.
    assert np.sum(np.array(p) <= 0.05) <= 4
    result = two_sample_test(*rng.normal(size=(2, 1000, 3)))
    assert result.auc == pytest.approx(0.5, abs=0.06)


def test_a_spread_that_means_cannot_see_is_seen():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(1000, 2)), 2 * rng.normal(size=(1500, 2))
    result = two_sample_test(a, b)
    assert result.n_cells == 1000
    assert result.p_value < 1e-6
    # Best possible: the chi-square of two scales, P(|b| > |a|) = 4 / (1 + 4).
    assert 0.7 < result.auc < 0.83
    with pytest.raises(DesignError, match="at least 10"):
        two_sample_test(a[:5], b)


def test_de_genes_agree_with_scipy():
    rng = np.random.default_rng(2)
    rate = np.full(40, 20.0)
    rate[:6] = 35
    treated, control = rng.poisson(rate, (80, 40)), rng.poisson(20, (60, 40))
    treated[:, 39] = control[:, 39] = 0
    table = de_genes(treated, control)
    expected = stats.ttest_ind(
        log_normalised(treated)[:, :39], log_normalised(control)[:, :39], equal_var=False
    )
    q = stats.false_discovery_control(np.append(expected.pvalue, 1.0))
    assert table["t"][:39].to_numpy() == pytest.approx(expected.statistic)
    assert table["q"].to_numpy() == pytest.approx(q)
    assert table["called"][:6].all()
    assert not table["called"][39]
    assert not de_genes(treated, control, min_change=9)["called"].any()


def test_de_genes_hold_the_false_discovery_rate():
    rng = np.random.default_rng(3)
    false = []
    for _ in range(40):
        treated, control = rng.normal(size=(2, 40, 200))
        treated[:, :30] += 1.2
        called = de_genes(treated, control, log_normalise=False)["called"].to_numpy()
        false.append(called[30:].sum() / max(1, called.sum()))
    assert np.mean(false) < 0.065


def test_pr_auc_by_hand():
    called = [True, False, True, False]
    # Ranked 4, 3, 2, 1: precision 1 at the first, 2/3 at the second called gene.
    assert de_pr_auc([-4, 3, 2, 1], called) == pytest.approx((1 + 2 / 3) / 2)
    assert de_pr_auc([9, 0, -8, 0], called) == 1
    assert de_pr_auc([0, 0, 0, 0], called) == pytest.approx(0.5)
    assert np.isnan(de_pr_auc([1, 2], [False, False]))


def test_energy_distance_of_a_subsample_agrees_with_all_and_with_hyppo():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(3000, 3)), 0.5 + rng.normal(size=(3000, 3))
    full = energy_distance(a, b)
    assert energy_distance(a, b, max_cells=1500) == pytest.approx(full, abs=0.05)
    hyppo = pytest.importorskip("hyppo.ksample")
    # Their statistic is of a distance correlation; the order of effects must agree.
    less = 0.2 + rng.normal(size=(300, 3))
    theirs = [hyppo.Energy().statistic(a[:300], c) for c in (b[:300], less)]
    ours = [energy_distance(a[:300], c) for c in (b[:300], less)]
    assert (theirs[0] > theirs[1]) == (ours[0] > ours[1])


def test_halves_are_even_and_disjoint():
    labels = np.array(["a"] * 7 + ["b"] * 4)
    first = halve(labels, seed=1)
    assert first[:7].sum() == 3
    assert first[7:].sum() == 2
    assert halve(10).sum() == 5


def test_half_profiles_are_of_the_two_halves():
    rng = np.random.default_rng(5)
    counts = rng.poisson(4, (24, 3))
    t, x = np.repeat(["c", "a"], 12), np.tile(["u", "v"], 12)
    one, two = half_profiles(counts, t, x, list("ghi"), seed=2)
    assert one.index.equals(two.index)
    first = halve(np.array([f"{a}\x1f{b}" for a, b in zip(t, x, strict=True)]), seed=2)
    mine = (t == "a") & (x == "v")
    assert one.loc[[("a", "v")]].to_numpy()[0] == pytest.approx(profile(counts[mine & first]))
    assert two.loc[[("a", "v")]].to_numpy()[0] == pytest.approx(profile(counts[mine & ~first]))


def test_interpolated_duplicate_beats_duplicate_and_mean():
    import pandas as pd

    rng = np.random.default_rng(6)
    index = pd.MultiIndex.from_product([list("abcdefgh"), ["u", "v", "w"]])
    truth = rng.normal(size=(24, 300))
    # Half of the genes are all noise.
    truth[:, 150:] = 0
    one, two = (
        pd.DataFrame(truth + 1.0 * rng.normal(size=truth.shape), index=index) for _ in range(2)
    )
    guess = interpolated_duplicate(one, two).to_numpy()

    def error(y):
        return ((y - truth) ** 2).mean()

    assert error(guess) < 0.6 * error(one.to_numpy())
    assert error(guess) < 0.9 * error(one.to_numpy().mean(0))
    # A condition's own other half is not read.
    changed = two.copy()
    changed.iloc[3] = 1e6
    assert interpolated_duplicate(one, changed).iloc[3].to_numpy() == pytest.approx(guess[3])
    with pytest.raises(DesignError, match="three conditions"):
        interpolated_duplicate(one[:2], two[:2])
