"""The certificate reads the learned prior; the cells only say how noisy it is."""

import dataclasses

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroSample
from tiny import fit, levels_design, tiny_adata, tiny_cells, tiny_fcr

import pyro_fcr as pf
from pyro_fcr.analysis.certificate import interaction_certificate, learned_prior
from pyro_fcr.analysis.conditions import condition_cells
from pyro_fcr.errors import DesignError

T, X, N, PER_CONDITION = 5, 4, 2, 150


@pytest.fixture(scope="module")
def cells():
    return condition_cells(levels_design(T, X), repeats=PER_CONDITION)


@pytest.fixture(scope="module")
def truth():
    rng = np.random.default_rng(1)
    return rng.normal(0, 1.5, (T, X, N)), np.exp(rng.uniform(np.log(0.4), np.log(1.6), (T, X, N)))


@pytest.fixture(scope="module")
def latents(cells, truth):
    loc, scale = (a[cells.treatment_id, cells.covariate_id] for a in truth)
    return loc + scale * np.random.default_rng(2).standard_normal(loc.shape)


def certify(latents, cells, prior, **options):
    options = {"replicates": 60, "seed": 0, **options}
    return interaction_certificate(latents, np.zeros_like(latents), cells, prior=prior, **options)


def test_a_prior_that_the_cells_follow_is_identified(latents, cells, truth):
    assert certify(latents, cells, truth).verdict == "identified"


@pytest.mark.parametrize("spread", ["standard", "fixed"])
def test_the_verdict_is_the_priors_not_the_cells(latents, cells, truth, spread):
    loc = np.zeros_like(truth[0]) if spread == "standard" else truth[0]
    found = certify(latents, cells, (loc, np.ones_like(loc)))
    assert found.verdict == "not identified"
    assert "scale that is fixed" in found.reason


def test_a_prior_far_from_the_cells_leaves_it_open(latents, cells, truth):
    loc, scale = truth
    found = certify(latents, cells, (loc + 2 * scale, scale))
    assert found.verdict == "undetermined"
    assert "prior and cells disagree, their means are 2.0 prior standard" in found.reason


def test_conditions_without_cells_do_not_count(latents, cells, truth):
    # Interaction is in the conditions of the last treatment alone, which then has no cells.
    kept = cells.treatment_id < T - 1
    loc, scale = truth[0].copy(), truth[1].copy()
    loc[: T - 1], scale[: T - 1] = loc[:1, :1], scale[:1, :1]
    found = certify(latents[kept], cells.subset(kept), (loc, scale))
    assert found.verdict == "not identified"
    assert found.n_contrasts == (T - 2) * (X - 1)
    # And one condition fewer is one contrast fewer.
    kept = (cells.treatment_id != 2) | (cells.covariate_id != 1)
    found = certify(latents[kept], cells.subset(kept), truth)
    assert found.n_contrasts == (T - 1) * (X - 1) - 1


def test_cells_of_unknown_conditions_are_left_out(latents, cells, truth):
    odd = np.random.default_rng(3).random(len(cells)) < 0.2
    wrong = np.where(odd[:, None], 50.0, latents)
    codes = np.where(odd, -1, cells.covariate_id)
    found = certify(wrong, dataclasses.replace(cells, covariate_id=codes), truth)
    assert str(found) == str(certify(latents[~odd], cells.subset(~odd), truth))
    nowhere = dataclasses.replace(cells, treatment_id=np.full(len(cells), -1))
    with pytest.raises(DesignError, match="no cell tells its condition"):
        certify(latents, nowhere, truth)


def test_noise_is_the_cells_own(latents, cells, truth):
    few = np.tile(np.arange(PER_CONDITION) < 50, T * X)
    many, found = certify(latents, cells, truth), certify(latents[few], cells.subset(few), truth)
    assert found.singular_values == pytest.approx(many.singular_values)
    # A test of n cells detects effects in proportion to one over the root of n.
    assert found.detectable / many.detectable == pytest.approx(np.sqrt(150 / 50), rel=0.15)


@pytest.mark.parametrize(
    ("prior", "verdicts"),
    [
        (pf.priors.Standard(), {"not identified"}),
        (pf.priors.Gaussian(learn_scale=False), {"not identified"}),
        (None, {"identified", "undetermined"}),
    ],
)
def test_a_fitted_prior_decides(prior, verdicts):
    # One latent dimension: the four contrasts of three treatments and types suffice for it.
    adata = tiny_adata()
    fcr = tiny_fcr(
        adata,
        sizes={"z_x": 3, "z_t": 2, "z_tx": 1},
        priors={} if prior is None else {"z_tx": prior},
    )
    fit(fcr, max_epochs=40)
    assert fcr.certificate(replicates=20).verdict in verdicts


def test_a_loaded_model_certifies_given_cells(tmp_path):
    adata = tiny_adata()
    split = pf.splits.hold_out(adata, {"type": ["u"], "drug": ["A"]})
    fcr = tiny_fcr(adata)
    fit(fcr, split=split)
    loaded = pf.load(fcr.save(tmp_path / "model"), guide=pf.guides.Amortised(width=16, depth=1))
    options = {"replicates": 20}
    before, after = fcr.certificate(**options), loaded.certificate(adata, split, **options)
    assert str(before) == str(after)
    # The condition held out of training does not count, unless its cells are given as trained.
    assert before.n_contrasts == 3
    assert loaded.certificate(adata, **options).n_contrasts == 4
    with pytest.raises(DesignError, match=r"no interaction block.*block='z_q'"):
        fcr.certificate(block="z_q")
    bare = adata.copy()
    del bare.obs["type"]
    with pytest.raises(DesignError, match="the certificate read a label"):
        loaded.certificate(bare, **options)


def test_learned_prior_is_the_priors_own_table():
    fcr = tiny_fcr()
    fit(fcr)
    loc, scale = learned_prior(fcr.model, fcr.guide, "z_tx", fcr.design)
    cells = tiny_cells()
    with torch.no_grad():
        made = fcr.model.priors["z_tx"](cells.batch())
    pick = cells.treatment_id, cells.covariate_id
    np.testing.assert_allclose(loc[pick], made.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scale[pick], made.stddev, rtol=1e-5)


class Skewed(pf.Prior, PyroModule):
    """A flow of known moments, shifted by a parameter with a posterior."""

    def bind(self, block, design):
        self.size = block.size
        self.shift = PyroSample(dist.Normal(torch.zeros(()), 1.0))

    def forward(self, batch):
        base = dist.Normal(self.shift * torch.ones(len(batch), self.size), 1.0)
        return dist.TransformedDistribution(base, [dist.transforms.AffineTransform(3.0, 2.0)])\
            .to_event(1)  # fmt: skip


def test_a_prior_without_a_mean_of_its_own_is_drawn_from():
    fcr = tiny_fcr(priors={"z_tx": Skewed()})
    fit(fcr, max_epochs=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loc, scale = learned_prior(fcr.model, fcr.guide, "z_tx", fcr.design)
        shift = fcr.guide.global_guide.median()
    expected = 3 + 2 * next(iter(shift.values())).item()
    assert loc == pytest.approx(np.full(loc.shape, expected), abs=0.6)
    # The uncertainty of the shift is no part of the prior's scale.
    assert scale == pytest.approx(np.full(scale.shape, 2.0), rel=0.02)
