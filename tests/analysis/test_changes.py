"""Draws of changes: their variance in closed form, the model's part of them by its verbs."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import SIZES, fit, tiny_adata, tiny_fcr

from pyro_fcr.analysis.changes import _bootstrap, _errors_of_counts, _least_variance, joint_changes
from pyro_fcr.analysis.unmeasured import counterfactual_changes

GENES = 4000
DRAWS = 300


def joined(*, model_sd, left, own_sd, seed=0):
    """Two treatments and their control in one group; bootstraps as they would be drawn."""
    rng = np.random.default_rng(seed)
    noise = rng.gamma(1.0, 0.04, GENES)
    # Changes far larger than their errors: what draws effects together leaves them alone.
    middle = np.stack([np.zeros(GENES), *rng.uniform(8, 12, (2, GENES))])[:, None]
    gap = np.sqrt(left * noise + own_sd**2) * rng.normal(size=middle.shape)
    modelled = middle + model_sd * rng.normal(size=(DRAWS, *middle.shape))
    residual = gap + np.sqrt(noise) * rng.normal(size=(DRAWS, *middle.shape))
    least = np.zeros_like(middle)
    found = joint_changes(
        middle, gap, modelled.astype(np.float32), residual.astype(np.float32), least, rng
    )
    return middle, gap, noise, *found


def test_noise_that_the_networks_followed_stands_in_their_changes():
    """Gaps of four tenths of the noise: the other six are in the model's changes, twice."""
    middle, _, noise, drawn, m, _, error = joined(model_sd=0.1, left=0.4, own_sd=0.0)
    assert error.absorbed == pytest.approx(0.6, abs=0.05)
    np.testing.assert_allclose(m, middle[1:] - middle[:1])
    wanted = 2 * 0.1**2 + 2 * 0.6 * noise.mean()
    assert drawn.var(0).mean() == pytest.approx(wanted, rel=0.08)
    noisy = noise > 0.08
    wanted = 2 * 0.1**2 + 2 * 0.6 * noise[noisy].mean()
    assert drawn[..., noisy].var(0).mean() == pytest.approx(wanted, rel=0.08)
    # The control's share of it is common to both treatments.
    first, second = (drawn - drawn.mean(0))[:, :, 0, noisy].transpose(1, 0, 2)
    assert (first * second).mean() == pytest.approx(wanted / 2, rel=0.08)
    np.testing.assert_allclose(drawn.mean(0), m, atol=0.2)


def test_changes_lie_between_model_and_measurement_as_errors_say():
    """Gaps far beyond the noise: the measurement rules, with the noise of both groups."""
    _, gap, noise, drawn, m, off, error = joined(model_sd=0.05, left=1.0, own_sd=0.5)
    assert error.absorbed == pytest.approx(0, abs=0.3)
    np.testing.assert_allclose(off, gap[1:] - gap[:1])
    # Of two changes that share a control: the posterior of b given off, written out.
    shared, wanted = np.eye(2) + 1, np.zeros((2, 2))
    middle = np.empty((2, GENES))
    for g in range(GENES):
        prior = np.diag(error.variance(m[:, 0, g]))
        gain = prior @ np.linalg.inv(prior + (1 - error.absorbed) * noise[g] * shared)
        middle[:, g] = m[:, 0, g] + gain @ off[:, 0, g]
        wanted += prior - gain @ prior + (0.05**2 + error.absorbed * noise[g]) * shared
    away = drawn[:, :, 0].mean(0) - middle
    assert np.sqrt((away**2).mean()) < 0.05
    centred = (drawn - drawn.mean(0))[:, :, 0]
    found = np.einsum("dtg,dug->tu", centred, centred) / (DRAWS - 1)
    np.testing.assert_allclose(found / GENES, wanted / GENES, rtol=0.1)


def test_the_least_noise_is_that_of_molecules():
    rng = np.random.default_rng(0)
    counts = rng.poisson(400, 200_000)
    assert _least_variance(np.array(400.0)) == pytest.approx(np.log2(counts).var(), rel=0.02)


def test_bootstrap_errors_are_those_of_a_mean():
    """Corrected for the bootstrap of few units, and never below the molecules' variance."""
    rng = np.random.default_rng(1)
    cells = rng.normal(size=6)
    weights = _bootstrap(6, None, 100_000, rng)
    drawn = ((weights @ cells) / weights.sum(1))[:, None, None, None].astype(np.float32)
    errors = _errors_of_counts(drawn, np.zeros((1, 1, 1)), np.full((1, 1), 6.0), rng)
    assert errors.mean() == pytest.approx(0, abs=1e-4)
    assert errors.var() == pytest.approx(cells.var(ddof=1) / 6, rel=0.02)
    floor = np.full((1, 1, 1), 3.0)
    raised = _errors_of_counts(drawn, floor, np.full((1, 1), 6.0), rng)
    assert raised.var() == pytest.approx(3.0, rel=0.02)


def test_cells_of_a_replicate_weigh_alike():
    labels = np.array(["b", "a", "b", "c"])
    weights = _bootstrap(4, labels, 1000, np.random.default_rng(0))
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    assert np.corrcoef(weights[:, [0, 1, 3]].T)[np.triu_indices(3, 1)] == pytest.approx(0, abs=0.1)
    assert weights.mean(0) == pytest.approx(1, abs=0.15)


@pytest.fixture(scope="module")
def held():
    """A model that has seen B in none of the cells of type w."""
    adata = tiny_adata(per_condition=40)
    kept = ~((adata.obs["drug"] == "B") & (adata.obs["type"] == "w"))
    model = tiny_fcr(adata[kept].copy(), sizes={**SIZES, "z_tx": 1})
    fit(model, max_epochs=20)
    return model


def as_told(model, drug, kind):
    """The control cells' change under a drug, by the verbs."""
    adata = tiny_adata(per_condition=40)
    chosen = (adata.obs["drug"] == "ctrl") & (adata.obs["type"] == kind)
    control = adata[chosen].copy()
    as_if = model.counterfactual(control, do={"drug": drug}, draws=50).X.sum(0)
    as_is = model.reconstruct(control, draws=50).X.sum(0)
    return np.log2((as_if + 0.5) / (as_is + 0.5))


def test_what_was_never_measured_is_the_models_own_change(held):
    effects = held.effects(draws=300)
    np.testing.assert_allclose(effects.predicted[1, 2], as_told(held, "B", "w"), atol=0.15)
    centre = effects.draws[:, 1, 2].mean(0)
    spread = effects.draws[:, 1, 2].std(0)
    assert (np.abs(centre - effects.predicted[1, 2]) < 5 * spread / np.sqrt(300) + 1e-6).all()


def test_counterfactuals_of_measured_conditions(held, monkeypatch):
    cells = held.cells
    measured = np.ones((2, 3), bool)
    measured[1, 2] = False
    found = counterfactual_changes(held, cells, measured, np.arange(3), seed=0)
    assert np.isnan(found[1, 2]).all()
    for t, drug in enumerate(("A", "B")):
        np.testing.assert_allclose(found[t, 1], as_told(held, drug, "v"), atol=0.15)
    monkeypatch.setattr("pyro_fcr.analysis.unmeasured.CONDITIONS", 3)
    few = counterfactual_changes(held, cells, measured, np.arange(3), seed=0)
    assert np.isfinite(few).all(-1).sum() == 3
