import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from pyro_fcr import simulate
from pyro_fcr.errors import CountsError, DesignError
from pyro_fcr.simulate.semisynthetic import _moments

G = 60


def real(n=6000, rank=2, theta=5.0, seed=0):
    """Counts with a known share, log covariance and dispersion."""
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.full(G, 5.0))
    factor = 0.3 * rng.standard_normal((rank, G))
    log_rate = rng.standard_normal((n, rank)) @ factor - (factor**2).sum(0) / 2
    mean = rng.uniform(3000, 6000, (n, 1)) * share * np.exp(log_rate)
    counts = rng.poisson(rng.gamma(theta, mean / theta)).astype(np.float32)
    names = [f"real{i}" for i in range(G)]
    adata = ad.AnnData(counts)
    adata.var_names = names
    return adata, share, factor


def test_moments_are_those_the_counts_were_drawn_with():
    adata, share, factor = real()
    found = _moments(sp.csr_matrix(adata.X, dtype=float), 2, 1)
    assert np.corrcoef(np.log(found.share), np.log(share))[0, 1] > 0.99
    # The library is a cell's total: what moves all genes together is not in the covariance.
    factor = factor - (factor @ share)[:, None]
    truth = factor.T @ factor
    assert np.corrcoef((found.factor.T @ found.factor).ravel(), truth.ravel())[0, 1] > 0.95
    assert np.median(found.theta) == pytest.approx(5.0, rel=0.35)


def test_simulated_cells_have_the_real_means_and_covariance():
    adata, _, _ = real()
    made = simulate.from_data(
        adata, sizes={"z_x": 1, "z_t": 2, "z_tx": 2}, rank=2, n_per_condition=150, seed=1
    )
    assert list(made.var_names) == list(adata.var_names)
    untreated = made[made.obs["treatment"] == "control"].X.toarray()

    def logs(x):
        return np.log1p(x / x.sum(1, keepdims=True) * 1e4)

    one, two = logs(adata.X), logs(untreated)
    assert np.corrcoef(one.mean(0), two.mean(0))[0, 1] > 0.98
    upper = np.triu_indices(G, 1)
    r = np.corrcoef(np.corrcoef(one.T)[upper], np.corrcoef(two.T)[upper])[0, 1]
    assert r > 0.75


def test_planted_truth_is_what_the_latents_do():
    adata, _, _ = real(2000)
    made = simulate.from_data(adata, n_per_condition=400, rank=4, seed=2, effect=1.0)
    mixing = made.uns["simulation"]["mixing"]
    # What z_t and z_tx (columns 3 to 9) add to every cell's log rate.
    z = np.concatenate([made.obsm["z_t"], made.obsm["z_tx"]], axis=1)
    log_rate = z / mixing["spread"][3:10] @ mixing["loading"][3:10]
    means = log_rate.reshape(7, 6, 400, G).mean(2)
    change = means - means[:1]
    effect = made.varm["effect"].to_numpy().T
    interaction = made.varm["interaction"].to_numpy().T.reshape(7, 6, G)
    planted = effect[:, None] + interaction
    assert np.corrcoef(change.ravel(), planted.ravel())[0, 1] > 0.99
    assert np.abs(change - planted).mean() < 0.1 * np.abs(planted).mean()
    silent = ~made.var["responds"].to_numpy()
    assert 0 < silent.sum() < G
    assert (planted[..., silent] == 0).all()
    assert (planted[0] == 0).all()
    assert interaction.sum(1) == pytest.approx(0, abs=1e-9)


def test_without_interaction_z_tx_is_not_identified():
    adata, _, _ = real(300)
    made = simulate.from_data(adata, n_per_condition=3, rank=4, interaction=0)
    assert made.uns["simulation"]["rank"]["rank"] == 0
    assert (made.varm["interaction"].to_numpy() == 0).all()
    assert simulate.from_data(adata, n_per_condition=3, rank=4).uns["simulation"]["rank"]["holds"]


def test_truth_and_counterfactuals_of_a_stored_simulation(tmp_path):
    adata, _, _ = real(300)
    made = simulate.from_data(adata, n_per_condition=10, rank=4, seed=3)
    made.write_h5ad(tmp_path / "s.h5ad")
    again = ad.read_h5ad(tmp_path / "s.h5ad")
    assert simulate.expected_counts(again).sum(1) == pytest.approx(made.obs["library"].to_numpy())
    direct = simulate.counterfactual_truth(made, "t2", draws=2)
    assert simulate.counterfactual_truth(again, "t2", draws=2) == pytest.approx(direct, rel=1e-6)


def test_bad_input_is_refused():
    with pytest.raises(CountsError, match="finite counts >= 0"):
        simulate.from_data(ad.AnnData(np.full((5, 4), -1.0)))
    with pytest.raises(DesignError, match="at least 2 with counts"):
        simulate.from_data(ad.AnnData(np.zeros((5, 4))))
    with pytest.raises(DesignError, match="at least z_x's 3"):
        simulate.from_data(real(50)[0], rank=2)


def test_interactions_are_planted_in_some_conditions_alone():
    adata, _, _ = real(300)
    made = simulate.from_data(adata, n_per_condition=3, rank=4, interacting=0.25, seed=2)
    planted = made.uns["simulation"]["interacting"]
    n_t, n_x = planted.shape
    assert planted.sum() == round(0.25 * (n_t - 1) * n_x)
    assert not planted[0].any()
    for values in made.uns["simulation"]["prior"]["z_tx"].values():
        as_control = (np.asarray(values) == np.asarray(values)[:1]).all(-1)
        np.testing.assert_array_equal(as_control[1:], ~planted[1:])
    every = simulate.from_data(adata, n_per_condition=3, rank=4, seed=2)
    assert every.uns["simulation"]["interacting"][1:].all()
    with pytest.raises(DesignError, match="a share of conditions"):
        simulate.from_data(adata, interacting=1.5)
