"""The verbs of a system on a tiny experiment."""

import random

import anndata as ad
import arviz as az
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal
from pyro.nn import PyroSample
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from tiny import SIZES, TYPES, fit, penalties_off, tiny_adata, tiny_fcr, tiny_schema
from torch import nn

import pyro_fcr as pf
from pyro_fcr.analysis.draws import seeded
from pyro_fcr.errors import (
    CategoryError,
    DesignError,
    LoadError,
    NonFiniteError,
    NotFittedError,
    SchemaError,
)


def weights(fcr):
    return {k: v.clone() for k, v in fcr._objective.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def adata():
    return tiny_adata()


@pytest.fixture(scope="module")
def split(adata):
    return pf.splits.random(adata, test=0.2, valid=0.2, stratify=["drug", "type"])


@pytest.fixture(scope="module")
def fitted(adata):
    fcr = tiny_fcr(adata)
    fit(fcr, max_epochs=40)
    return fcr


# ---- training ------------------------------------------------------------------------------


def test_same_seed_same_weights_bit_for_bit(adata):
    penalties = {"z_x_vs_z_tx": 1.0, "covariate_head": 0.5, "treatment_head": 0.5}
    a, b, c = (tiny_fcr(adata, penalties=penalties) for _ in range(3))
    torch.manual_seed(99)
    fit(a, seed=3)
    torch.manual_seed(100)
    fit(b, seed=3)
    fit(c, seed=4)
    assert same(weights(a), weights(b))
    assert not same(weights(a), weights(c))
    drop = ["seconds"]
    pd.testing.assert_frame_equal(a.history.drop(columns=drop), b.history.drop(columns=drop))
    # A second fit starts afresh.
    fit(c, seed=3)
    assert same(weights(a), weights(c))


def test_models_of_the_same_parts_share_nothing(adata):
    guide, prior = pf.guides.Amortised(width=8), pf.priors.Gaussian()
    a = tiny_fcr(adata, guide=guide, priors={"z_x": prior})
    b = tiny_fcr(adata, guide=guide, priors={"z_x": prior})
    before = weights(b)
    fit(a)
    assert same(before, weights(b))
    assert not list(guide.parameters())
    assert not list(pyro.get_param_store().keys())


def test_history_has_a_column_per_term(adata, split):
    penalties = {"z_x_vs_z_tx": 1.0, "covariate_head": 1.0}
    fcr = tiny_fcr(adata, penalties=penalties)
    history = fit(fcr, max_epochs=3, split=split, validate_every=2)
    terms = {"loss", "counts", "kl.z_x", "kl.z_t", "kl.z_tx", "covariate_head", "z_x_vs_z_tx",
             *penalties_off()}  # fmt: skip
    assert terms | {f"valid.{t}" for t in terms} <= set(history.columns)
    assert "accuracy.z_x_vs_z_tx" in history
    assert {"step", "learning_rate", "gradient_norm", "seconds"} <= set(history.columns)
    assert history.index.name == "epoch"
    assert list(history.index) == [1, 2, 3]
    n_train = split.counts()["train"]
    assert list(history["step"]) == [-(-n_train // 64) * e for e in (1, 2, 3)]
    assert history["valid.loss"].notna().tolist() == [False, True, True]
    assert history[sorted(terms)].notna().all(axis=None)


def test_terms_switched_off_leave_the_history(adata):
    history = fit(tiny_fcr(adata, penalties=penalties_off()), max_epochs=1)
    assert not [c for c in history if "_vs_" in c or "head" in c]


def test_test_cells_are_never_read(adata, split):
    changed = adata.copy()
    test = split.mask(changed, "test")
    changed.X[test] = np.random.default_rng(1).poisson(50.0, changed.X[test].shape)
    a, b = tiny_fcr(adata), tiny_fcr(changed)
    for fcr in (a, b):
        fit(fcr, split=split)
    assert same(weights(a), weights(b))
    # The same change in training cells does matter.
    leaked = adata.copy()
    train = split.mask(leaked, "train")
    leaked.X[np.flatnonzero(train)[0], 0] += 100
    c = tiny_fcr(leaked)
    fit(c, split=split)
    assert not same(weights(a), weights(c))


def test_early_stopping_needs_cells_to_watch(adata):
    with pytest.raises(DesignError, match=r"early stopping has nothing to watch.*splits\.random"):
        fit(tiny_fcr(adata), early_stopping=True)
    no_valid = pf.splits.random(adata, valid=0.0)
    with pytest.raises(DesignError, match="early stopping"):
        fit(tiny_fcr(adata), early_stopping=True, split=no_valid)


EARLY = {"early_stopping": True, "validate_every": 1, "learning_rate": 3e-2, "max_epochs": 60,
         "batch_size": 256}  # fmt: skip


@pytest.fixture
def quick_to_settle(monkeypatch):
    from pyro_fcr import estimator
    from pyro_fcr.infer import Settled

    monkeypatch.setattr(estimator, "Settled", lambda: Settled(patience=2, tolerance=0.5))


@pytest.mark.usefixtures("quick_to_settle")
def test_early_stopping_restores_the_best_weights(adata, split):
    fcr = tiny_fcr(adata)
    history = fit(fcr, split=split, align_at=2, **EARLY)
    assert len(history) < 60
    held = history["valid.loss"].to_numpy()
    # The last two evaluations were not better than the best before them.
    assert held[-2:].min() >= held[:-2].min()
    from pyro_fcr.data import MemorySource
    from pyro_fcr.infer import Plan, Trainer

    valid = fcr.cells.subset(split.mask(adata, "valid"))
    trainer = Trainer(fcr._objective, Plan(1))
    n_train = int(split.mask(adata, "train").sum())
    source = MemorySource(valid, batch_size=512, shuffle=False)
    now = trainer.evaluate(source, n_train)["loss"]
    # Patience 2: two evaluations that were no better, and before them the best.
    assert held[-3] < held[-2:].min()
    assert now == pytest.approx(held[-3], rel=1e-6)


class Interrupted(RuntimeError):
    pass


def interrupt_at(monkeypatch, step):
    """Raise in the middle of an epoch, once a number of steps is done."""
    from pyro_fcr.infer import Trainer

    original = Trainer.step

    def stepping(self, batch):
        if self.step_count == step:
            raise Interrupted
        return original(self, batch)

    monkeypatch.setattr(Trainer, "step", stepping)


@pytest.mark.parametrize("step", [9, 21, 30])
def test_an_interrupted_run_resumes_bit_for_bit(adata, monkeypatch, tmp_path, step):
    # Four steps an epoch, a checkpoint every epoch; align_at falls between the interruptions.
    options = {"max_epochs": 8, "seed": 5, "checkpoint": tmp_path / "a" / "run.safetensors"}
    penalties = {"z_x_vs_z_tx": 1.0, "treatment_head": 0.5}
    whole = tiny_fcr(adata, penalties=penalties)
    fit(whole, **options | {"checkpoint": None})

    broken = tiny_fcr(adata, penalties=penalties)
    with monkeypatch.context() as patched:
        interrupt_at(patched, step)
        with pytest.raises(Interrupted):
            fit(broken, **options)
    assert len(broken.history) == step // 4, "the finished epochs are kept"
    assert not same(weights(broken), weights(whole))

    resumed = tiny_fcr(adata, penalties=penalties)
    torch.manual_seed(7)
    fit(resumed, resume=True, **options)
    assert same(weights(resumed), weights(whole))
    drop = ["seconds"]
    pd.testing.assert_frame_equal(
        resumed.history.drop(columns=drop), whole.history.drop(columns=drop)
    )
    # A finished run has nothing left to do.
    fit(resumed, resume=True, **options)
    assert same(weights(resumed), weights(whole))


@pytest.mark.usefixtures("quick_to_settle")
@pytest.mark.parametrize("step", [2, 9])
def test_a_run_that_stops_early_resumes_bit_for_bit(adata, split, monkeypatch, tmp_path, step):
    options = {**EARLY, "max_epochs": 10, "split": split, "checkpoint": tmp_path / "run"}
    whole = tiny_fcr(adata)
    fit(whole, **options | {"checkpoint": None})
    broken, resumed = tiny_fcr(adata), tiny_fcr(adata)
    with monkeypatch.context() as patched:
        interrupt_at(patched, min(step, len(whole.history) - 1))
        with pytest.raises(Interrupted):
            fit(broken, **options)
    fit(resumed, resume=True, **options)
    assert same(weights(resumed), weights(whole))
    assert len(resumed.history) == len(whole.history)


def test_resume_without_a_checkpoint_starts_afresh(adata, tmp_path):
    a, b = tiny_fcr(adata), tiny_fcr(adata)
    fit(a)
    fit(b, checkpoint=tmp_path / "none.safetensors", resume=True)
    assert same(weights(a), weights(b))


def test_another_models_checkpoint_is_refused(adata, tmp_path):
    fit(tiny_fcr(adata), checkpoint=tmp_path / "c")
    other = tiny_fcr(adata, hidden=(8,))
    with pytest.raises(LoadError, match="the checkpoint is of another model"):
        fit(other, checkpoint=tmp_path / "c", resume=True)
    (tmp_path / "c").write_bytes(b"damaged")
    with pytest.raises(LoadError, match="cannot read weights"):
        fit(tiny_fcr(adata), checkpoint=tmp_path / "c", resume=True)


class Explodes(pf.Penalty):
    """Not finite as soon as a marked cell is in the batch."""

    def __init__(self, how="gradient"):
        super().__init__()
        self.how = how

    def forward(self, z, batch):
        bad = (batch.index == 17).any() & (len(batch) != 2)
        value = z["z_x"].mean()
        if self.how == "constant":
            return torch.where(bad, torch.tensor(torch.inf), 0.0) + 0 * value
        return value * torch.where(bad, torch.tensor(torch.nan), torch.tensor(1.0))


@pytest.mark.parametrize("how", ["gradient", "constant"])
def test_a_loss_that_is_no_number_stops_the_run(adata, how):
    fcr = tiny_fcr(adata, penalties={"own": (Explodes(how), 1.0)})
    with pytest.raises(
        NonFiniteError, match=r"not finite at site own, cells \[.*epoch 1"
    ) as error:
        fit(fcr, batch_size=64, max_epochs=3)
    assert "17" in str(error.value) or str(fcr.cells.names[17]) in str(error.value)
    assert all(torch.isfinite(v).all() for v in weights(fcr).values())
    with pytest.raises(NotFittedError, match="no training run"):
        fcr.latents()


def test_the_weights_before_the_bad_step_are_kept(adata, monkeypatch):
    from pyro_fcr.infer import Trainer

    fcr = tiny_fcr(adata, penalties={"own": (Explodes(), 1.0)})
    seen = []
    original = Trainer.step

    def stepping(self, batch):
        seen.append({k: v.clone() for k, v in self.objective.state_dict().items()})
        return original(self, batch)

    monkeypatch.setattr(Trainer, "step", stepping)
    with pytest.raises(NonFiniteError):
        fit(fcr, max_epochs=3)
    assert same(seen[-1], weights(fcr))


def test_critics_are_frozen_while_the_encoders_step(adata, monkeypatch):
    from pyro_fcr.infer import Trainer

    fcr = tiny_fcr(adata, penalties={"z_x_vs_z_tx": 1.0})
    critic, moved = fcr._objective.critic_parameters(), []
    learn, advance = Trainer._critic_gradients, Trainer._advance

    def learning(self, draws, batch):
        # Later on the gradients are those of the critics' own last step.
        if self.step_count == 0:
            assert all(p.grad is None for p in critic)
        return learn(self, draws, batch)

    def advancing(self, batch, values):
        before = [p.detach().clone() for p in critic]
        record = advance(self, batch, values)
        moved.append(any(not torch.equal(a, b) for a, b in zip(before, critic, strict=True)))
        return record

    monkeypatch.setattr(Trainer, "_critic_gradients", learning)
    monkeypatch.setattr(Trainer, "_advance", advancing)
    fit(fcr, max_epochs=1)
    assert moved
    assert all(moved)


def test_random_states_outside_are_untouched(adata, fitted):
    fcr = tiny_fcr(adata)
    torch.manual_seed(1)
    np.random.seed(2)  # noqa: NPY002
    random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    tiny_fcr(adata)
    fit(fcr)
    fitted.latents()
    fitted.posterior(draws=2)
    fitted.posterior_predictive(draws=1)
    fitted.counterfactual(do={"treatment": "A"}, draws=2)
    fitted.reconstruct(draws=1)
    fitted.certificate(replicates=20)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert before[2] == random.getstate()


def test_validation_settings_outside_are_untouched(adata):
    for on in (True, False):
        with pyro.validation_enabled(on):
            fit(tiny_fcr(adata), max_epochs=1)
            assert pyro.settings.get("validate_poutine") is on
            assert dist.Normal(0.0, 1.0)._validate_args is on


def snapshot(adata):
    return (
        adata.X.copy(), adata.obs.copy(), adata.var.copy(), sorted(adata.obsm), sorted(adata.uns),
        sorted(adata.layers),
    )  # fmt: skip


def test_nothing_is_written_to_adata_unless_asked():
    adata = tiny_adata(per_condition=8)
    before = snapshot(adata)
    fcr = tiny_fcr(adata)
    fit(fcr)
    fcr.latents(adata)
    fcr.get_latent_representation(adata)
    fcr.posterior(adata, draws=2)
    fcr.counterfactual(adata, do={"treatment": "B"}, draws=2)
    fcr.reconstruct(adata, draws=2)
    after = snapshot(adata)
    np.testing.assert_array_equal(before[0], after[0])
    pd.testing.assert_frame_equal(before[1], after[1])
    assert before[3:] == after[3:]
    fcr.latents(adata, key_added="fcr")
    assert sorted(adata.obsm) == ["X_fcr_z_t", "X_fcr_z_tx", "X_fcr_z_x"]
    np.testing.assert_array_equal(adata.obsm["X_fcr_z_t"], fcr.latents(adata)["z_t"])
    with pytest.raises(DesignError, match=r"nowhere to write \(key_added\)"):
        fcr.latents(key_added="fcr")


# ---- what a system refuses -----------------------------------------------------------------


def test_verbs_before_fit_say_so(adata):
    fcr = tiny_fcr(adata)
    calls = [
        fcr.latents, fcr.posterior, fcr.reconstruct, fcr.posterior_predictive, fcr.certificate,
        fcr.get_latent_representation, fcr.evaluate,
        lambda: fcr.counterfactual(do={"treatment": "A"}), lambda: fcr.history,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(NotFittedError, match=r"the model is not trained .*call fit\(\)"):
            call()


def test_fcr_needs_treatments_and_covariates(adata):
    with pytest.raises(SchemaError, match="FCR needs covariates"):
        pf.FCR(adata, pf.Schema(treatment="drug", control="ctrl"))


# ---- latents and posterior -----------------------------------------------------------------


def test_latents_follow_the_cells(adata, fitted):
    order = np.random.default_rng(0).permutation(adata.n_obs)
    whole = fitted.latents(adata)
    assert {k: v.shape for k, v in whole.items()} == {
        k: (adata.n_obs, d) for k, d in SIZES.items()
    }
    mixed = fitted.latents(adata[order])
    for name, frame in mixed.items():
        assert list(frame.index) == list(adata.obs_names[order])
        np.testing.assert_allclose(frame, whole[name].loc[frame.index], rtol=1e-4, atol=1e-5)
    genes = adata[:, ::-1].copy()
    np.testing.assert_array_equal(fitted.latents(genes)["z_x"], whole["z_x"])
    as_sparse = adata.copy()
    as_sparse.X = sparse.csr_matrix(adata.X)
    np.testing.assert_array_equal(fitted.latents(as_sparse)["z_x"], whole["z_x"])


def test_latent_representation_is_the_array(adata, fitted):
    frames = fitted.latents(adata)
    z = fitted.get_latent_representation(adata, "z_t")
    assert z.dtype == np.float32
    np.testing.assert_array_equal(z, frames["z_t"])
    everything = fitted.get_latent_representation(adata)
    np.testing.assert_array_equal(
        everything, np.concatenate([frames[b] for b in ("z_x", "z_t", "z_tx")], axis=1)
    )
    with pytest.raises(DesignError, match=r"no block is called 'z_y'.*\['z_x', 'z_t', 'z_tx'\]"):
        fitted.get_latent_representation(adata, "z_y")


def test_label_free_encoders_embed_cells_of_unknown_labels(adata, fitted):
    bare = ad.AnnData(adata.X.copy(), var=adata.var.copy(),
                      obs=pd.DataFrame(index=adata.obs_names))  # fmt: skip
    for name, frame in fitted.latents(bare).items():
        np.testing.assert_array_equal(frame, fitted.latents(adata)[name])
    tree = fitted.posterior(bare[:5], draws=2)
    assert "drug" not in tree["posterior"].coords


def test_posterior_dimensions_and_coordinates(adata, fitted):
    tree = fitted.posterior(adata[:30], draws=50, seed=1)
    post = tree["posterior"]
    for name, size in SIZES.items():
        assert post[name].dims == ("chain", "draw", "cell", f"{name}_dim")
        assert post[name].shape == (1, 50, 30, size)
    assert list(post.coords["cell"].values) == list(adata.obs_names[:30])
    assert list(post.coords["drug"].values) == list(adata.obs["drug"][:30].astype(str))
    assert list(post.coords["type"].values) == list(adata.obs["type"][:30].astype(str))
    again = fitted.posterior(adata[:30], draws=50, seed=1)["posterior"]
    np.testing.assert_array_equal(again["z_x"], post["z_x"])
    other = fitted.posterior(adata[:30], draws=50, seed=2)["posterior"]
    assert not np.allclose(other["z_x"], post["z_x"])


def test_posterior_draws_have_the_guides_moments(adata, fitted):
    n = 2000
    post = fitted.posterior(adata[:4], draws=n)["posterior"]
    moments = fitted._moments(fitted.encode(adata[:4]))
    for name, (mean, sd) in moments.items():
        draws = post[name].values[0]
        assert np.abs((draws.mean(0) - mean) / sd).max() < 5 / np.sqrt(n)
        np.testing.assert_allclose(draws.std(0), sd, rtol=0.1)


def test_one_draw_works_everywhere(adata, fitted):
    few = adata[:3]
    assert fitted.posterior(few, draws=1)["posterior"]["z_x"].shape == (1, 1, 3, 3)
    for made in (
        fitted.counterfactual(few, do={"treatment": "A"}, draws=1),
        fitted.reconstruct(few, draws=1),
    ):
        assert (made.layers["sd"] == 0).all()
        np.testing.assert_array_equal(made.layers["q05"], made.X)
        np.testing.assert_array_equal(made.layers["q95"], made.X)
    assert fitted.posterior_predictive(few, draws=1)["posterior_predictive"].sizes["draw"] == 1
    assert fitted.latents(adata[:1])["z_x"].shape == (1, 3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning",
                            "ignore::UserWarning", "ignore::RuntimeWarning")  # fmt: skip
def test_to_arviz_is_summarised(adata, fitted):
    data = pf.to_arviz(fitted.posterior(adata[:3], draws=20))
    summary = az.summary(data, var_names=["z_t"])
    assert len(summary) == 3 * SIZES["z_t"]
    assert np.isfinite(summary["mean"]).all()
    predictive = pf.to_arviz(fitted.posterior_predictive(adata[:3], draws=4))
    assert predictive["posterior_predictive"]["counts"].shape == (1, 4, 3, 20)


def test_posterior_predictive_counts(adata, fitted):
    tree = fitted.posterior_predictive(adata, draws=20)
    drawn = tree["posterior_predictive"]["counts"]
    assert drawn.dims == ("chain", "draw", "cell", "gene")
    assert (drawn == drawn.round()).all()
    np.testing.assert_array_equal(tree["observed_data"]["counts"], adata.X)
    # The library sizes are kept in expectation: softmax shares of each cell's own total.
    ratio = drawn.values[0].sum(-1).mean(0) / adata.X.sum(1)
    assert abs(ratio.mean() - 1) < 0.03


# ---- counterfactuals -----------------------------------------------------------------------


def test_counterfactual_and_reconstruction_differ(adata, fitted):
    treated = adata[adata.obs["drug"] == "A"]
    back = fitted.counterfactual(treated, do={"treatment": "ctrl"}, draws=20)
    rec = fitted.reconstruct(treated, draws=20)
    assert not np.allclose(back.X, rec.X, rtol=0.05)
    # Each cell's own library size is what both hand out.
    np.testing.assert_allclose(back.X.sum(1), treated.X.sum(1), rtol=1e-4)
    np.testing.assert_allclose(rec.X.sum(1), treated.X.sum(1), rtol=1e-4)


def test_counterfactual_labels_and_layers(adata, fitted):
    made = fitted.counterfactual(adata[:40], do={"treatment": "B"}, draws=5)
    assert list(made.obs_names) == list(adata.obs_names[:40])
    assert list(made.var_names) == list(adata.var_names)
    assert set(made.layers) - {None} == {"sd", "q05", "q95"}
    assert (made.obs["drug"] == "B").all()
    assert list(made.obs["drug_factual"].astype(str)) == list(adata.obs["drug"][:40].astype(str))
    assert "type_factual" not in made.obs
    assert list(made.obs["type"].astype(str)) == list(adata.obs["type"][:40].astype(str))
    assert made.uns["counterfactual"]["redrawn"] == ["z_t", "z_tx"]
    assert (made.layers["q05"] <= made.layers["q95"]).all()
    assert (made.layers["sd"] > 0).all()


def test_quantiles_and_spread_are_those_of_the_draws(adata, fitted):
    # The same draws, by hand: q from the guide, expected counts from the decoder.
    few = adata[:6]
    made = fitted.reconstruct(few, draws=40, seed=3)
    batch = fitted.encode(few).batch()
    with seeded(3, 1), torch.no_grad():
        means = []
        for _ in range(40):
            trace = pyro.poutine.trace(fitted.guide).get_trace(batch)
            z = {n: trace.nodes[n]["value"] for n in SIZES}
            means.append(fitted.model.observation(z, batch).mean)
    means = torch.stack(means).numpy()
    np.testing.assert_allclose(made.X, means.mean(0), rtol=1e-5)
    np.testing.assert_allclose(made.layers["sd"], means.std(0, ddof=1), rtol=1e-4)
    np.testing.assert_allclose(made.layers["q95"], np.quantile(means, 0.95, axis=0), rtol=1e-4)


def test_a_counterfactual_moves_towards_the_treated_cells(adata):
    fcr = tiny_fcr(adata)
    fit(fcr, max_epochs=60, batch_size=108, learning_rate=2e-2)
    change, truth = [], []
    for x in TYPES:
        control = adata[(adata.obs["drug"] == "ctrl") & (adata.obs["type"] == x)]
        treated = adata[(adata.obs["drug"] == "A") & (adata.obs["type"] == x)]
        share = lambda c: np.asarray(c).sum(0) / np.asarray(c).sum()  # noqa: E731
        made = fcr.counterfactual(control, do={"treatment": "A"}, draws=20)
        start = fcr.counterfactual(control, do={"treatment": "ctrl"}, draws=20)
        change.append(np.log(share(made.X) / share(start.X)))
        truth.append(np.log((share(treated.X) + 1e-4) / (share(control.X) + 1e-4)))
    assert np.corrcoef(np.concatenate(change), np.concatenate(truth))[0, 1] > 0.8


def test_do_on_a_covariate(adata, fitted):
    made = fitted.counterfactual(adata[:20], do={"type": "w"}, draws=4)
    assert made.uns["counterfactual"]["redrawn"] == ["z_tx", "z_x"]
    assert (made.obs["type"] == "w").all()
    assert list(made.obs["drug"].astype(str)) == list(adata.obs["drug"][:20].astype(str))
    both = fitted.counterfactual(adata[:20], do={"type": "w", "treatment": "A"}, draws=4)
    assert both.uns["counterfactual"]["redrawn"] == ["z_t", "z_tx", "z_x"]


def test_unknown_interventions_are_refused(adata, fitted):
    with pytest.raises(CategoryError, match="'C'"):
        fitted.counterfactual(adata, do={"treatment": "C"})
    with pytest.raises(CategoryError, match="donor"):
        fitted.counterfactual(adata, do={"donor": "d1"})


def test_an_unseen_combination(adata, fitted):
    made = fitted.counterfactual(adata[:20], do={"treatment": "A+B"}, draws=4)
    assert (made.obs["drug"] == "A+B").all()
    assert np.isfinite(made.X).all()
    swapped = fitted.counterfactual(adata[:20], do={"treatment": "B+A"}, draws=4)
    np.testing.assert_array_equal(made.X, swapped.X)


def test_doses():
    adata = tiny_adata(per_condition=16)
    rng = np.random.default_rng(0)
    dose = rng.choice([0.5, 1.0], adata.n_obs)
    adata.obs["dose"] = np.where(adata.obs["drug"] == "ctrl", 0.0, dose)
    fcr = tiny_fcr(adata, schema=tiny_schema(dose="dose"))
    fit(fcr, max_epochs=10)
    few = adata[adata.obs["drug"] == "ctrl"][:10]
    made = {d: fcr.counterfactual(few, do={"treatment": "A", "dose": d}, draws=30).X
            for d in (0.5, 1.0)}  # fmt: skip
    assert not np.allclose(made[0.5], made[1.0])
    pair = fcr.counterfactual(few, do={"treatment": "A+B", "dose": "0.5+1.0"}, draws=3)
    assert np.isfinite(pair.X).all()
    assert set(pair.obs["dose"].astype(str)) == {"0.5+1"} or len(pair.obs["dose"].unique()) == 1


def test_counterfactuals_of_cells_whose_needed_labels_are_unknown(adata, fitted):
    # z_tx is drawn from p(z_tx | x, do t): without x there is nothing to draw from.
    unknown = adata[:10].copy()
    del unknown.obs["type"]
    with pytest.raises(DesignError, match="type"):
        fitted.counterfactual(unknown, do={"treatment": "A"}, draws=2)
    assert fitted.reconstruct(unknown, draws=2).shape == (10, 20)


# ---- custom parts --------------------------------------------------------------------------


class Hill(pf.Prior):
    def __init__(self, size):
        super().__init__()
        self.slope = PyroSample(dist.Normal(0.0, 1.0).expand([size]).to_event(1))

    def forward(self, batch):
        return dist.Normal(self.slope * batch.dose.log1p()[:, None], 1.0).to_event(1)


@pytest.mark.parametrize("globals_guide", [AutoNormal, AutoLowRankMultivariateNormal])
@pytest.mark.parametrize("labels", [False, True])
def test_a_prior_of_ones_own_with_a_bayesian_parameter(adata, globals_guide, labels):
    locals_guide = pf.guides.Amortised(labels=labels, width=8, depth=1)
    guide = pf.guides.Composed(locals=locals_guide, globals=globals_guide)
    fcr = tiny_fcr(adata, priors={"z_t": Hill(2)}, guide=guide)
    history = fit(fcr, max_epochs=3)
    assert "kl.priors.z_t.slope" in history
    post = fcr.posterior(adata[:5], draws=7)["posterior"]
    slope = post["priors.z_t.slope"]
    assert slope.dims[:2] == ("chain", "draw")
    assert slope.shape == (1, 7, 2)
    assert slope.values.std(1).min() > 0
    assert set(fcr.latents()) == set(SIZES)
    assert np.isfinite(fcr.counterfactual(adata[:5], do={"treatment": "A"}, draws=2).X).all()


def test_the_default_guide_covers_globals(adata):
    fcr = pf.FCR(adata, tiny_schema(), sizes=SIZES, priors={"z_t": Hill(2)}, hidden=(8,))
    assert "kl.priors.z_t.slope" in fit(fcr, max_epochs=1)


class Own(nn.Module):
    """A guide that knows nothing of this package."""

    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleDict({k: nn.Linear(20, 2 * d) for k, d in SIZES.items()})

    def forward(self, batch):
        x = batch.counts.log1p()
        with pyro.plate("cells", batch.n_cells, subsample=batch.index):
            for name, net in self.nets.items():
                loc, raw = net(x).chunk(2, -1)
                pyro.sample(name, dist.Normal(loc, raw.tanh().exp()).to_event(1))


def test_a_guide_of_ones_own(adata):
    fcr = tiny_fcr(adata, guide=Own())
    history = fit(fcr, max_epochs=10)
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert fcr.latents()["z_x"].shape == (adata.n_obs, 3)
    assert np.isfinite(fcr.counterfactual(do={"treatment": "A"}, draws=2).X).all()


def test_labelled_encoders_refuse_cells_without_labels(adata):
    fcr = tiny_fcr(adata, guide=pf.guides.Amortised(labels=True, width=8, depth=1))
    fit(fcr)
    bare = ad.AnnData(adata.X[:5].copy(), var=adata.var.copy())
    with pytest.raises(DesignError, match="the encoders read a label"):
        fcr.latents(bare)


# ---- penalties do what they say ------------------------------------------------------------


def planted(n=120, seed=0):
    """Two cell types whose treated cells differ in the same genes as the types do."""
    rng = np.random.default_rng(seed)
    t, x = np.tile([0, 1], n), np.repeat([0, 1], n)
    z = rng.normal(size=(2 * n, 3))
    loadings = rng.normal(size=(3, 20))
    rate = np.exp(1.0 + 0.4 * z @ loadings + 0.8 * np.outer(t, loadings[0])
                  + 0.8 * np.outer(x, loadings[1]))  # fmt: skip
    obs = pd.DataFrame({"drug": np.array(["ctrl", "A"])[t], "type": np.array(["u", "v"])[x]})
    obs.index = [f"c{i}" for i in range(2 * n)]
    return ad.AnnData(rng.poisson(rate.clip(max=200)).astype("float32"), obs=obs)


@pytest.mark.filterwarnings("ignore::pyro_fcr.errors.DesignWarning")
def test_training_with_the_penalty_lowers_what_a_fresh_classifier_finds():
    adata = planted()
    auc = {}
    for on in (False, True):
        fcr = pf.FCR(
            adata, tiny_schema(), sizes={"z_x": 3, "z_t": 2, "z_tx": 1}, hidden=(16,),
            guide=pf.guides.Amortised(width=32, depth=1),
            penalties={} if on else penalties_off(),
        )  # fmt: skip
        fit(fcr, max_epochs=150, batch_size=240, learning_rate=1e-2, weight_decay=0.0)
        z_x = fcr.latents()["z_x"].to_numpy()
        scores = []
        for x in ("u", "v"):
            rows = (adata.obs["type"] == x).to_numpy()
            score = cross_val_score(LogisticRegression(), z_x[rows], adata.obs["drug"][rows],
                                    cv=5, scoring="roc_auc")  # fmt: skip
            scores.append(score.mean())
        auc[on] = np.mean(scores)
    assert auc[False] > 0.65
    assert auc[True] < 0.6
    assert auc[True] < auc[False] - 0.1


# ---- judgement -----------------------------------------------------------------------------


def test_certificate_returns_a_verdict(fitted):
    found = fitted.certificate(replicates=20)
    assert found.verdict in ("identified", "not identified", "undetermined")
    assert found.verdict in str(found)


def test_evaluate_sets_the_model_beside_baselines(adata, split):
    fcr = tiny_fcr(adata)
    fit(fcr, split=split)
    table = fcr.evaluate(adata, split, draws=3)
    assert "FCR" in table.index or "FCR" in set(table.get("method", []))
    assert {"r2", "pearson_change", "energy_distance"} <= set(table.columns)
    assert len(table) >= 5


def test_blocks_of_more_labels_than_another_are_priced_and_no_others(adata):
    assert tiny_fcr(adata)._objective.priced == {"z_tx"}
    assert pf.VAE(adata, tiny_schema())._objective.priced == frozenset()


def test_globals_cost_held_out_cells_what_they_cost_trained_ones() -> None:
    adata = tiny_adata()
    split = pf.splits.random(adata, test=0.1, valid=0.1, seed=0)
    fcr = pf.FCR(adata, tiny_schema(), sizes=SIZES, priors={"z_t": pf.priors.Hierarchical()})
    fcr.fit(split=split, max_epochs=1, learning_rate=1e-9, progress=False)
    row = fcr.history.iloc[-1]
    names = [name for name in row.index if name.startswith("kl.priors.")]
    assert names
    for name in names:
        assert row[f"valid.{name}"] == pytest.approx(row[name], rel=0.05)
