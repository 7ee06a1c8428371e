"""Effects with intervals: against closed forms, and on cells whose effects are known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from tiny import SIZES, fit, tiny_adata, tiny_fcr

from pyro_fcr.analysis import model_error
from pyro_fcr.analysis.effects import Effects, expected_fdr
from pyro_fcr.analysis.model_error import CounterfactualError, ModelError, joint_errors
from pyro_fcr.analysis.strengths import Squares
from pyro_fcr.analysis.unmeasured import draw_unmeasured, interaction_errors
from pyro_fcr.errors import ArgumentError, CategoryError, DesignError


def effects_of(draws) -> Effects:
    draws = np.asarray(draws, np.float32)
    shape = draws.shape[1:]
    names = [tuple(f"{axis}{i}" for i in range(n)) for axis, n in zip("txg", shape, strict=True)]
    middle = draws.mean(0).astype(float)
    own = (draws - draws.mean(2, keepdims=True)) ** 2
    squares = Squares(own.mean(-1), own.mean(2), draws.mean(2) ** 2)
    none = ModelError(0.0, 0.0, 0.0)
    as_if = CounterfactualError(none, np.zeros(shape[-1]))
    return Effects(draws, middle, middle, squares, *names, none, as_if)


def test_errors_follow_the_gaussian_posterior():
    """The draws' moments are those of δ | e in closed form, the control's noise shared."""
    off = np.array([[[0.8]], [[-0.2]], [[np.nan]]])
    noise, control, error = np.array([[[0.3]], [[0.1]], [[np.nan]]]), np.array([[0.2]]), 0.5
    drawn = joint_errors(
        off, noise, control, np.full((3, 1, 1), error), draws=40_000, rng=np.random.default_rng(0)
    )[:, :, 0, 0]
    evidence = np.diag([0.3, 0.1]) + 0.2 + error * np.eye(2)
    gain = error * np.linalg.inv(evidence)
    np.testing.assert_allclose(drawn[:, :2].mean(0), gain @ [0.8, -0.2], atol=0.01)
    np.testing.assert_allclose(np.cov(drawn[:, :2].T), error * np.eye(2) - gain * error, atol=0.01)
    # Without a measurement the prior is left as it is.
    assert drawn[:, 2].mean() == pytest.approx(0, abs=0.02)
    assert drawn[:, 2].var() == pytest.approx(error, rel=0.03)


def test_model_error_is_found():
    rng = np.random.default_rng(1)
    predicted, noise = rng.normal(0, 1.5, 100_000), rng.gamma(2, 0.05, 100_000)
    gap = rng.normal(0, np.sqrt(noise + 0.04 + 0.09 * predicted**2))
    found = ModelError.estimate(gap, predicted, noise)
    assert found.floor == pytest.approx(0.04, abs=0.01)
    assert found.slope == pytest.approx(0.09, abs=0.01)
    assert found.absorbed == 0
    # Networks that followed six tenths of the noise leave four tenths in the gap.
    gap = rng.normal(0, np.sqrt(0.4 * noise))
    found = ModelError.estimate(gap, predicted, noise)
    assert found.absorbed == pytest.approx(0.6, abs=0.01)
    assert found.floor + found.slope < 0.005


def test_a_gap_that_grows_with_the_noise_is_not_lost():
    """A model that is worst where cells say little: its error is not taken for more noise."""
    rng = np.random.default_rng(4)
    predicted, noise = rng.normal(0, 1.5, 50_000), rng.gamma(2, 0.05, 50_000)
    gap = rng.normal(0, np.sqrt(20 * noise))
    found = ModelError.estimate(gap, predicted, noise)
    assert found.absorbed == pytest.approx(0, abs=1e-6)
    told = (1 - found.absorbed) * noise + found.variance(predicted)
    # A constant cannot follow the noise, but is of the gaps' size; noise alone is a twentieth.
    assert 0.5 < told.mean() / (gap**2).mean() < 1.5


def test_a_share_of_noise_that_rounding_puts_above_all_of_it_is_all(monkeypatch):
    """Its complement has a square root, so it must not be negative."""
    solved = SimpleNamespace(x=np.array([1 + 2**-52, 0.1, 0.2]))
    monkeypatch.setattr(model_error, "lsq_linear", lambda *_, **__: solved)
    assert ModelError.estimate(np.ones(3), np.ones(3), np.ones(3)).absorbed == 0


@pytest.mark.parametrize(("followed", "least", "most"), [(0.5, 0.85, 1.2), (0.0, 1.2, 4.0)])
def test_a_counterfactual_errs_by_the_noise_it_followed(followed, least, most):
    """Of half the noise followed the error is found; of a model that followed none, too much."""
    rng = np.random.default_rng(5)
    shape = (4, 5, 2000)
    truth, noise = rng.normal(0, 1.5, shape), np.tile(rng.gamma(2, 0.05, 2000), (4, 5, 1))
    measured = truth + np.sqrt(noise) * rng.normal(size=shape)
    own = np.sqrt(0.01 + 0.02 * truth**2) * rng.normal(size=shape)
    predicted = truth + own + followed * (measured - truth)
    predicted[1, 2] = np.nan
    found = CounterfactualError.estimate(measured - predicted, predicted, noise)
    told = found.variance(np.nan_to_num(predicted))
    assert told.shape == shape
    error = (predicted - truth) ** 2
    assert least < told.mean() / np.nanmean(error) < most
    noisy = noise[0, 0] > np.median(noise)
    if followed:
        assert told[..., noisy].mean() == pytest.approx(np.nanmean(error[..., noisy]), rel=0.2)
        assert told[..., ~noisy].mean() == pytest.approx(np.nanmean(error[..., ~noisy]), rel=0.2)


def test_interactions_elsewhere_say_how_far_a_new_condition_may_lie():
    rng = np.random.default_rng(2)
    n_t, n_x, genes = 6, 5, 4000
    main = rng.normal(size=(n_t, 1, genes)) + rng.normal(size=(1, n_x, genes))
    full = main + 0.7 * rng.normal(size=(n_t, n_x, genes))
    new = full[2, 3].copy()
    full[2, 3] = np.nan
    errors = interaction_errors(full)
    found = (errors**2).mean(0)
    # Predicting the held-out cell of a two-way table by its main effects, from the others alone.
    t, x = np.nonzero(np.isfinite(full[..., 0]))
    design = np.zeros((len(t), n_t + n_x))
    design[np.arange(len(t)), t] = design[np.arange(len(t)), n_t + x] = 1
    weights = np.linalg.lstsq(design, full[t, x], rcond=None)[0]
    missed = (new - weights[2] - weights[n_t + 3]) ** 2
    assert found.mean() == pytest.approx(missed.mean(), rel=0.15)
    # Each condition by the others alone: left out by hand.
    kept = np.arange(len(t)) != 5
    weights = np.linalg.lstsq(design[kept], full[t, x][kept], rcond=None)[0]
    by_hand = full[t[5], x[5]] - weights[t[5]] - weights[n_t + x[5]]
    np.testing.assert_allclose(errors[5], by_hand, atol=1e-8)


def test_errors_of_one_treatment_are_deviations_from_the_other_groups():
    changes = np.array([1.0, 2.0, 6.0, np.nan]).reshape(1, 4, 1)
    np.testing.assert_allclose(interaction_errors(changes)[:, 0], [1 - 4, 2 - 3.5, 6 - 1.5])
    np.testing.assert_allclose(interaction_errors(np.array([[[3.0]]])), [[0.0]])


def test_unseen_conditions_have_the_spread_of_genes_and_of_conditions():
    rng = np.random.default_rng(0)
    sizes, genes = np.array([0.2, 0.2, 0.2, 1.9]), np.array([1.0, 3.0])
    errors = sizes[:, None] * genes * np.array([[1.0, 1.0]])
    drawn = draw_unmeasured(np.array([[5.0, -5.0]]), errors, 200_000, rng)
    np.testing.assert_allclose(drawn.mean(0), [[5, -5]], atol=0.03)
    np.testing.assert_allclose(drawn.std(0)[0], np.sqrt((sizes**2).mean()) * genes, rtol=0.02)
    # One draw in four is of the strong condition, in both genes at once: heavy tails, shared.
    standard = (drawn[:, 0] - [5, -5]) / drawn.std(0)
    assert (standard**4).mean() > 6
    assert np.corrcoef(np.abs(standard).T)[0, 1] > 0.3


def test_expected_fdr_by_hand():
    np.testing.assert_allclose(expected_fdr(np.array([0.5, 1.0, 0.8])), [0.7 / 3, 0.0, 0.1])


def test_shares_and_interactions_by_hand():
    # One treatment, two groups. Gene 0: +2 in both; gene 1: +1 and -1; gene 2: 3 and 1.
    draws = np.tile([[[2.0, 1.0, 3.0], [2.0, -1.0, 1.0]]], (50, 1, 1, 1))
    effects = effects_of(draws)
    shares = effects.decompose("t0")
    assert shares.loc["g0", "interaction"] == pytest.approx(0)
    assert shares.loc["g1", "interaction"] == pytest.approx(1)
    assert shares.loc["g2", "interaction"] == pytest.approx(2 / 10)
    assert shares.index[0] == "g2"
    assert shares.loc["g2", "size"] == pytest.approx(np.sqrt(5))
    np.testing.assert_allclose(shares["common"] + shares["interaction"], 1)
    ranked = effects.interactions(least=0.5).set_index("covariate")
    # Specific parts (0, 1, 1) and their negatives.
    assert ranked.loc["x0", "strength"] == pytest.approx(np.sqrt(2 / 3))
    assert ranked.loc["x1", "genes"] == pytest.approx(2)
    genes = effects.interaction_genes(least=0.5)
    assert len(genes) == 6
    found = genes.set_index(["covariate", "gene"])["lfc"]
    assert found["x1", "g2"] == pytest.approx(-1)
    difference = effects.compare("t0", "x0", "x1")
    assert difference.loc["g1", "lfc"] == pytest.approx(2)


def test_of_effects_that_are_equally_likely_the_largest_comes_first():
    draws = np.tile(np.array([1.0, -3.0, 2.0, 0.0]), (5, 1, 1, 1))
    assert list(effects_of(draws).genes_of("t0", "x0").index) == ["g1", "g2", "g0", "g3"]


def test_names_that_are_not_there_are_refused():
    effects = effects_of(np.zeros((3, 1, 2, 2)))
    with pytest.raises(CategoryError, match="no treatment is called 'nothing'"):
        effects.genes_of("nothing", "x0")
    with pytest.raises(CategoryError, match="no covariate group is called 'x9'"):
        effects.genes_of("t0", "x9")


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"least": -0.1}, r"least=.*finite number of at least 0, got -0.1"),
        ({"least": np.nan}, "least=.*got nan"),
        ({"fdr": 5}, "fdr=.*at most 1, got 5"),
        ({"fdr": "0.05"}, "fdr=.*got '0.05'"),
    ],
)
def test_thresholds_that_make_no_sense_are_refused(asked, match):
    effects = effects_of(np.zeros((3, 1, 2, 2)))
    for told in (lambda **k: effects.genes_of("t0", "x0", **k),
                 lambda **k: effects.compare("t0", "x0", "x1", **k),
                 effects.interaction_genes):  # fmt: skip
        with pytest.raises(ArgumentError, match=match):
            told(**asked)
    if "least" in asked:
        with pytest.raises(ArgumentError, match=match):
            effects.interactions(**asked)


def test_of_interactions_that_are_equally_likely_the_largest_comes_first():
    """Every gene's change is one way in one group, the other way in the other: all are certain."""
    change = np.array([1.0, -3.0, 2.0])
    draws = np.tile(np.stack([change, -change]), (5, 1, 1, 1))
    assert list(effects_of(draws).interaction_genes()["gene"]) == ["g1", "g1", "g2", "g2",
                                                                   "g0", "g0"]  # fmt: skip


@pytest.fixture(scope="module")
def fitted():
    adata = tiny_adata(per_condition=40)
    model = tiny_fcr(adata)
    fit(model, max_epochs=20)
    return model, adata


def test_a_perfect_model_leaves_its_measurements_alone(fitted):
    """Where cells are many, the estimate is the measured change, whatever the model says."""
    model, adata = fitted
    effects = model.effects(draws=50)
    assert effects.draws.shape == (50, 2, 3, adata.n_vars)
    treated = adata[(adata.obs["drug"] == "A") & (adata.obs["type"] == "u")]
    control = adata[(adata.obs["drug"] == "ctrl") & (adata.obs["type"] == "u")]
    shares = [np.log2((a.X.sum(0) + 0.5) / a.X.sum()) for a in (treated, control)]
    np.testing.assert_allclose(effects.measured[0, 0], shares[0] - shares[1], atol=1e-3)
    table = effects.genes_of("A", "u")
    assert (table["low"] <= table["lfc"]).all()
    assert (table["lfc"] <= table["high"]).all()
    assert table["p_effect"].is_monotonic_decreasing


def test_replicates_widen_the_intervals(fitted):
    model, adata = fitted
    adata = adata.copy()
    # Two wells per condition that differ: the spread between cells knows nothing of it.
    well = np.arange(adata.n_obs) % 2
    adata.X[well == 1, 3] *= 5
    adata.obs["well"] = pd.Categorical([f"w{i}" for i in well])
    by_cell = model.effects(adata, draws=100)
    by_well = model.effects(adata, draws=100, replicate="well")
    width = [
        e.genes_of("A", "u").loc["g3", ["low", "high"]].diff().iloc[-1] for e in (by_cell, by_well)
    ]
    assert width[1] > 1.5 * width[0]
    with pytest.raises(DesignError, match="no column 'plate'"):
        model.effects(adata, replicate="plate")


@pytest.mark.parametrize("level", [0, 1, 1.5, -0.1, np.nan, "0.9", True])
def test_levels_that_are_no_probability_are_refused(fitted, level):
    model, _ = fitted
    with pytest.raises(ArgumentError, match=r"level=.*a number between 0 and 1"):
        model.effects(level=level, draws=2)


@pytest.mark.parametrize("draws", [1, 0, 2.5])
def test_too_few_draws_for_an_interval_are_refused(fitted, draws):
    model, _ = fitted
    with pytest.raises(ArgumentError, match=rf"draws=.*at least 2.*got {draws}"):
        model.effects(draws=draws)


def test_a_condition_without_cells_is_extrapolated_as_widely_as_interactions_range():
    adata = tiny_adata(per_condition=40)
    held = (adata.obs["drug"] == "B") & (adata.obs["type"] == "w")
    model = tiny_fcr(adata[~held].copy(), sizes={**SIZES, "z_tx": 1})
    fit(model, max_epochs=20)
    effects = model.effects(draws=300)
    assert np.isnan(effects.measured[1, 2]).all()
    elsewhere = effects.predicted.copy()
    elsewhere[1, 2] = np.nan
    np.testing.assert_allclose(
        effects.draws[:, 1, 2].std(0),
        np.sqrt((interaction_errors(elsewhere) ** 2).mean(0)),
        rtol=0.35,
    )
    ranked = effects.interactions()
    assert not ranked.set_index(["treatment", "covariate"]).loc[("B", "w"), "measured"]
