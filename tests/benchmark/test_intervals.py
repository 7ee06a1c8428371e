"""Intervals of held-out changes: the measurement, the rule's and a model's."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import pyro_fcr as pf
from pyro_fcr.benchmark import Problem
from pyro_fcr.benchmark.tasks.intervals import (
    CONFORMAL,
    conformal_rows,
    mean_rows,
    measure,
    model_rows,
)
from pyro_fcr.benchmark.tasks.scene import Scene

SCHEMA = pf.Schema(treatment="treatment", control="control", covariates="covariate")


@pytest.fixture(scope="module")
def problem():
    adata = pf.simulate.factorised(
        n_per_condition=60, n_genes=40, n_treatments=6, n_covariates=5, seed=1
    )
    split = pf.splits.combinations(adata, SCHEMA, share=0.3, valid=0, seed=1)
    return Problem(adata, SCHEMA, split)


def test_measured_change_by_hand_and_its_noise():
    rng = np.random.default_rng(0)
    treated, control = rng.poisson([30.0, 10.0], (400, 2)), rng.poisson([20.0, 20.0], (300, 2))
    found = measure(sp.csr_matrix(treated), sp.csr_matrix(control), seed=0)
    shares = [(c.sum(0) + 0.5) / c.sum() for c in (treated, control)]
    assert found.change == pytest.approx(np.log2(shares[0] / shares[1]))
    # A binomial share p of n molecules: the variance of log p is (1 - p) / (n p).
    wanted = sum(
        (1 - p) / (n * p)
        for p, n in ((np.array([0.75, 0.25]), 400 * 40), (np.array([0.5, 0.5]), 300 * 40))
    )
    assert found.variance == pytest.approx(wanted / np.log(2) ** 2, rel=0.5)


@pytest.mark.parametrize(("share", "prefix"), [(True, ""), (False, "change ")])
def test_conformal_rows_cover_what_was_held_out(problem, share, prefix):
    scene = Scene(problem, 1000, seed=0)
    truth = scene.measured(0) if share else scene.sampled()
    rows = pd.DataFrame(conformal_rows(problem, truth, share=share))
    assert set(rows["method"]) == set(CONFORMAL.values())
    assert set(zip(rows["treatment"], rows["covariate"], strict=True)) == set(truth)
    mean = rows.groupby("method")[f"{prefix}coverage 90%"].mean()
    # Eight conditions of correlated genes.
    assert mean.between(0.75, 1).all()
    assert (rows[f"{prefix}width 90%"] > 0).all()


def test_a_sampled_change_is_that_of_profiles_and_its_intervals_hold_noise_alone(problem):
    truth = Scene(problem, 1000, seed=0).sampled()
    key = next(iter(truth))
    sides = []
    for name in (key[0], "control"):
        rows = (problem.treatment == name) & (problem.covariate == key[1])
        test = rows & problem.mask("test")
        sides.append(problem.profile(problem.values(test if test.any() else rows)))
    np.testing.assert_allclose(truth[key].change, sides[0] - sides[1])
    rng = np.random.default_rng(0)
    noise = np.sqrt(truth[key].variance)
    drawn = {key: truth[key].change + noise * rng.standard_normal((2000, 40))}
    found = mean_rows(truth, drawn, {key: np.zeros(40)})[key]
    assert found["change coverage 90%"] == pytest.approx(0.9, abs=0.01)
    assert found["change width 90%"] == pytest.approx(2 * 1.645 * noise.mean(), rel=1e-3)


def test_a_models_intervals_are_widened_by_the_noise_alone(problem):
    truth = Scene(problem, 1000, seed=0).measured(0)
    groups = tuple(sorted(set(problem.covariate)))
    treatments = tuple(sorted(set(problem.treatment) - {"control"}))
    draws = np.zeros((4000, len(treatments), len(groups), 40))
    for (t, x), measured in truth.items():
        draws[:, treatments.index(t), groups.index(x)] = measured.change
    effects = SimpleNamespace(treatments=treatments, covariates=groups, draws=draws)
    model = SimpleNamespace(
        effects=lambda adata, *, draws, seed: effects,
        design=SimpleNamespace(covariate_levels=[(x,) for x in groups], covariate_groups=groups),
    )
    found = model_rows(problem, model, truth, seed=0)
    assert set(found) == set(truth)
    for key, row in found.items():
        assert row["coverage 90%"] == 1
        wanted = 2 * 1.645 * np.sqrt(truth[key].variance).mean()
        assert row["width 90%"] == pytest.approx(wanted, rel=0.05)
