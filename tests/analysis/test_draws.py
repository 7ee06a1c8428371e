"""Abduction, action, prediction: what is kept, what is drawn anew, and from where."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoDelta,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.nn import PyroSample
from tiny import fit, tiny_adata, tiny_fcr

import pyro_fcr as pf
from pyro_fcr.analysis import expression
from pyro_fcr.analysis.draws import draw_observation, draw_sites, moments, prior_moments, seeded
from pyro_fcr.analysis.expression import _quantiles


@pytest.fixture(scope="module")
def fcr():
    made = tiny_fcr(tiny_adata())
    fit(made, max_epochs=20)
    # Far apart, so that a prior's draw cannot be taken for the posterior's.
    with torch.no_grad():
        made.model.priors["z_t"].table.treatment.add_(torch.tensor([[3.0, -3, 0, 0]]) / 5)
    return made


class Spy:
    """A model that records what it was asked to decode."""

    def __init__(self, model):
        self.model, self.seen = model, []

    def __call__(self, batch):
        trace = poutine.trace(self.model).get_trace(batch)
        self.seen.append({n: trace.nodes[n]["value"].clone() for n in ("z_x", "z_t", "z_tx")})
        return trace.nodes["_RETURN"]["value"]


def latents_under(fcr, factual, do, draws=300, redraw=None):
    intervened = fcr.design.do(factual, do)
    spy = Spy(fcr.model)
    redraw = fcr.descendants(do) if redraw is None else redraw
    with seeded(0), torch.no_grad():
        for _ in draw_observation(
            spy, fcr.guide, factual.batch(), intervened.batch(), redraw=redraw, shared=[{}] * draws
        ):
            pass
    return {k: torch.stack([s[k] for s in spy.seen]) for k in ("z_x", "z_t", "z_tx")}, intervened


@pytest.fixture(scope="module")
def treated(fcr):
    return fcr.cells.subset(np.flatnonzero(fcr.cells.treatment_id == 2)[:8])


@pytest.mark.parametrize("do", [{"treatment": "A"}, {"treatment": "ctrl"}, {"treatment": "A+B"}])
def test_zx_is_kept_and_the_rest_drawn_from_the_prior_under_do(fcr, treated, do):
    n = 300
    z, intervened = latents_under(fcr, treated, do, n)
    batch = intervened.batch()
    with torch.no_grad():
        posterior = moments(fcr.guide, treated.batch())
        prior = {k: fcr.model.priors[k](batch) for k in ("z_t", "z_tx")}
    mean, sd = posterior["z_x"]
    assert ((z["z_x"].mean(0) - mean).abs() < 5 * sd / n**0.5).all()
    for name, p in prior.items():
        spread = p.variance.sqrt()
        assert ((z[name].mean(0) - p.mean).abs() < 5 * spread / n**0.5).all()
        torch.testing.assert_close(z[name].std(0), spread, rtol=0.25, atol=0)
    # And the posterior would have told them apart.
    assert ((posterior["z_t"][0] - prior["z_t"].mean).abs() > 5 * posterior["z_t"][1] / 17).any()


def test_the_kept_draw_is_the_guides_own(fcr, treated):
    # Draw by draw, not only on average: the same seed gives the guide's draws of z_x.
    spy = Spy(fcr.model)
    intervened = fcr.design.do(treated, {"treatment": "A"})
    with seeded(5), torch.no_grad():
        next(iter(draw_observation(spy, fcr.guide, treated.batch(), intervened.batch(),
                                   redraw=["z_t", "z_tx"], shared=[{}])))  # fmt: skip
    with seeded(5), torch.no_grad():
        own = next(iter(draw_sites(fcr.guide, treated.batch(), [{}])))
    assert torch.equal(spy.seen[0]["z_x"], own["z_x"])
    assert not torch.equal(spy.seen[0]["z_t"], own["z_t"])


def test_replaying_all_latents_would_change_nothing(fcr, treated):
    """The classic mistake: an intervention on a model whose latents are all replayed."""

    def means(do, redraw):
        intervened = fcr.design.do(treated, do)
        with seeded(1):
            made = draw_observation(fcr.model, fcr.guide, treated.batch(), intervened.batch(),
                                    redraw=redraw, shared=[{}] * 30)  # fmt: skip
            return torch.stack([m.mean for m in made]).mean(0)

    a, ctrl = {"treatment": "A"}, {"treatment": "ctrl"}
    torch.testing.assert_close(means(a, []), means(ctrl, []))
    both = ["z_t", "z_tx"]
    assert not torch.allclose(means(a, both), means(ctrl, both), rtol=0.05)


def test_a_covariates_do_keeps_zt(fcr, treated):
    z, intervened = latents_under(fcr, treated, {"type": "u"})
    with torch.no_grad():
        mean, sd = moments(fcr.guide, treated.batch())["z_t"]
        p = fcr.model.priors["z_x"](intervened.batch())
    assert ((z["z_t"].mean(0) - mean).abs() < 5 * sd / 300**0.5).all()
    assert ((z["z_x"].mean(0) - p.mean).abs() < 5 * p.variance.sqrt() / 300**0.5).all()


def test_a_seed_leaves_no_trace_even_after_an_error():
    before = torch.get_rng_state()
    with seeded(3):
        first = torch.rand(3)
    drawn = []

    def broken():
        with seeded(3):
            drawn.append(torch.rand(3))
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        broken()
    assert torch.equal(first, drawn[0])
    assert torch.equal(before, torch.get_rng_state())


def test_every_seed_and_every_part_has_noise_of_its_own():
    found = []
    for seed in range(4):
        for part in range(4):
            with seeded(seed, part):
                found.append(float(torch.rand(())))
    assert len(set(found)) == len(found)


def test_a_prior_without_moments_in_closed_form_is_drawn():
    # 10 + 3 x for standard normal x, cell by cell another centre; Pyro knows no mean of it.
    centre = torch.tensor([[0.0, 100.0], [50.0, -50.0], [7.0, 7.0]])
    known = dist.Normal(centre, 1.0).to_event(1)
    made = dist.TransformedDistribution(known, [dist.transforms.AffineTransform(10.0, 3.0)])
    with pytest.raises(NotImplementedError):
        _ = made.mean
    with seeded(0):
        mean, variance = prior_moments(made)
    torch.testing.assert_close(mean, 10 + 3 * centre, rtol=0, atol=0.4)
    torch.testing.assert_close(variance, torch.full((3, 2), 9.0), rtol=0.15, atol=0)
    assert torch.equal(prior_moments(known)[0], centre)


def test_moments_skip_globals():
    def guide(batch):
        pyro.sample("shared", dist.Normal(0.0, 1.0))
        with pyro.plate("cells", 3):
            pyro.sample("z", dist.Normal(torch.ones(3, 2), 2.0).to_event(1))

    found = moments(guide, None)
    assert set(found) == {"z"}
    assert (found["z"][0] == 1).all()
    assert (found["z"][1] == 2).all()


@pytest.mark.parametrize("n", [1, 2, 7, 50])
def test_quantiles_are_numpys(n):
    values = torch.randn(n, 3, 4)
    low, high = _quantiles(values, (0.05, 0.95))
    expected = np.quantile(values.numpy(), [0.05, 0.95], axis=0)
    np.testing.assert_allclose(low, expected[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(high, expected[1], rtol=1e-4, atol=1e-6)


def test_cells_of_different_chunks_have_noise_of_their_own(fcr, monkeypatch):
    one = fcr.cells.subset(np.repeat(np.flatnonzero(fcr.cells.treatment_id == 1)[:1], 8))
    monkeypatch.setattr(expression, "DRAWN_VALUES", 4 * fcr.design.n_genes)  # two cells a chunk
    found = expression.expected_counts(
        fcr.model, fcr.guide, one, one, redraw=["z_t"], draws=2, seed=0, device=fcr.device
    )
    assert len(np.unique(found.mean[:, 0])) == 8


def test_posteriors_hold_the_models_sites_and_no_auxiliary_ones():
    class Slope(pf.Prior):
        def __init__(self):
            super().__init__()
            self.slope = PyroSample(dist.LogNormal(0.0, 1.0).expand([2]).to_event(1))

        def forward(self, batch):
            return dist.Normal(self.slope * batch.dose[:, None], 1.0).to_event(1)

    adata = tiny_adata(per_condition=6)
    for kind in (AutoNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal, AutoDelta):
        guide = pf.guides.Composed(pf.guides.Amortised(width=8), globals=kind)
        fcr = tiny_fcr(adata, priors={"z_t": Slope()}, guide=guide)
        fit(fcr, max_epochs=1)
        drawn = fcr.posterior(adata[:3], draws=2).posterior
        assert set(drawn.data_vars) == {"z_x", "z_t", "z_tx", "priors.z_t.slope"}
        assert float(drawn["priors.z_t.slope"].min()) > 0


def test_one_draw_has_no_spread(fcr):
    found = fcr.reconstruct(draws=1)
    assert (found.layers["sd"] == 0).all()
    for layer in ("q05", "q95"):
        np.testing.assert_array_equal(found.layers[layer], found.X)


def test_the_spread_of_two_draws_by_hand(fcr):
    """Quantiles of two numbers lie nine tenths of their distance apart, which is √2 sd."""
    found = fcr.reconstruct(draws=2)
    apart = (found.layers["q95"] - found.layers["q05"]) / 0.9
    np.testing.assert_allclose(found.layers["sd"], apart / np.sqrt(2), rtol=1e-3, atol=1e-5)
