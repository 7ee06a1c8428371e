"""InVAE: what it declares, labels of new cells, corrected expression, what is kept on disk."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from tiny import fit, tiny_adata

import pyro_fcr as pf
from pyro_fcr.errors import CategoryError, DesignError, SchemaError
from pyro_fcr.evaluate import separability
from pyro_fcr.priors import Gaussian, NonFactorised

SMALL = {
    "sizes": {"z_inv": 3, "z_spur": 2},
    "hidden": (16,),
    "guide": pf.guides.Amortised(width=16, depth=1),
}


@pytest.fixture(scope="module")
def adata():
    """The tiny cells, with a lane that shifts some genes, and an age."""
    found = tiny_adata(per_condition=24)
    lane = (found.obs["lane"] == "l1").to_numpy()
    counts = found.X.copy()
    counts[lane, 15:] += 25
    age = np.linspace(0, 1, found.n_obs) * (1 + (found.obs["type"] == "u").to_numpy())
    return ad.AnnData(counts, obs=found.obs.assign(age=age), var=found.var)


@pytest.fixture(scope="module")
def schema():
    return pf.Schema(covariates="type", batch="lane")


@pytest.fixture(scope="module")
def model(adata, schema):
    made = pf.InVAE(adata, schema, **SMALL)
    # So few cells would be shrunk to silence by the default weight decay.
    fit(made, max_epochs=200, batch_size=128, weight_decay=0.0)
    return made


def parents(made):
    return {block.name: set(block.parents) for block in made.declaration.blocks}


def weights(made):
    return {name: term.weight for name, term in made.declaration.terms.items()}


def test_by_default_biology_is_the_covariates_and_the_batch_is_spurious(model):
    assert parents(model) == {"z_inv": {"type"}, "z_spur": {"lane"}}
    active = {name for name, weight in weights(model).items() if weight}
    assert active == {"z_inv_vs_lane", "z_spur_vs_type", "type_head"}
    assert {"total_correlation", "density_ratio"} <= set(weights(model))
    assert not model.model.decoder.reads
    assert model.descendants({"batch": "l0"}) == ["z_spur"]
    assert model.descendants({"type": "u"}) == ["z_inv"]


def test_diagnosis_expects_biology_in_the_invariant_block(model):
    """The block depends on one covariate by name: reading that one from it is no alarm."""
    subjects = [finding.subject for finding in model.diagnose().findings]
    assert not any("from z_inv" in s and s.startswith("covariate") for s in subjects)
    assert any("from z_spur" in s and s.startswith("covariate") for s in subjects)


def test_several_columns_of_each_and_a_treatment(adata):
    named = {"treatment": "drug", "control": "ctrl"}
    site = adata.copy()
    site.obs["site"] = np.where(np.arange(adata.n_obs) % 3, "p", "q")
    schema = pf.Schema(**named, covariates=["type", "site"], batch="lane")
    made = pf.InVAE(site, schema, invariant=["drug", "type"], spurious=["site", "lane"], **SMALL)
    assert parents(made) == {"z_inv": {"treatment", "type"}, "z_spur": {"site", "lane"}}
    assert {n for n, w in weights(made).items() if w} == {
        "z_inv_vs_site", "z_inv_vs_lane", "z_spur_vs_treatment", "z_spur_vs_type",
        "treatment_head", "type_head",
    }  # fmt: skip
    assert made.declaration.terms["z_inv_vs_site"].part.given == ("treatment", "type")
    history = fit(made)
    assert history["z_inv_vs_site"].notna().all()
    assert made.descendants({"site": "p"}) == ["z_spur"]
    with pytest.raises(DesignError, match=r"one of \['treatment_head', 'type_head'\]"):
        made.predict_labels(site)
    assert set(made.predict_labels(site, "treatment_head")) <= {"ctrl", "A", "B"}


def test_numbers_among_biology(adata, tmp_path):
    schema = pf.Schema(covariates="type", continuous="age", batch="lane")
    made = pf.InVAE(adata, schema, **SMALL)
    assert parents(made)["z_inv"] == {"type", "age"}
    # Given the type alone, age may still link z_inv to the batch.
    assert weights(made)["z_inv_vs_lane"] == 0
    assert weights(made)["z_spur_vs_type"] > 0
    fit(made)
    assert made.descendants({"age": 1.0}) == ["z_inv"]
    again = pf.load(made.save(tmp_path / "m"))
    pd.testing.assert_frame_equal(
        again.latents(adata)["z_inv"], made.latents(adata)["z_inv"], check_exact=True
    )
    old, young = (
        again.counterfactual(adata[:6], do={"age": age}, draws=4).X for age in (0.0, 5.0)
    )
    assert not np.allclose(old, young)
    mlp = pf.InVAE(adata, schema, priors={"z_inv": Gaussian(condition="mlp")}, **SMALL)
    assert np.isfinite(fit(mlp)["loss"]).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"spurious": ["type"]}, "biology and batch must both be told"),
        ({"invariant": ["lane"]}, "biology and batch must both be told"),
        ({"invariant": []}, "biology and batch must both be told"),
    ],
)
def test_refusals(adata, schema, options, said):
    with pytest.raises(SchemaError, match=said):
        pf.InVAE(adata, schema, **options)
    with pytest.raises(SchemaError, match="must both be told"):
        pf.InVAE(adata, pf.Schema(covariates="type"))
    with pytest.raises(CategoryError, match="'colour'"):
        pf.InVAE(adata, schema, invariant=["colour"])


def test_labels_of_cells_without_label_and_batch(adata, model):
    bare = ad.AnnData(adata.X, obs=adata.obs[["age"]], var=adata.var)
    found = model.predict_labels(bare)
    assert list(found.index) == list(adata.obs_names)
    assert (found == adata.obs["type"].astype(str)).mean() > 0.9
    soft = model.predict_labels(bare, soft=True)
    assert list(soft.columns) == ["u", "v", "w"]
    np.testing.assert_allclose(soft.sum(axis=1), 1.0, rtol=1e-4)
    assert (soft.idxmax(axis=1) == found).all()


def test_labels_in_the_data_are_not_read(adata, model):
    """Wrong, or unknown to training: the prediction is that of the genes alone."""
    wrong = adata.copy()
    wrong.obs["type"] = "w"
    wrong.obs["lane"] = "a lane that training never saw"
    pd.testing.assert_series_equal(model.predict_labels(wrong), model.predict_labels(adata))


def test_no_head_no_labels(adata, schema):
    made = pf.InVAE(adata, schema, penalties={"type_head": 0}, **SMALL)
    fit(made)
    with pytest.raises(DesignError, match="no one classifier to ask"):
        made.predict_labels(adata)
    told = pf.InVAE(
        adata, schema, **{**SMALL, "guide": pf.guides.Amortised(labels=True, width=16, depth=1)}
    )
    fit(told)
    with pytest.raises(DesignError, match="the encoders read a label"):
        told.predict_labels(adata)


def test_corrected_expression_is_do_on_the_batch(adata, model):
    corrected = model.corrected_expression(adata[:30], batch="l0", draws=10, seed=3)
    same = model.counterfactual(adata[:30], do={"lane": "l0"}, draws=10, seed=3)
    np.testing.assert_array_equal(corrected.X, same.X)
    assert corrected.uns["counterfactual"]["redrawn"] == ["z_spur"]
    assert set(corrected.obs["lane"]) == {"l0"}
    alike = model.corrected_expression(adata[:30], batch="l0", library=1000.0, draws=10)
    np.testing.assert_allclose(np.asarray(alike.X).sum(1), 1000.0, rtol=1e-3)
    with pytest.raises(CategoryError, match="'l7'"):
        model.corrected_expression(adata[:3], batch="l7")


def test_correction_takes_the_batch_out_of_the_genes(adata, model):
    genes = np.log1p(np.asarray(model.corrected_expression(adata, batch="l0", library=1e3).X))
    lane = (adata.obs["lane"] == "l1").to_numpy()
    raw = adata.X / adata.X.sum(1, keepdims=True) * 1e3
    shifts = []
    for values in (np.log1p(raw), genes):
        by_type = [
            values[lane & (adata.obs["type"] == t)].mean(0)
            - values[~lane & (adata.obs["type"] == t)].mean(0)
            for t in "uvw"
        ]
        shifts.append(np.abs(np.mean(by_type, axis=0))[15:].mean())
    assert shifts[1] < 0.25 * shifts[0]


@pytest.mark.slow
def test_the_batch_leaves_one_block_and_fills_the_other(adata, model):
    """A fresh classifier finds the lane in z_spur, and hardly in z_inv given the type."""
    z = model.latents(adata)
    lane, kind = adata.obs["lane"].to_numpy(), adata.obs["type"].to_numpy()
    assert separability(z["z_spur"], lane).score > 0.8
    assert separability(z["z_inv"], lane, kind).excess < 0.1
    assert separability(z["z_inv"], kind).score > 0.9


def test_non_factorised_is_kept(adata, schema, tmp_path):
    made = pf.InVAE(adata, schema, factorised=False, **SMALL)
    assert isinstance(made.declaration.priors["z_inv"], NonFactorised)
    history = fit(made)
    assert np.isfinite(history.to_numpy()).all()
    assert "kl.z_inv.unnormalised" in history
    again = pf.load(made.save(tmp_path / "m"))
    assert isinstance(again.declaration.priors["z_inv"], NonFactorised)
    a, b = (m.corrected_expression(adata[:5], batch="l1", draws=3).X for m in (made, again))
    np.testing.assert_array_equal(a, b)
    assert torch.equal(
        again.model.priors["z_inv"].tilt.intercept, made.model.priors["z_inv"].tilt.intercept
    )
