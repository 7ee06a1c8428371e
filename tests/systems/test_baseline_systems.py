"""Baselines: what enters where, and what each answers to an intervention."""

import numpy as np
import pytest
import torch
from pyro import poutine
from tiny import fit, tiny_adata, tiny_schema

import pyro_fcr as pf
from pyro_fcr.errors import DesignError, SlotError

SYSTEMS = (pf.VAE, pf.BetaVAE, pf.FactorVAE, pf.IVAE, pf.ConditionalVAE, pf.CPA, pf.SAMSVAE)
BLIND = (pf.VAE, pf.BetaVAE, pf.FactorVAE)


@pytest.fixture(scope="module")
def adata():
    return tiny_adata(per_condition=10, combo=True)


def make(system, adata, schema=None, **options):
    block = "z_basal" if system in (pf.CPA, pf.SAMSVAE) else "z"
    return system(adata, schema or tiny_schema(), sizes={block: 3}, hidden=(8,), **options)


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_baseline_answers_the_same_verbs(system, adata, tmp_path):
    model = make(system, adata)
    history = fit(model)
    (block,) = model.declaration.blocks
    assert f"kl.{block.name}" in history
    assert model.latents()[block.name].shape == (120, 3)
    assert model.posterior(adata[:4], draws=2).posterior[block.name].shape == (1, 2, 4, 3)
    assert model.reconstruct(adata[:4], draws=2).X.shape == (4, 20)
    again = pf.load(model.save(tmp_path / "m"))
    assert type(again) is system
    assert again.latents(adata)[block.name].equals(model.latents(adata)[block.name])


@pytest.mark.parametrize("system", BLIND)
def test_without_labels_there_is_no_intervention(system, adata):
    model = make(system, adata)
    fit(model, max_epochs=1)
    with pytest.raises(DesignError, match=rf"nothing in this {system.__name__} depends on"):
        model.counterfactual(adata, do={"treatment": "A"})


@pytest.mark.parametrize("system", [s for s in SYSTEMS if s not in BLIND])
def test_with_labels_an_intervention_moves_the_cells_whose_label_it_changes(system, adata):
    model = make(system, adata)
    fit(model, max_epochs=5)
    found = model.counterfactual(adata, do={"treatment": "A+B"}, draws=3, seed=1)
    same = model.reconstruct(adata, draws=3, seed=1)
    moved = (found.X != same.X).any(1)
    # Where z is kept and the label is the same, nothing changes.
    kept = (
        (adata.obs["drug"] == "A+B").to_numpy() if system is not pf.IVAE else np.zeros(120, bool)
    )
    assert (moved == ~kept).all()


def test_beta_weighs_the_divergence_and_nothing_else(adata):
    plain, weighted = make(pf.VAE, adata), make(pf.BetaVAE, adata, beta=4.0)
    weighted._objective.load_state_dict(plain._objective.state_dict())
    batch = plain.cells.batch(slice(0, 32))

    def terms(model):
        torch.manual_seed(0)
        return model._objective(batch)

    a, b = terms(plain), terms(weighted)
    assert a.sites == b.sites
    torch.testing.assert_close(a.loss, -a.sites["counts"] + a.sites["kl.z"])
    torch.testing.assert_close(b.loss, -a.sites["counts"] + 4.0 * a.sites["kl.z"])


def test_a_single_treatment_and_its_combination_add_in_the_latents(adata):
    model = make(pf.CPA, adata, parents=("treatment",))
    fit(model, max_epochs=5)
    decoder, cells = model.model.decoder, model.encode(adata)
    to = {t: model.design.do(cells, {"treatment": t}).batch() for t in ("ctrl", "A", "B", "A+B")}
    with torch.no_grad():
        shift = {t: decoder.shift(batch) for t, batch in to.items()}
    assert float(shift["A"].abs().min()) > 0
    assert not shift["ctrl"].any()
    torch.testing.assert_close(shift["A+B"], shift["A"] + shift["B"])


def test_masked_effects_add_and_have_a_posterior(adata):
    model = make(pf.SAMSVAE, adata, sparsity=5.0)
    fit(model, max_epochs=3)
    drawn = model.posterior(adata[:5], draws=4).posterior
    masks, shifts = drawn["decoder.effects.mask"], drawn["decoder.effects.shift"]
    assert masks.shape == shifts.shape == (1, 4, 2, 3)
    assert set(np.unique(masks)) <= {0.0, 1.0}
    decoder, cells = model.model.decoder, model.encode(adata)
    to = {t: model.design.do(cells, {"treatment": t}).batch() for t in ("ctrl", "A", "B", "A+B")}
    data = {k: torch.tensor(v.values[0, 0]) for k, v in drawn.items() if k.startswith("decoder")}
    shift = {}
    for t, batch in to.items():
        with torch.no_grad(), poutine.condition(data=data):
            shift[t] = decoder.shift(batch)
    mask, effect = data["decoder.effects.mask"], data["decoder.effects.shift"]
    assert not shift["ctrl"].any()
    torch.testing.assert_close(shift["A"][0], (mask * effect)[0])
    torch.testing.assert_close(shift["A+B"], shift["A"] + shift["B"])


@pytest.mark.parametrize("system", [pf.IVAE, pf.ConditionalVAE, pf.CPA])
def test_parents_are_the_users_choice_and_must_be_named_by_the_schema(system, adata):
    named = make(system, adata, parents=("covariates",))
    reads = named.model.decoder.reads | named.declaration.blocks[0].parents
    assert reads == {"covariates"}
    with pytest.raises(SlotError, match=r"no label 'batch'.*"):
        make(system, adata, parents=("batch",))
    with pytest.raises(SlotError, match=f"{system.__name__} has no label to read"):
        make(system, adata, pf.Schema())


def test_the_encoder_of_a_conditional_vae_reads_its_labels(adata):
    model = make(pf.ConditionalVAE, adata)
    fit(model, max_epochs=1)
    assert model.guide.reads == {"treatment", "covariates"}
    bare = adata.copy()
    del bare.obs["drug"]
    with pytest.raises(DesignError, match="the encoders read a label"):
        model.latents(bare)


def test_baselines_without_any_label(adata):
    model = make(pf.VAE, adata, pf.Schema())
    fit(model, max_epochs=1)
    found = model.latents()["z"]
    assert found.shape == (120, 3)
    assert model.guide.reads == frozenset()
    bare = adata.copy()
    bare.obs = bare.obs[[]]
    np.testing.assert_array_equal(model.latents(bare)["z"], found)
