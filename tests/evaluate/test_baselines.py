import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge as SklearnRidge

from pyro_fcr.errors import CategoryError, DesignError, NotFittedError
from pyro_fcr.evaluate import (
    BASELINES,
    Additive,
    ControlMean,
    NearestCondition,
    Ridge,
    TreatedMean,
)


@pytest.fixture
def train():
    rows = {
        ("control", "u"): [1.0, 0.0],
        ("control", "v"): [2.0, 0.0],
        ("control", "w"): [9.0, 0.0],
        ("a", "u"): [3.0, 1.0],
        ("a", "w"): [10.0, 5.0],
        ("b", "v"): [0.0, 7.0],
    }
    index = pd.MultiIndex.from_tuples(rows, names=["treatment", "covariate"])
    return pd.DataFrame(list(rows.values()), index=index, columns=["g1", "g2"])


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        (ControlMean(), [2.0, 0.0]),
        (TreatedMean(), [6.5, 3.0]),
        # Changes of a: (2, 1) in u and (1, 5) in w; mean (1.5, 3) on the control of v.
        (Additive(), [3.5, 3.0]),
        # The control of u is 1 away from that of v, the control of w 7.
        (NearestCondition(), [3.0, 1.0]),
    ],
)
def test_by_hand(baseline, expected, train):
    predicted = baseline.fit(train).predict("a", "v")
    assert predicted.tolist() == pytest.approx(expected)
    assert list(predicted.index) == ["g1", "g2"]


def test_ridge_agrees_with_sklearn(train):
    t, x = (train.index.get_level_values(i) for i in (0, 1))
    design = np.concatenate([pd.get_dummies(t), pd.get_dummies(x)], axis=1).astype(float)
    reference = SklearnRidge(alpha=0.3).fit(design, train.to_numpy())
    asked = np.array([[1, 0, 0, 0, 1, 0]], float)
    predicted = Ridge(alpha=0.3).fit(train).predict("a", "v")
    assert predicted.to_numpy() == pytest.approx(reference.predict(asked)[0])


@pytest.mark.parametrize("name", BASELINES)
def test_the_condition_asked_for_is_never_read(name, train):
    changed = train.copy()
    changed.loc[("a", "u")] = [1e6, -1e6]
    predictions = [BASELINES[name]().fit(p).predict("a", "u") for p in (train, changed)]
    pd.testing.assert_series_equal(*predictions)


def test_exact_on_additive_data():
    rng = np.random.default_rng(0)
    base, change = rng.normal(size=(3, 4)), rng.normal(size=4)
    rows = {("control", str(x)): base[x] for x in range(3)}
    rows |= {("a", str(x)): base[x] + change for x in range(2)}
    train = pd.DataFrame(list(rows.values()), index=pd.MultiIndex.from_tuples(rows))
    assert Additive().fit(train).predict("a", "2").to_numpy() == pytest.approx(base[2] + change)
    for other in (ControlMean, TreatedMean, NearestCondition):
        error = other().fit(train).predict("a", "2").to_numpy() - base[2] - change
        assert np.abs(error).max() > 0.1


@pytest.mark.parametrize("name", BASELINES)
def test_unknown_levels_and_order_of_calls(name, train):
    baseline = BASELINES[name]()
    with pytest.raises(NotFittedError, match="call fit"):
        baseline.predict("a", "v")
    unknown = ("nothing", "v") if name != "control mean" else ("a", "nowhere")
    baseline.fit(train)
    with pytest.raises(CategoryError, match=f"the {name} baseline cannot predict"):
        baseline.predict(*unknown)


def test_profiles_must_be_unique_and_hold_a_control(train):
    with pytest.raises(DesignError, match="unique pairs"):
        Additive().fit(pd.concat([train, train]))
    with pytest.raises(DesignError, match="'dmso' among them"):
        Additive().fit(train, control="dmso")
