"""The prior that is the guide's own average."""

import pytest
import torch
from pyro import distributions as dist
from pyro.nn import PyroModule
from tiny import SIZES, fit, tiny_adata, tiny_fcr

import pyro_fcr as pf
from pyro_fcr.errors import SlotError


@pytest.fixture(scope="module")
def fcr():
    made = tiny_fcr(
        tiny_adata(per_condition=10),
        priors=dict.fromkeys(SIZES, pf.priors.VampPrior(components=4)),
        guide=pf.guides.Amortised(labels=True, width=16, depth=1),
    )
    fit(made)
    return made


def test_it_is_the_average_of_the_guides_posteriors(fcr):
    prior, batch = fcr.model.priors["z_tx"], fcr.cells.batch(slice(0, 6))
    parts = fcr.guide.locals.posteriors(prior.pseudo_cells())["z_tx"]
    assert parts.batch_shape == (4,)
    z = torch.randn(6, 2)
    weight = prior.table(batch).log_softmax(-1)
    every = torch.stack([parts.log_prob(one) for one in z])
    expected = torch.logsumexp(weight + every, dim=-1)
    torch.testing.assert_close(prior(batch).log_prob(z), expected)
    with torch.no_grad():
        equal = [p.clone() for p in prior.table.parameters()]
        for parameter in prior.table.parameters():
            parameter.zero_()
    average = every.exp().mean(-1).log()
    torch.testing.assert_close(prior(batch).log_prob(z), average)
    with torch.no_grad():
        for parameter, value in zip(prior.table.parameters(), equal, strict=True):
            parameter.copy_(value)


def test_pseudo_cells_are_cells(fcr):
    cells = fcr.model.priors["z_x"].pseudo_cells()
    torch.testing.assert_close(cells.counts.sum(1), cells.library)
    assert (cells.counts >= 0).all()
    # The labels of conditions in turn, so that encoders with labels can be asked.
    labels = torch.stack([cells.treatment_id, cells.covariate_id], dim=1)
    assert len(labels.unique(dim=0)) == 4
    rows = torch.tensor(fcr.design.treatment_rows)[cells.treatment_id]
    assert torch.equal(cells.treatment, rows)


def test_the_encoders_learn_from_it(fcr):
    prior, batch = fcr.model.priors["z_t"], fcr.cells.batch(slice(0, 5))
    fcr.guide.zero_grad()
    prior(batch).log_prob(torch.randn(5, 2)).sum().backward()
    assert prior.pseudo.grad.abs().sum() > 0
    assert fcr.guide.locals.encoders.first_weight_gk.grad.abs().sum() > 0
    names = [name for name, _ in fcr.model.named_parameters()]
    assert not any("encoders" in name for name in names), "the guide keeps its weights"


def test_each_model_asks_its_own_guide(fcr):
    again = tiny_fcr(priors={"z_t": pf.priors.VampPrior(components=4)})
    mine = again.model.priors["z_t"]._posteriors.__self__
    assert mine is again.guide.locals
    assert mine is not fcr.guide.locals


def test_beside_steps_on_the_cells_own_elbo():
    refined = pf.guides.SemiAmortised(pf.guides.Amortised(width=8), steps=2)
    priors = {"z_t": pf.priors.VampPrior(components=4)}
    made = tiny_fcr(tiny_adata(per_condition=6), priors=priors, guide=refined)
    fit(made)
    prior = made.model.priors["z_t"]
    parts = made.guide.locals.base.posteriors(prior.pseudo_cells())["z_t"]
    torch.testing.assert_close(prior.parts().mean, parts.mean)
    assert made.latents()["z_t"].notna().all(axis=None)


def test_calibrating_leaves_it_as_it_is(tmp_path):
    made = tiny_fcr(
        tiny_adata(per_condition=10),
        priors={"z_t": pf.priors.VampPrior(components=4)},
        guide=pf.guides.Amortised(width=16, depth=1),
    )
    fit(made)
    batch, z = made.cells.batch(), torch.randn(90, 2)
    prior = made.model.priors["z_t"]
    before = prior(batch).log_prob(z).detach()
    q = made.guide.locals.posteriors(batch)["z_t"].mean.detach()
    made.calibrate(steps=20, learning_rate=1e-2, device="cpu")
    assert not torch.allclose(made.guide.locals.posteriors(batch)["z_t"].mean, q, atol=1e-2)
    torch.testing.assert_close(prior(batch).log_prob(z), before)
    again = pf.load(made.save(tmp_path / "m"))
    torch.testing.assert_close(again.model.priors["z_t"](batch).log_prob(z), before)
    # A new fit starts from the encoders again.
    fit(made, max_epochs=1)
    parts = made.guide.locals.posteriors(prior.pseudo_cells())["z_t"]
    torch.testing.assert_close(prior.parts().mean, parts.mean)


class Mute(PyroModule):
    """A guide that samples and tells nothing."""

    def forward(self, batch):
        with pf.model.pyro.plate("cells", batch.n_cells, subsample=batch.index):
            for name, size in SIZES.items():
                zeros = batch.library.new_zeros(len(batch), size)
                pf.model.pyro.sample(name, dist.Normal(zeros, 1.0).to_event(1))


def test_a_guide_without_posteriors_is_refused():
    with pytest.raises(SlotError, match=r"VampPrior of 'z_x' needs.*got Mute.*Mixture"):
        tiny_fcr(priors={"z_x": pf.priors.VampPrior()}, guide=Mute())


def test_intensities():
    adata = tiny_adata(per_condition=10)
    adata.X = adata.X - 1.5
    fcr = tiny_fcr(adata, likelihood="normal", priors={"z_x": pf.priors.VampPrior(3)})
    fit(fcr, max_epochs=1)
    prior = fcr.model.priors["z_x"]
    torch.testing.assert_close(prior.rate, torch.tensor(adata.X.mean(0)), rtol=1e-4, atol=1e-4)
    assert (prior.pseudo_cells().library == 1).all()
