import anndata as ad
import numpy as np
import pytest

from pyro_fcr import simulate
from pyro_fcr.errors import CategoryError, DesignError, SchemaError

BLOCKS = ("z_x", "z_t", "z_tx")


def small(variant="base", **options):
    options = {"n_per_condition": 20, "n_genes": 40, "seed": 3} | options
    return simulate.factorised(variant, **options)


@pytest.mark.parametrize("variant", simulate.VARIANTS)
def test_every_variant_has_the_stated_shape(variant):
    adata = small(variant)
    n_t, n_x = {"cond": (10, 8), "few_conditions": (3, 3)}.get(variant, (7, 6))
    assert adata.shape == (n_t * n_x * 20, 40)
    assert list(adata.obs["treatment"].cat.categories) == [
        "control",
        *(f"t{i}" for i in range(1, n_t)),
    ]
    assert list(adata.obs["covariate"].cat.categories) == [f"x{i}" for i in range(1, n_x + 1)]
    assert adata.obs.groupby(["treatment", "covariate"], observed=True).size().eq(20).all()
    assert [adata.obsm[b].shape[1] for b in BLOCKS] == [3, 3, 4]
    if variant != "gaussian":
        assert adata.X.format == "csr"
        assert adata.X.dtype == np.float32
        assert (adata.X.data == np.round(adata.X.data)).all()
        assert adata.X.data.min() > 0


def test_defaults_are_those_of_f_base():
    adata = simulate.factorised(seed=0)
    assert adata.shape == (7 * 6 * 200, 300)
    library = adata.obs["library"].to_numpy()
    assert np.exp(np.log(library).mean()) == pytest.approx(5000, rel=0.02)
    assert np.log(library).std() == pytest.approx(0.3, rel=0.05)


def test_sparse_has_its_own_depth_and_genes():
    adata = simulate.factorised("sparse", n_per_condition=5, seed=0)
    assert adata.n_vars == 2000
    assert np.median(np.asarray(adata.X.sum(1))) == pytest.approx(1500, rel=0.1)


def test_same_seed_same_cells_and_another_seed_others():
    a, b, c = small(), small(), small(seed=4)
    assert (a.X != b.X).nnz == 0
    assert (a.X != c.X).nnz > 0


def test_latents_follow_the_stored_prior():
    adata = simulate.factorised(n_per_condition=2000, n_genes=5, seed=1)
    prior = adata.uns["simulation"]["prior"]
    for block in BLOCKS:
        z = adata.obsm[block].reshape(7, 6, 2000, -1).astype(float)
        error = (z.mean(2) - prior[block]["loc"]) / prior[block]["scale"] * np.sqrt(2000)
        # Standard normal by the central limit theorem: of 420 values none beyond 5.
        assert np.abs(error).max() < 5
        assert error.std() == pytest.approx(1, abs=0.15)
        assert z.std(2) == pytest.approx(prior[block]["scale"], rel=0.09)


def test_prior_constants():
    prior = simulate.factorised("cond", n_per_condition=1, n_genes=5).uns["simulation"]["prior"]
    assert (prior["z_t"]["loc"][0] == 0).all()
    assert (prior["z_t"]["scale"][0] == 1).all()
    assert (prior["z_x"]["loc"] == prior["z_x"]["loc"][:1]).all()
    assert (prior["z_t"]["loc"] == prior["z_t"]["loc"][:, :1]).all()
    assert prior["z_tx"]["scale"].min() >= 0.4
    assert prior["z_tx"]["scale"].max() <= 1.6
    assert prior["z_tx"]["loc"].std() == pytest.approx(1.5, rel=0.15)


def test_counts_are_negative_binomial_about_the_expected_counts():
    adata = simulate.factorised(n_per_condition=200, n_genes=30, seed=2)
    mean, counts = simulate.expected_counts(adata), adata.X.toarray()
    assert mean.sum(1) == pytest.approx(adata.obs["library"].to_numpy(), rel=1e-6)
    assert (counts - mean).sum() / mean.sum() == pytest.approx(0, abs=0.005)
    # Var = mu + mu^2 / 10 for a negative binomial with theta 10.
    assert ((counts - mean) ** 2).sum() / (mean + mean**2 / 10).sum() == pytest.approx(1, abs=0.05)


def test_logits_have_standard_deviation_one():
    adata = simulate.factorised("gaussian", n_per_condition=100, n_genes=100, seed=2)
    logits = simulate.expected_counts(adata)
    assert np.sqrt(logits.var(0).mean()) == pytest.approx(1, abs=1e-6)
    assert (adata.X - logits).std() == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize(
    ("variant", "rank", "holds"),
    [
        ("base", 8, True),
        ("cond", 8, True),
        ("additive", 0, False),
        ("fixed_variance", 4, False),
        ("few_conditions", 4, False),
        ("null", 0, False),
        ("selection", 8, True),
    ],
)
def test_rank_of_the_truth(variant, rank, holds):
    truth = small(variant).uns["simulation"]["rank"]
    assert truth["rank"] == rank
    assert truth["needed"] == 8
    assert truth["holds"] == holds


def test_selection_moves_z_x_with_treatment_and_base_does_not():
    for variant, moves in (("base", False), ("selection", True)):
        loc = small(variant).uns["simulation"]["prior"]["z_x"]["loc"]
        assert ((loc - loc[:1]).std() > 0) == moves


def test_correlated_components_within_condition():
    for variant, expected in (("base", 0.0), ("correlated", 0.6)):
        adata = simulate.factorised(variant, n_per_condition=300, n_genes=5)
        prior = adata.uns["simulation"]["prior"]["z_tx"]
        z = adata.obsm["z_tx"].reshape(7, 6, 300, 4)
        standard = (z - prior["loc"][:, :, None]) / prior["scale"][:, :, None]
        r = np.corrcoef(standard.reshape(-1, 4).T)[np.triu_indices(4, 1)]
        assert r == pytest.approx(expected, abs=0.05)


def test_null_has_no_effect_on_expression():
    adata = small("null")
    factual, other = simulate.expected_counts(adata), simulate.counterfactual_truth(adata, "t1")
    change = np.log(other.sum(0) / factual.sum(0))
    assert np.abs(change).max() < 0.15


def test_dim_is_base_with_another_size_for_the_model():
    base, dim = small(), small("dim")
    assert (base.X != dim.X).nnz == 0
    assert dim.uns["simulation"]["model_sizes"] == {"z_x": 6, "z_t": 6, "z_tx": 8}


def test_hold_leaves_every_row_and_column_some():
    adata = small("hold")
    table = adata.obs.groupby(["treatment", "covariate"], observed=True)["held_out"].agg(
        ["mean", "nunique"]
    )
    assert (table["nunique"] == 1).all()
    held = table["mean"].unstack()
    assert not held.loc["control"].any()
    assert held.loc["t1":].to_numpy().mean() == pytest.approx(0.2, abs=0.02)
    assert (held == 0).sum(axis=1).min() >= 2
    assert (held.loc["t1":] == 0).sum().min() >= 2


def test_hold_refuses_what_it_cannot_do():
    with pytest.raises(DesignError, match="too many conditions to hold out"):
        small("hold", held_out=0.95)


def test_batch_moves_expression_at_the_same_latents():
    adata = small("batch", n_per_condition=100)
    assert set(adata.obs["batch"]) == {"b1", "b2", "b3"}
    fractions = [
        np.log(np.asarray(adata[adata.obs["batch"] == b].X.sum(0)).ravel()) for b in ("b1", "b2")
    ]
    offset = adata.uns["simulation"]["mixing"]["batch_offset"]
    r = np.corrcoef(fractions[0] - fractions[1], offset[0] - offset[1])[0, 1]
    assert r > 0.95


def test_counterfactual_agrees_with_cells_that_got_the_treatment():
    adata = simulate.factorised(n_per_condition=400, n_genes=30, seed=5)
    x1 = adata[adata.obs["covariate"] == "x1"]
    control, treated = (x1[x1.obs["treatment"] == t] for t in ("control", "t2"))
    predicted = simulate.counterfactual_truth(control, "t2").sum(0)
    observed = simulate.expected_counts(treated).sum(0)
    untouched = simulate.expected_counts(control).sum(0)
    share = [np.log(v / v.sum()) for v in (predicted, observed, untouched)]
    error, effect = np.abs(share[0] - share[1]).mean(), np.abs(share[2] - share[1]).mean()
    assert error < 0.15 * effect


def test_counterfactual_of_a_subset_and_after_storage(tmp_path):
    adata = small("batch")
    part = adata[adata.obs["covariate"].isin(["x2", "x5"]) & (adata.obs["batch"] == "b2")].copy()
    direct = simulate.counterfactual_truth(part, "t3", draws=2, seed=1)
    adata.write_h5ad(tmp_path / "s.h5ad")
    again = ad.read_h5ad(tmp_path / "s.h5ad")[part.obs_names]
    assert simulate.counterfactual_truth(again, "t3", draws=2, seed=1) == pytest.approx(
        direct, rel=1e-6
    )


def test_errors_say_what_to_do():
    with pytest.raises(DesignError, match="no such simulation"):
        simulate.factorised("nonsense")
    with pytest.raises(DesignError, match="few_conditions"):
        simulate.factorised("V3", n_treatments=7, n_covariates=6)
    with pytest.raises(CategoryError, match="'t9'"):
        simulate.counterfactual_truth(small(), "t9")
    with pytest.raises(SchemaError, match="not a simulation"):
        simulate.counterfactual_truth(ad.AnnData(np.ones((2, 2), np.float32)), "t1")


def test_nothing_global_is_touched():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    small()
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_true_changes_and_shares_are_those_of_many_cells():
    adata = simulate.factorised(n_per_condition=3000, n_genes=30, n_treatments=3, n_covariates=2)
    change = simulate.true_changes(adata, cells=20_000)
    shares = simulate.true_shares(adata, cells=20_000)
    assert change.shape == (2, 2, 30)
    assert shares.sum(-1) == pytest.approx(1)
    share = {}
    for t, name in enumerate(("control", "t1", "t2")):
        cells = adata[(adata.obs["treatment"] == name) & (adata.obs["covariate"] == "x2")]
        share[name] = (
            simulate.expected_counts(cells) / cells.obs["library"].to_numpy()[:, None]
        ).mean(0)
        assert np.log2(shares[t, 1] / share[name]) == pytest.approx(0, abs=0.2)
    assert change[1, 1] == pytest.approx(np.log2(share["t2"] / share["control"]), abs=0.2)


def test_true_changes_of_the_null_are_exactly_none_and_need_counts():
    assert np.abs(simulate.true_changes(small("null"), cells=50)).max() == 0
    with pytest.raises(SchemaError, match="no fold changes"):
        simulate.true_changes(small("gaussian"))
