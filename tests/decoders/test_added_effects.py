"""Effects that a decoder adds to latents: what may stand for them, and how sparse ones settle."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from tiny import fit, tiny_adata, tiny_schema

import pyro_fcr as pf
from pyro_fcr.decoders import AdditiveDecoder
from pyro_fcr.errors import DesignError, SlotError
from pyro_fcr.infer import gauge
from pyro_fcr.nn import Block
from pyro_fcr.priors import SparseShift

SMALL = {"hidden": (8,), "guide": pf.guides.Amortised(width=8, depth=1)}


def added(effects, **options):
    decoder = AdditiveDecoder((), effects=effects)
    return pf.VAE(tiny_adata(), tiny_schema(), sizes={"z": 3}, decoder=decoder, **SMALL, **options)


@pytest.mark.parametrize(
    ("effects", "why"),
    [
        (pf.priors.NonFactorised(), "without normaliser"),
        (pf.priors.VampPrior(), "reads the guide's posterior"),
        (pf.priors.Flow(), "without a known mean"),
    ],
)
def test_priors_without_a_mean_to_be_learned_are_refused(effects, why):
    told = rf"{type(effects).__name__} cannot stand for effects .AdditiveDecoder.*{why}"
    with pytest.raises(SlotError, match=told):
        added(effects)


class Halfway(pf.Prior):
    """Settles, but cannot say what it adds."""

    def forward(self, batch):
        return dist.Normal(batch.library.new_zeros(len(batch), 3), 1.0).to_event(1)

    def settle(self, batch, size, loc, variance):
        pass


def test_what_settles_must_tell_what_it_adds():
    with pytest.raises(SlotError, match="Halfway cannot stand for effects.*expected"):
        added(Halfway())


def sparse(n_latent=3):
    """A VAE whose decoder adds sparse effects, fitted a little."""
    made = added(SparseShift())
    fit(made, max_epochs=3)
    return made


def test_targets_are_asked_of_the_decoders_effects():
    model = sparse()
    table = model.targets()
    prior = model.model.decoder.effects
    assert list(table.index.get_level_values("latent").unique()) == ["z_0", "z_1", "z_2"]
    inclusion = table["inclusion"].unstack().loc[list(model.design.treatments)].to_numpy()
    np.testing.assert_allclose(inclusion, torch.sigmoid(prior.mask_logits).detach(), rtol=1e-4)
    assert model.targets("decoder.effects").equals(table)
    assert list(model.gene_programs()) == ["z_0", "z_1", "z_2"]
    with pytest.raises(DesignError, match="which block is open"):
        model.targets("z")


def test_they_settle_on_the_latents_they_are_added_to():
    """The optimum is a spike and slab of z + effect, as for a prior of the block itself."""
    model = sparse()
    cells, decoder = model.cells, model.model.decoder
    condition = torch.from_numpy(cells.condition_id)
    mean, sd = (torch.from_numpy(part) for part in model._moments(cells)["z"])
    dose = torch.from_numpy(cells.treatment) / decoder.effects.dose_unit
    on = torch.sigmoid(decoder.effects.mask_logits) * 5.0 * decoder.effects.shift_loc
    total = mean + (dose @ on).detach()
    alone = SparseShift()
    alone.bind(Block("effects", 3, frozenset({"treatment"})), model.design)
    gauge.settle(alone, moments=(total, sd**2), condition=condition, batch=cells.batch)
    model._milestones(cells).settle()
    torch.testing.assert_close(decoder.effects.mask_logits, alone.mask_logits)
    torch.testing.assert_close(decoder.effects.shift_loc, alone.shift_loc)


@pytest.mark.parametrize("effects", [SparseShift(), pf.priors.Gaussian(), None])
def test_a_turn_changes_nothing_that_is_decoded(effects):
    model = added(effects) if effects else pf.CPA(
        tiny_adata(), tiny_schema(), sizes={"z_basal": 3}, **SMALL
    )  # fmt: skip
    decoder, batch = model.model.decoder, model.cells.batch()
    with torch.no_grad():
        for table in decoder.parameters():
            table.add_(0.1 * torch.randn(table.shape))
        if isinstance(effects, SparseShift):
            decoder.effects.mask_logits.fill_(50.0)

        def latents():
            if isinstance(effects, SparseShift):
                return decoder.effects.expected(batch)
            return decoder.shift(batch)

        matrix, z = torch.randn(3, 3), torch.randn(len(batch), 3)
        before = decoder.network(z + latents(), batch)
        decoder.turn(slice(0, 3), torch.linalg.inv(matrix))
        if isinstance(effects, SparseShift):
            decoder.effects.mask_logits.fill_(50.0)
        after = decoder.network(z @ matrix.T + latents(), batch)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)


def test_a_block_is_turned_onto_their_axes_where_its_prior_does_not_mind(monkeypatch):
    seen = []
    monkeypatch.setattr(gauge, "align", lambda name, **more: seen.append((name, more["prior"])))
    model = sparse()
    assert seen == [("z", model.model.decoder.effects)] * len(gauge.TURNS)
    seen.clear()
    fit(added(SparseShift(), priors={"z": pf.priors.Mixture()}), max_epochs=2)
    assert seen == []


def test_new_treatments_are_refused_where_the_latents_do_not_hold_the_effect():
    with pytest.raises(DesignError, match="a new treatment cannot be learned alone"):
        sparse().transfer(renamed())


def renamed():
    adata = tiny_adata()
    adata.obs["drug"] = adata.obs["drug"].astype(str).replace({"B": "C"}).astype("category")
    return adata


@pytest.mark.slow
def test_samsvae_finds_planted_targets():
    """Without turning and settling its masks stay open: MCC .6 and F1 .33 at best."""
    adata = pf.simulate.sparse_shifts(
        n_treatments=18, n_per_treatment=100, n_latent=5, most_targets=1, n_held_out=0, seed=1
    )
    schema = pf.Schema(treatment="treatment", control="control")
    model = pf.SAMSVAE(adata, schema, sizes={"z_basal": 5})
    model.fit(max_epochs=80, device="cpu", progress=False)
    table = model.targets()["inclusion"].unstack()
    truth = adata.uns["simulation"]
    names = [str(name) for name in truth["treatments"]]
    on = table.loc[names].to_numpy()
    effect = model.targets()["shift"].unstack().loc[names].to_numpy() * on
    order, _ = pf.evaluate.match_latents(effect, truth["shift"] * truth["mask"])
    scores = pf.evaluate.score_targets(on[:, order], np.asarray(truth["mask"], bool))
    assert scores["f1"] > 0.8
