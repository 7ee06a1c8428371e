import numpy as np
import pytest
from scipy import stats

from pyro_fcr.errors import DesignError
from pyro_fcr.evaluate import (
    coverage,
    inclusion_calibration,
    pit_by_gene,
    randomised_pit,
    sbc_ranks,
    sbc_uniformity,
)


def conjugate(n, s, spread=1.0, seed=0):
    """A normal mean: truths from the prior, one observation each, draws from the posterior."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=n)
    y = truth + rng.normal(size=n)
    draws = y / 2 + spread * np.sqrt(0.5) * rng.normal(size=(s, n))
    return draws, truth


def test_ranks_by_hand():
    assert sbc_ranks([[1.0, 5.0], [2.0, 6.0], [3.0, 7.0]], [2.5, 9.0]).tolist() == [2, 3]
    ties = np.array([sbc_ranks([[1.0], [1.0]], [1.0], seed=s)[0] for s in range(300)])
    # Two draws tie with the truth: ranks 0, 1, 2 alike.
    assert np.bincount(ties) == pytest.approx([100, 100, 100], abs=35)


def test_exact_posteriors_have_uniform_ranks_and_narrow_ones_have_not():
    exact, truth = conjugate(4000, 99)
    assert sbc_uniformity(sbc_ranks(exact, truth), 99) > 0.01
    narrow, truth = conjugate(4000, 99, spread=0.7)
    assert sbc_uniformity(sbc_ranks(narrow, truth), 99) < 1e-6
    p = [sbc_uniformity(sbc_ranks(*conjugate(200, 19, seed=s)), 19) for s in range(200)]
    assert stats.kstest(p, "uniform").pvalue > 0.005


@pytest.mark.parametrize("s", [39, 999])
def test_coverage_is_nominal_for_exact_draws_however_few(s):
    table = coverage(*conjugate(6000, s))
    assert table["coverage"].to_numpy() == pytest.approx([0.5, 0.9, 0.95], abs=0.02)
    # Central intervals of N(., 1/2): 2 z sqrt(1/2).
    if s == 999:
        z = stats.norm.ppf([0.75, 0.95, 0.975])
        assert table["width"].to_numpy() == pytest.approx(2 * z * np.sqrt(0.5), rel=0.02)


def test_narrow_posteriors_cover_as_theory_says():
    table = coverage(*conjugate(6000, 999, spread=0.5))
    # An interval of half the width covers 2 Phi(z / 2) - 1.
    expected = 2 * stats.norm.cdf(stats.norm.ppf([0.75, 0.95, 0.975]) / 2) - 1
    assert table["coverage"].to_numpy() == pytest.approx(expected, abs=0.02)
    assert (table["high"] > table["coverage"]).all()
    assert (table["low"] < table["coverage"]).all()


def test_an_interval_needs_draws():
    with pytest.raises(DesignError, match="at least 39 for 0.95"):
        coverage(np.zeros((20, 5)), np.zeros(5))
    with pytest.raises(DesignError, match="put the draws first"):
        coverage(np.zeros((5, 20)), np.zeros(5))


def test_nineteen_draws_are_enough_for_nine_tenths():
    # Their extremes are the 5 % and 95 % points: 1/20 and 19/20 of a uniform law.
    draws = np.repeat(np.arange(1.0, 20.0)[:, None], 3, axis=1)
    table = coverage(draws, np.array([1.0, 10.0, 19.5]), levels=[0.9])
    assert table.loc[0.9, ["coverage", "width"]].tolist() == pytest.approx([2 / 3, 18])
    with pytest.raises(DesignError, match="at least 19 for 0.9"):
        coverage(draws[:18], np.zeros(3), levels=[0.9])


def test_pit_is_uniform_for_counts_and_any_number_of_draws():
    rng = np.random.default_rng(0)
    for s in (1, 20):
        u = randomised_pit(rng.poisson(0.7, (s, 4000)), rng.poisson(0.7, 4000), seed=1)
        assert stats.kstest(u, "uniform").pvalue > 0.005
    # Of draws 0, 1, 1, 3 and the observation 1: u lies between 1/5 and 4/5.
    u = [randomised_pit([[0], [1], [1], [3]], [1], seed=i)[0] for i in range(200)]
    assert 0.2 <= min(u) < 0.25
    assert 0.75 < max(u) <= 0.8


def test_pit_by_gene_finds_the_genes_with_a_wrong_dispersion():
    rng = np.random.default_rng(1)
    n, good, bad = 1500, 80, 20
    observed = rng.negative_binomial(2, 0.2, (n, good + bad))
    draws = np.concatenate(
        [rng.negative_binomial(2, 0.2, (50, n, good)), rng.poisson(8, (50, n, bad))], axis=2
    )
    table = pit_by_gene(randomised_pit(draws, observed))
    assert not table["passes"][good:].any()
    assert table["passes"][:good].mean() > 0.9
    u = randomised_pit(draws, observed)
    for g in (0, 90):
        reference = stats.kstest(u[:, g], "uniform")
        assert table["statistic"][g] == pytest.approx(reference.statistic)
        assert table["p"][g] == pytest.approx(reference.pvalue, rel=1e-6, abs=1e-300)


def test_inclusion_by_hand():
    found = inclusion_calibration([0.9, 0.8, 0.6, 0.2, 0.1], [1, 1, 0, 1, 0])
    assert found["fdr"] == pytest.approx(1 / 3)
    assert found["expected_fdr"] == pytest.approx((0.1 + 0.2 + 0.4) / 3)
    assert found["power"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(2 * 2 / (3 + 3))
    # Every entry has a bin of its own: mean |p - y|.
    assert found["calibration_error"] == pytest.approx((0.1 + 0.2 + 0.6 + 0.8 + 0.1) / 5)
    rng = np.random.default_rng(2)
    p = rng.random(20000)
    honest = inclusion_calibration(p, rng.random(20000) < p)
    assert honest["calibration_error"] < 0.02
    assert honest["fdr"] == pytest.approx(honest["expected_fdr"], abs=0.01)
    assert inclusion_calibration([0.1], [True])["fdr"] == 0
