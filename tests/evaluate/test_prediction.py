import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import pearsonr, ttest_ind
from sklearn.decomposition import PCA
from sklearn.metrics import r2_score

from pyro_fcr.errors import CountsError, DesignError
from pyro_fcr.evaluate import (
    Additive,
    Training,
    TreatedMean,
    centroid_accuracy,
    energy_distance,
    interaction_r2,
    log_normalised,
    pearson_change,
    principal_components,
    profile,
    profiles,
    r2,
    top_de_genes,
    welch_t,
)


def as_cells(profiles):
    t, x = (profiles.index.get_level_values(i) for i in (0, 1))
    return Training(profiles.to_numpy(), t, x, control="c", log_normalise=False)


def frame(rows: dict) -> pd.DataFrame:
    index = pd.MultiIndex.from_tuples(rows, names=["treatment", "covariate"])
    return pd.DataFrame(np.array(list(rows.values()), float), index=index)


def test_profile_by_hand():
    # 2 and 6 of 8 counts: log1p of 2,500 and 7,500.
    counts = np.array([[2, 0], [0, 6]])
    assert profile(counts) == pytest.approx(np.log1p([2500, 7500]))
    assert profile(sp.csr_matrix(counts)) == pytest.approx(np.log1p([2500, 7500]))


def test_log_normalised_leaves_an_empty_cell_at_zero_and_refuses_negatives():
    assert (log_normalised(np.zeros((1, 3))) == 0).all()
    with pytest.raises(CountsError, match="cannot be normalised"):
        log_normalised(np.array([[-1.0, 2.0]]))


def test_profiles_per_condition():
    rng = np.random.default_rng(0)
    counts = rng.poisson(3, (30, 4))
    t, x = rng.choice(["a", "b"], 30), rng.choice(["u", "v"], 30)
    table = profiles(sp.csr_matrix(counts), t, x, genes=list("wxyz"))
    for key, row in table.iterrows():
        rows = (t == key[0]) & (x == key[1])
        assert row.to_numpy() == pytest.approx(profile(counts[rows]))
    assert list(table.columns) == list("wxyz")


def test_r2_and_pearson_agree_with_libraries():
    rng = np.random.default_rng(1)
    p, o, c = rng.normal(size=(3, 50))
    assert r2(p, o) == pytest.approx(r2_score(o, p))
    assert r2(p, o, genes=[1, 5, 9]) == pytest.approx(r2_score(o[[1, 5, 9]], p[[1, 5, 9]]))
    assert pearson_change(p, o, c) == pytest.approx(pearsonr(p - c, o - c).statistic)
    assert r2(o, o) == pearson_change(o, o, c) == pytest.approx(1)


def test_predicting_no_change_earns_no_correlation():
    o, c = np.array([1.0, 2.0, 4.0]), np.array([1.0, 1.0, 1.0])
    assert np.isnan(pearson_change(c, o, c))
    assert np.isnan(r2(o, c))


def test_welch_agrees_with_scipy_and_finds_the_planted_genes():
    rng = np.random.default_rng(2)
    control = rng.poisson(20, (200, 30))
    rate = np.full(30, 20.0)
    rate[[3, 17]] = 40, 8
    treated = rng.poisson(rate, (150, 30))
    expected = ttest_ind(log_normalised(treated), log_normalised(control), equal_var=False)
    assert welch_t(treated, control) == pytest.approx(expected.statistic)
    assert set(top_de_genes(treated, control, k=2)) == {3, 17}


def test_principal_components_agree_with_sklearn():
    rng = np.random.default_rng(3)
    counts = rng.poisson(5, (60, 8))
    pcs = principal_components(counts, 3)
    expected = PCA(3).fit_transform(log_normalised(counts))
    assert np.abs(pcs.transform(counts)) == pytest.approx(np.abs(expected), abs=1e-8)


def test_energy_distance_by_hand():
    # |A-B| = (1 + 3 + 1 + 1) / 4 between {0, 2} and {1, 3}; each cloud's own pair is 2 apart.
    assert energy_distance([[0.0], [2.0]], [[1.0], [3.0]]) == pytest.approx(2 * 1.5 - 2 - 2)


def test_energy_distance_is_zero_on_average_and_grows_with_a_shift():
    rng = np.random.default_rng(4)
    null = [energy_distance(*rng.normal(size=(2, 60, 3))) for _ in range(100)]
    assert np.mean(null) == pytest.approx(0, abs=3 * np.std(null) / 10)
    shifted = energy_distance(rng.normal(size=(60, 3)), 1 + rng.normal(size=(60, 3)))
    assert shifted > max(null)


@pytest.fixture
def design():
    """Profiles with main effects and an interaction; (a, 2) and (b, 0) are held out."""
    rng = np.random.default_rng(5)
    genes = 200
    base, effect = rng.normal(size=(3, genes)), {"a": rng.normal(size=genes)}
    effect["b"] = rng.normal(size=genes)
    truth = {("c", str(x)): base[x] for x in range(3)}
    for t in "ab":
        for x in range(3):
            truth[t, str(x)] = base[x] + effect[t] + rng.normal(size=genes)
    held = [("a", "2"), ("b", "0")]
    return frame({k: v for k, v in truth.items() if k not in held}), frame(
        {k: truth[k] for k in held}
    )


def noisy(table, sd, seed):
    return table + sd * np.random.default_rng(seed).normal(size=table.shape)


def test_interaction_r2_of_additive_is_exactly_zero(design):
    train, held = design
    additive = Additive().fit(as_cells(train))
    predicted = frame({key: additive.predict(*key) for key in held.index})
    halves = noisy(held, 0.5, 0), noisy(held, 0.5, 1)
    score = interaction_r2(predicted, halves, train, control="c")
    assert score.r2 == pytest.approx(0, abs=1e-12)
    assert score.r2_raw == pytest.approx(0, abs=1e-12)
    assert score.n_conditions == 2


def test_interaction_r2_corrects_for_noise(design):
    train, held = design
    halves = noisy(held, 1.0, 0), noisy(held, 1.0, 1)
    score = interaction_r2(held, halves, train, control="c")
    # The truth explains all but the noise: raw falls short, the corrected score does not.
    assert score.r2 == pytest.approx(1, abs=0.1)
    assert score.r2_raw < 0.9
    # Interaction variance 1 + 1/2 per gene against noise variance 1: r = 0.6, 2r / (1 + r).
    assert score.reliability == pytest.approx(0.75, abs=0.06)
    treated = TreatedMean().fit(as_cells(train))
    worse = frame({key: treated.predict(*key) for key in held.index})
    assert interaction_r2(worse, halves, train, control="c").r2 < 0


def test_interaction_r2_without_interaction_is_not_a_number(design):
    train, held = design
    additive = Additive().fit(as_cells(train))
    flat = frame({key: additive.predict(*key) for key in held.index})
    score = interaction_r2(held, (flat + 1.0, flat - 1.0), train, control="c")
    assert np.isnan(score.r2)
    assert score.reliability < 0 or np.isnan(score.reliability)


def test_interaction_r2_says_what_is_missing(design):
    train, held = design
    with pytest.raises(DesignError, match="another covariate"):
        interaction_r2(held, (held, held), train.drop(index="a", level=0), control="c")
    with pytest.raises(DesignError, match="in both halves"):
        interaction_r2(held, (held.iloc[:1], held), train, control="c")


def test_centroid_accuracy_by_hand():
    observed = frame({("a", "u"): [0, 0], ("b", "u"): [4, 0], ("d", "u"): [0, 9]})
    # 3.0 from a, 1.0 from b: a is beaten by b and beats d.
    predicted = frame({("a", "u"): [3, 0], ("b", "u"): [4, 1]})
    table = centroid_accuracy(predicted, observed)
    assert table["rank"].tolist() == [2, 1]
    assert table["accuracy"].tolist() == [0.5, 1.0]
    assert table["n"].tolist() == [3, 3]


def test_centroid_accuracy_gives_ties_no_credit():
    observed = frame({("a", "u"): [-1, 0], ("b", "u"): [1, 0]})
    assert centroid_accuracy(frame({("a", "u"): [0, 0]}), observed)["accuracy"].item() == 0
    with pytest.raises(DesignError, match="nothing to be ranked"):
        centroid_accuracy(frame({("a", "v"): [0, 0]}), observed)


def test_shape_errors():
    with pytest.raises(DesignError, match="do not match"):
        r2([1.0, 2.0], [1.0])
    with pytest.raises(DesignError, match="2 cells each"):
        energy_distance([[1.0]], [[1.0], [2.0]])
    with pytest.raises(DesignError, match="Welch"):
        welch_t(np.ones((1, 2)), np.ones((3, 2)))
