import re

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge as SklearnRidge

from pyro_fcr.errors import CategoryError, DesignError, NotFittedError
from pyro_fcr.evaluate import (
    BASELINES,
    Additive,
    ControlMean,
    DecoderOnly,
    KernelRidge,
    LatentAdditive,
    NearestCondition,
    Noise,
    PCAAdditive,
    Ridge,
    Training,
    TreatedMean,
    log_normalised,
    profile,
)


def training(frame, control="control"):
    """Profiles as cells whose values are no counts: the profile of a condition is its row."""
    t, x = (frame.index.get_level_values(i) for i in (0, 1))
    return Training(
        frame.to_numpy(), t, x, control=control, genes=frame.columns, log_normalise=False
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
    predicted = baseline.fit(training(train)).predict("a", "v")
    assert predicted.tolist() == pytest.approx(expected)
    assert list(predicted.index) == ["g1", "g2"]


def test_ridge_agrees_with_sklearn(train):
    t, x = (train.index.get_level_values(i) for i in (0, 1))
    design = np.concatenate([pd.get_dummies(t), pd.get_dummies(x)], axis=1).astype(float)
    reference = SklearnRidge(alpha=0.3).fit(design, train.to_numpy())
    asked = np.array([[1, 0, 0, 0, 1, 0]], float)
    predicted = Ridge(alpha=0.3).fit(training(train)).predict("a", "v")
    assert predicted.to_numpy() == pytest.approx(reference.predict(asked)[0])


@pytest.mark.parametrize("name", BASELINES)
def test_the_condition_asked_for_is_never_read(name, train):
    changed = train.copy()
    changed.loc[("a", "u")] = [1e6, -1e6]
    predictions = [BASELINES[name]().fit(training(p)).predict("a", "u") for p in (train, changed)]
    pd.testing.assert_series_equal(*predictions)


def test_exact_on_additive_data():
    rng = np.random.default_rng(0)
    base, change = rng.normal(size=(3, 4)), rng.normal(size=4)
    rows = {("control", str(x)): base[x] for x in range(3)}
    rows |= {("a", str(x)): base[x] + change for x in range(2)}
    train = pd.DataFrame(list(rows.values()), index=pd.MultiIndex.from_tuples(rows))
    assert Additive().fit(training(train)).predict("a", "2").to_numpy() == pytest.approx(
        base[2] + change
    )
    for other in (ControlMean, TreatedMean, NearestCondition):
        error = other().fit(training(train)).predict("a", "2").to_numpy() - base[2] - change
        assert np.abs(error).max() > 0.1


@pytest.mark.parametrize("name", BASELINES)
def test_unknown_levels_and_order_of_calls(name, train):
    baseline = BASELINES[name]()
    with pytest.raises(NotFittedError, match="call fit"):
        baseline.predict("a", "v")
    unknown = ("nothing", "v") if name not in ("control mean", "noise") else ("a", "nowhere")
    baseline.fit(training(train))
    with pytest.raises(CategoryError, match=re.escape(f"the {name} baseline cannot predict")):
        baseline.predict(*unknown)


def test_training_needs_a_control_and_labels_of_every_cell(train):
    with pytest.raises(DesignError, match="'dmso' among"):
        training(train, control="dmso")
    with pytest.raises(DesignError, match="a treatment and a covariate a cell"):
        Training(np.ones((3, 2)), ["control"] * 3, ["x"] * 2)


def test_counts_become_pseudobulk_profiles():
    rng = np.random.default_rng(0)
    counts = rng.poisson(5, (30, 4))
    t, x = np.repeat(["control", "a", "b"], 10), np.tile(["u", "v"], 15)
    data = Training(counts, t, x, genes=list("ghij"))
    mine = data.profiles.loc[[("a", "u")]].to_numpy()[0]
    assert mine == pytest.approx(profile(counts[(t == "a") & (x == "u")]))
    predicted = ControlMean().fit(data).predict("b", "v")
    assert predicted.to_numpy() == pytest.approx(profile(counts[(t == "control") & (x == "v")]))
    assert list(predicted.index) == list("ghij")


def grid(changes, n_x=4, n_g=6, seed=0, interaction=0.0):
    """Profiles of a full design: own controls plus each treatment's change."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(n_x, n_g))
    rows = {("control", str(x)): base[x] for x in range(n_x)}
    for name, change in changes.items():
        for x in range(n_x):
            rows[name, str(x)] = base[x] + change + interaction * rng.normal(size=n_g)
    index = pd.MultiIndex.from_tuples(rows, names=["treatment", "covariate"])
    return pd.DataFrame(np.array(list(rows.values())), index=index)


def test_kernel_ridge_agrees_with_sklearn_on_its_kernel():
    from sklearn.kernel_ridge import KernelRidge as Reference

    rng = np.random.default_rng(1)
    frame = grid({"a": rng.normal(size=6), "b": rng.normal(size=6)}, interaction=0.3)
    held = ("a", "2")
    train = frame.drop(index=[held])
    keys = [k for k in train.index if k[0] != "control"]
    own = {x: frame.loc[[("control", x)]].to_numpy()[0] for x in "0123"}
    y = np.array([train.loc[[k]].to_numpy()[0] - own[k[1]] for k in keys])
    controls = np.array([own[x] for _, x in [*keys, held]])
    d = ((controls[:, None] - controls[None]) ** 2).sum(-1)
    near = np.exp(-d / np.median(d[d > 0]))
    t = np.array([k[0] for k in [*keys, held]])
    kernel = near + (t[:, None] == t[None]) * (1 + near)
    reference = Reference(alpha=0.1, kernel="precomputed").fit(kernel[:-1, :-1], y)
    expected = own["2"] + reference.predict(kernel[-1:, :-1])[0]
    predicted = KernelRidge(alphas=(0.1,)).fit(training(train)).predict(*held)
    assert predicted.to_numpy() == pytest.approx(expected)


def test_kernel_ridge_takes_the_ridge_of_least_leave_one_out_error():
    rng = np.random.default_rng(2)
    frame = grid({"a": rng.normal(size=6), "b": rng.normal(size=6)}).drop(index=[("a", "2")])
    asked = {
        alpha: KernelRidge(alphas=(alpha,)).fit(training(frame)).predict("a", "2").to_numpy()
        for alpha in (0.01, 100.0)
    }
    # Without noise or interaction the smaller ridge must win.
    both = KernelRidge(alphas=(100.0, 0.01)).fit(training(frame)).predict("a", "2").to_numpy()
    assert both == pytest.approx(asked[0.01])
    assert np.abs(both - asked[100.0]).max() > 0.1


def test_pca_additive_is_additive_with_all_directions_and_projects_with_one():
    rng = np.random.default_rng(3)
    frame = grid({"a": rng.normal(size=6), "b": rng.normal(size=6)}, interaction=0.2)
    data = training(frame.drop(index=[("a", "1")]))
    full = PCAAdditive(n_components=6).fit(data).predict("a", "1")
    additive = Additive().fit(data).predict("a", "1")
    assert full.to_numpy() == pytest.approx(additive.to_numpy())
    one = PCAAdditive(n_components=1).fit(data).predict("a", "1").to_numpy()
    changes = data.changes(data.profiles).to_numpy()
    direction = np.linalg.svd(changes)[2][0]
    own = frame.loc[[("control", "1")]].to_numpy()[0]
    assert one - own == pytest.approx(direction * ((additive.to_numpy() - own) @ direction))


def test_latent_additive_moves_the_own_control_cells():
    rng = np.random.default_rng(4)
    base, change = rng.normal(size=(3, 5)), 2 * rng.normal(size=5)
    t = np.repeat(["control", "a"], 300)
    x = np.tile(["0", "1", "2"], 200)
    cells = base[x.astype(int)] + (t == "a")[:, None] * change + rng.normal(size=(600, 5))
    kept = ~((t == "a") & (x == "2"))
    data = Training(cells[kept], t[kept], x[kept], log_normalise=False)
    predicted = LatentAdditive().fit(data).predict("a", "2").to_numpy()
    # All five directions are kept, so the shift is the mean change of the other covariates.
    additive = Additive().fit(data).predict("a", "2").to_numpy()
    assert predicted == pytest.approx(additive)
    assert predicted == pytest.approx(base[2] + change, abs=0.5)


def test_latent_additive_on_counts_averages_in_counts():
    rng = np.random.default_rng(5)
    t, x = np.repeat(["control", "a"], 200), np.tile(["0", "1"], 200)
    rate = np.where((t == "a")[:, None], [40, 10, 50], [20, 30, 50])
    counts = rng.poisson(rate)
    kept = ~((t == "a") & (x == "1"))
    data = Training(counts[kept], t[kept], x[kept])
    predicted = LatentAdditive().fit(data).predict("a", "1").to_numpy()
    # Shifting logs of Poisson counts is not quite shifting their mean.
    assert predicted == pytest.approx(profile(counts[~kept]), abs=0.1)
    moved = log_normalised(counts[(t == "control") & (x == "1")])
    assert np.abs(predicted - profile(np.expm1(moved))).max() > 0.3


def test_decoder_only_learns_an_additive_truth():
    rng = np.random.default_rng(6)
    frame = grid({k: 2 * rng.normal(size=6) for k in "abcdef"}, n_x=8)
    truth = frame.loc[[("a", "1")]].to_numpy()[0]
    own = frame.loc[[("control", "1")]].to_numpy()[0]
    data = training(frame.drop(index=[("a", "1")]))
    predicted = DecoderOnly().fit(data).predict("a", "1").to_numpy()
    assert ((predicted - truth) ** 2).sum() < 0.5 * ((own - truth) ** 2).sum()
    short = [DecoderOnly(steps=5).fit(data).predict("a", "1").to_numpy() for _ in range(2)]
    assert short[0] == pytest.approx(short[1])


def test_noise_has_the_size_of_the_changes_and_no_direction():
    rng = np.random.default_rng(7)
    frame = grid({k: rng.normal(size=2000) for k in "ab"}, n_g=2000)
    data = training(frame)
    own = frame.loc[[("control", "0")]].to_numpy()[0]
    noise = Noise().fit(data).predict("a", "0").to_numpy() - own
    changes = data.changes(data.profiles.drop(index=[("a", "0")])).to_numpy()
    assert noise.std() == pytest.approx(np.sqrt((changes**2).mean()), rel=0.1)
    truth = frame.loc[[("a", "0")]].to_numpy()[0] - own
    assert abs(np.corrcoef(noise, truth)[0, 1]) < 0.1
    other = Noise().fit(data).predict("b", "0").to_numpy() - own
    assert abs(np.corrcoef(noise, other)[0, 1]) < 0.1
