"""sVAE+: recovery on an easy task, its named results, a treatment learned later."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

import pyro_fcr as pf
from pyro_fcr.errors import ArgumentError, DesignError, SchemaError
from pyro_fcr.estimator import default_weight_decay

SCHEMA = pf.Schema(treatment="treatment", control="control")


def easy(**changes):
    options = {"n_treatments": 20, "n_per_treatment": 100, "n_latent": 5, "n_genes": 50,
               "most_targets": 1, "n_held_out": 2, "seed": 2}  # fmt: skip
    return pf.simulate.sparse_shifts(**{**options, **changes})


def small(adata, **options):
    guide = pf.guides.Amortised(width=64)
    return pf.SVAE(adata, SCHEMA, sizes={"z": 5}, hidden=(32, 32), guide=guide, **options)


@pytest.fixture(scope="module")
def everything():
    return easy()


@pytest.fixture(scope="module")
def fitted(everything):
    model = small(everything[~everything.obs["held_out"].to_numpy()].copy())
    model.fit(max_epochs=80, batch_size=128, seed=0, progress=False, device="cpu")
    return model


@pytest.mark.slow
def test_few_cells_do_not_shrink_the_shifts(fitted) -> None:
    assert fitted.settings["weight_decay"] == 0.125
    assert fitted.settings["weight_decay"] < default_weight_decay(len(fitted.cells))
    chosen = fitted.targets().query("selected")["shift"].abs()
    assert 3 < chosen.median() < 6


@pytest.mark.slow
def test_an_easy_task_is_solved(everything, fitted) -> None:
    train = everything[~everything.obs["held_out"].to_numpy()]
    found = fitted.latents()["z"].to_numpy()
    order, correlation = pf.evaluate.match_latents(found, train.obsm["z"])
    assert correlation.mean() > 0.9
    inclusion = fitted.targets()["inclusion"].unstack().loc[list(fitted.design.treatments)]
    truth = everything.uns["simulation"]
    rows = [list(truth["treatments"]).index(name) for name in inclusion.index]
    scores = pf.evaluate.score_targets(inclusion.to_numpy()[:, order], truth["mask"][rows])
    assert scores["f1"] > 0.9


@pytest.mark.slow
def test_the_table_of_targets(fitted) -> None:
    found = fitted.targets()
    assert list(found.columns) == ["inclusion", "shift", "lower", "upper", "selected"]
    assert found.index.names == ["treatment", "latent"]
    assert len(found) == 18 * 5
    assert found["inclusion"].between(0, 1).all()
    assert (found["lower"] < found["shift"]).all()
    assert (found["shift"] < found["upper"]).all()
    selected = found[found["selected"]]
    assert (1 - selected["inclusion"]).mean() <= 0.10
    wide = fitted.targets(credible=0.99)
    assert (wide["lower"] < found["lower"]).all()


@pytest.mark.slow
def test_programs_are_the_decoders_slope(fitted) -> None:
    found = fitted.gene_programs()
    assert found.shape == (50, 5)
    assert list(found.columns) == ["z_0", "z_1", "z_2", "z_3", "z_4"]
    # By hand: means half an sd to either side of the average cell.
    z = fitted.latents()["z"].to_numpy()
    sd = np.sqrt(z.var(0)[1] + (fitted._moments(fitted.cells)["z"][1][:, 1] ** 2).mean())
    centre = torch.from_numpy(z.mean(0)).expand(2, -1).clone()
    centre[0, 1] -= float(sd) / 2
    centre[1, 1] += float(sd) / 2
    with torch.no_grad():
        decoded = fitted.model.decoder(centre, fitted.cells.batch(slice(0, 2)))
    share = (1e4 * torch.softmax(decoded, -1) + 1).log2()
    torch.testing.assert_close(
        torch.from_numpy(found["z_1"].to_numpy()), share[1] - share[0], atol=1e-4, rtol=1e-3
    )


def test_targets_of_impossible_shares_are_refused() -> None:
    model = pf.SVAE(tiny.tiny_adata(), tiny.tiny_schema(covariates=[]), hidden=(8,))
    tiny.fit(model)
    with pytest.raises(ArgumentError, match=r"credible=.*a number between 0 and 1, got 95"):
        model.targets(credible=95)
    with pytest.raises(ArgumentError, match=r"level=.*at most 1, got 10"):
        model.targets(level=10)


def test_other_systems_answer_or_refuse() -> None:
    fcr = tiny.tiny_fcr(priors={"z_t": pf.priors.SparseShift()})
    tiny.fit(fcr)
    assert len(fcr.targets()) == 2 * 2
    assert fcr.gene_programs().shape == (20, 2)
    assert fcr.gene_programs(block="z_x").shape == (20, 3)
    plain = tiny.tiny_fcr(priors={"z_t": pf.priors.Hierarchical()})
    tiny.fit(plain)
    with pytest.raises(DesignError, match=r"no block with sparse effects.*SparseShift"):
        plain.targets()
    with pytest.raises(DesignError, match="sparse effects"):
        plain.gene_programs()
    with pytest.raises(DesignError, match="learned alone"):
        plain.transfer(tiny.tiny_adata_with("C"))


@pytest.mark.slow
def test_a_treatment_learned_later(everything, fitted, tmp_path) -> None:
    held = everything[everything.obs["held_out"].to_numpy()]
    half = np.arange(held.n_obs) % 2 == 0
    before = {k: v.clone() for k, v in fitted._objective.state_dict().items()}
    later = fitted.transfer(held[half].copy())
    assert later.design.treatments[:18] == fitted.design.treatments
    after = later._objective.state_dict()
    for name, value in before.items():
        assert torch.equal(fitted._objective.state_dict()[name], value)
        assert torch.equal(after[name][: len(value)] if value.ndim else after[name], value)
    truth = everything.uns["simulation"]
    found = later.targets()["inclusion"].unstack()
    z = fitted.latents()["z"].to_numpy()
    train = everything[~everything.obs["held_out"].to_numpy()]
    order, _ = pf.evaluate.match_latents(z, train.obsm["z"])
    for name in ("t19", "t20"):
        mask = truth["mask"][list(truth["treatments"]).index(name)]
        row = found.loc[name].to_numpy()[order]
        assert mask[row.argmax()]
        assert (row[mask] > 0.5).all()
    # Cells it was not fitted to are likelier under the new treatment than under the control.
    rest = held[~half].copy()
    untold = rest.copy()
    untold.obs["treatment"] = "control"
    gain = later.importance(rest, draws=20).bound - later.importance(untold, draws=20).bound
    assert gain.mean() > 1
    again = pf.load(later.save(tmp_path / "later"))
    assert again.targets().equals(later.targets())


@pytest.mark.slow
def test_nothing_new_is_refused(everything, fitted) -> None:
    with pytest.raises(DesignError, match="no new treatment"):
        fitted.transfer(everything[~everything.obs["held_out"].to_numpy()])


def test_what_it_needs_and_what_it_does_not() -> None:
    adata = easy()
    with pytest.raises(SchemaError, match="SVAE needs treatment and control"):
        pf.SVAE(adata, pf.Schema())
    model = small(adata)
    assert model.model.decoder.reads == frozenset()
    batch = model.cells.batch(slice(0, 4))
    other = batch.replace(treatment=batch.treatment + 1, treatment_id=batch.treatment_id + 1)
    moments = [pf.analysis.draws.moments(model.guide, b)["z"][0] for b in (batch, other)]
    assert torch.equal(*moments)
