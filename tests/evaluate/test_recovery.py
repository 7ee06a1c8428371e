import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge

from pyro_fcr import simulate
from pyro_fcr.errors import DesignError
from pyro_fcr.evaluate import (
    ceiling,
    kernel_r2,
    mcc,
    null_latents,
    recovery,
    within_condition,
)
from pyro_fcr.evaluate.kernel_ridge import kernel_ridge


@pytest.fixture(scope="module")
def cells():
    adata = simulate.factorised(n_per_condition=30, n_genes=60, seed=0)
    truth = {name: np.asarray(adata.obsm[name], float) for name in ("z_x", "z_t", "z_tx")}
    condition = adata.obs["treatment"].astype(str) + "|" + adata.obs["covariate"].astype(str)
    return adata, truth, condition.to_numpy()


def value(table: pd.DataFrame, metric, latent, truth, column="within"):
    row = table[
        (table["metric"] == metric) & (table["latent"] == latent) & (table["truth"] == truth)
    ]
    assert len(row) == 1
    return float(row[column].iloc[0])


def test_within_condition_agrees_with_pandas():
    rng = np.random.default_rng(0)
    a, c = rng.normal(size=(50, 2)), rng.choice(list("abc"), 50)
    frame = pd.DataFrame(a)
    assert within_condition(a, c) == pytest.approx(
        (frame - frame.groupby(c).transform("mean")).to_numpy()
    )


def test_mcc_by_hand():
    # Orthogonal columns permuted, sign flipped, one replaced by a mixture of correlation 0.6.
    rng = np.random.default_rng(0)
    y = rng.normal(size=(40_000, 3))
    x = np.stack([-y[:, 2], y[:, 0], 0.6 * y[:, 1] + 0.8 * rng.normal(size=40_000)], axis=1)
    assert mcc(x, y) == pytest.approx((1 + 1 + 0.6) / 3, abs=0.01)
    # A component too few: the unmatched one counts 0.
    assert mcc(x[:, :2], y) == pytest.approx(2 / 3, abs=0.01)


def test_mcc_matches_one_to_one():
    rng = np.random.default_rng(1)
    y = rng.normal(size=(20_000, 2))
    # Both estimates copy the first component: only one may claim it.
    assert mcc(y[:, [0, 0]], y) == pytest.approx(0.5, abs=0.02)


def test_nonlinear_mcc_sees_what_the_linear_one_cannot():
    rng = np.random.default_rng(2)
    y = rng.normal(size=(3000, 1))
    assert mcc(y, np.cos(2 * y), kind="linear") < 0.1
    assert mcc(y, np.cos(2 * y), kind="nonlinear") > 0.95


def test_mcc_within_condition_ignores_labels():
    rng = np.random.default_rng(3)
    c = rng.integers(5, size=5000)
    shift = 5 * rng.normal(size=(5, 2))[c]
    x, y = shift + rng.normal(size=(5000, 2)), shift + rng.normal(size=(5000, 2))
    assert mcc(x, y) > 0.85
    assert mcc(x, y, c) < 0.06


def test_kernel_ridge_agrees_with_sklearn():
    rng = np.random.default_rng(4)
    x, new = rng.normal(size=(120, 2)), rng.normal(size=(50, 2))
    y = np.sin(2 * x[:, :1]) + 0.1 * rng.normal(size=(120, 1))
    got = kernel_ridge(x, y, new, np.zeros(1, int))
    a, b = (x - x.mean(0)) / x.std(0), (new - x.mean(0)) / x.std(0)
    distance = np.sqrt(((a[:, None] - a[None]) ** 2).sum(-1))[np.triu_indices(120, 1)]
    fits = []
    for gamma in (0.25, 1, 4):
        for ridge in (0.01, 0.1, 1):
            model = KernelRidge(alpha=ridge, kernel="rbf", gamma=gamma / np.median(distance) ** 2)
            errors = []
            for i in range(120):
                keep = np.arange(120) != i
                errors.append(model.fit(a[keep], y[keep]).predict(a[[i]]) - y[i])
            fits.append((np.square(errors).sum(), model.fit(a, y).predict(b)))
    best = min(fits, key=lambda fit: fit[0])[1]
    assert got == pytest.approx(best, abs=1e-8)


def test_kernel_r2_of_a_known_signal_to_noise():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(2000, 2))
    y = x[:, :1] + 0.5 * rng.normal(size=(2000, 1))
    assert kernel_r2(x, y) == pytest.approx(0.8, abs=0.03)
    assert kernel_r2(rng.normal(size=(2000, 2)), y) < 0.01


def test_r2_weights_by_variance():
    rng = np.random.default_rng(6)
    x = rng.normal(size=(1500, 1))
    # A recovered column of variance 9 beside an unrelated one of variance 1: 9 / 10.
    y = np.concatenate([3 * x, rng.normal(size=(1500, 1))], axis=1)
    assert kernel_r2(x, y) == pytest.approx(0.9, abs=0.03)


def test_truth_scores_one_and_does_not_leak(cells):
    _, truth, condition = cells
    table = recovery(truth, truth, condition, max_cells=1000)
    assert len(table) == 3 * 2 + 9
    for a in truth:
        assert value(table, "mcc", a, a) == pytest.approx(1)
        assert value(table, "mcc_nl", a, a) > 0.97
        for b in truth:
            score = value(table, "r2", a, b)
            assert score > 0.98 if a == b else score < 0.03
    # Labels alone look impressive pooled, which is why they stand beside.
    assert value(table, "mcc", "z_tx", "z_tx", "label_only") > 0.7
    assert value(table, "r2", "z_tx", "z_tx", "label_only") > 0.5


def test_labels_and_noise_score_nothing_within(cells):
    adata, truth, condition = cells
    nulls = null_latents(adata.X, truth, condition)
    for name in ("label_only", "noise"):
        table = recovery(nulls[name], truth, condition, max_cells=600)
        assert table["within"].max() < 0.12
    assert nulls["pca"]["z_x"].shape == (len(condition), 10)


def test_leakage_is_seen(cells):
    _, truth, condition = cells
    leaky = dict(truth, z_x=np.concatenate([truth["z_x"], truth["z_tx"][:, :1]], axis=1))
    table = recovery(leaky, truth, condition, max_cells=1000)
    assert value(table, "r2", "z_x", "z_tx") > 0.1


def test_a_collapsed_component_is_no_error(cells):
    _, truth, condition = cells
    dead = {name: np.zeros_like(a) for name, a in truth.items()}
    table = recovery(dead, truth, condition, max_cells=400)
    assert table["within"].abs().max() < 1e-12


def test_deterministic_by_seed(cells):
    _, truth, condition = cells
    noise = {"z_x": np.random.default_rng(0).normal(size=truth["z_x"].shape)}
    tables = [recovery(noise, truth, condition, max_cells=300, seed=s) for s in (0, 0, 1)]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    assert not tables[0].equals(tables[2])


def test_ceiling_beats_pca_and_keeps_the_callers_random_state(cells):
    adata, truth, condition = cells
    torch.manual_seed(7)
    state = torch.get_rng_state()
    table = ceiling(adata.X, truth, condition, max_epochs=40, max_cells=400)
    assert torch.equal(torch.get_rng_state(), state)
    pca = recovery(null_latents(adata.X, truth, condition)["pca"], truth, condition, max_cells=400)
    assert value(table, "mcc", "z_tx", "z_tx") > value(pca, "mcc", "z_tx", "z_tx") + 0.1


def test_ceiling_fails_where_counts_hold_nothing(cells):
    adata, truth, condition = cells
    shuffled = adata.X[np.random.default_rng(0).permutation(adata.n_obs)]
    table = ceiling(shuffled, truth, condition, max_epochs=5, max_cells=400)
    assert table["within"].max() < 0.2


def test_errors():
    with pytest.raises(DesignError, match="at least 4 cells"):
        recovery({"z": np.ones((4, 1))}, {"z": np.ones((4, 1))}, ["a", "a", "b", "b"])
    with pytest.raises(DesignError, match="not finite"):
        mcc(np.full((8, 1), np.nan), np.ones((8, 1)))
    with pytest.raises(DesignError, match="different cells"):
        recovery({"z": np.ones((7, 1))}, {"z": np.ones((8, 1))}, ["a"] * 8)
    with pytest.raises(DesignError, match="8 labels"):
        recovery({"z": np.ones((8, 1))}, {"z": np.ones((8, 1))}, ["a"] * 7)
