"""Amortised encoders: what they read, and that they read nothing else."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from tiny import SIZES, tiny_adata, tiny_cells, tiny_fcr, tiny_genes

from pyro_fcr.errors import ArgumentError
from pyro_fcr.guides import Amortised, Composed
from pyro_fcr.likelihoods import resolve
from pyro_fcr.nn import Block

BLOCKS = (
    Block("z_x", 3, frozenset({"covariates"})),
    Block("z_t", 2, frozenset({"treatment"})),
    Block("z_tx", 2, frozenset({"treatment", "covariates"})),
)


@pytest.fixture(scope="module")
def cells():
    return tiny_cells()


def bound(cells, **options):
    guide = Amortised(width=8, depth=2, **options)
    guide.bind(BLOCKS, cells.design, resolve("nb"), tiny_genes(cells))
    for parameter in guide.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return guide


def moments(guide, batch):
    with torch.no_grad():
        return {k: (q.mean, q.variance) for k, q in guide.posteriors(batch).items()}


def changed_blocks(guide, batch, other):
    a, b = moments(guide, batch), moments(guide, other)
    return {k for k in a if not torch.allclose(a[k][0], b[k][0])}


def test_sites_plate_and_shapes(cells):
    batch = cells.batch(slice(0, 7), n_cells=70)
    trace = poutine.trace(bound(cells)).get_trace(batch)
    for block in BLOCKS:
        site = trace.nodes[block.name]
        assert site["value"].shape == (7, block.size)
        assert site["fn"].event_shape == (block.size,)
        assert site["scale"] == pytest.approx(10.0)
        assert site["fn"].has_rsample


def test_label_free_encoders_read_no_label(cells):
    guide, batch = bound(cells), cells.batch(slice(0, 30))
    other = batch.replace(
        treatment=1 - batch.treatment, treatment_id=batch.treatment_id * 0 - 1,
        covariates=(batch.covariates + 1) % 3, covariate_id=batch.covariate_id * 0 - 1,
        dose=batch.dose + 1, batch=batch.batch + 1, index=batch.index + 5,
    )  # fmt: skip
    assert changed_blocks(guide, batch, other) == set()
    assert changed_blocks(guide, batch, batch.replace(counts=batch.counts * 0)) == set(SIZES)


def test_labelled_encoders_read_their_blocks_parents(cells):
    guide, batch = bound(cells, labels=True), cells.batch(slice(0, 30))
    treatment = batch.replace(treatment=1 - batch.treatment)
    covariate = batch.replace(
        covariates=(batch.covariates + 1) % 3, covariate_id=(batch.covariate_id + 1) % 3
    )
    assert changed_blocks(guide, batch, treatment) == {"z_t", "z_tx"}
    assert changed_blocks(guide, batch, covariate) == {"z_x", "z_tx"}


def test_cells_do_not_read_each_other(cells):
    guide, batch = bound(cells), cells.batch(slice(0, 20))
    whole, alone = moments(guide, batch), moments(guide, batch.rows(torch.tensor([4])))
    torch.testing.assert_close(whole["z_x"][0][[4]], alone["z_x"][0], rtol=1e-4, atol=1e-5)


def test_features_are_standardised_by_the_training_data(cells):
    guide, batch = bound(cells), cells.batch()
    features = (resolve("nb").features(batch) - guide.mean_g) / guide.scale_g
    torch.testing.assert_close(features.mean(0), torch.zeros(20), atol=1e-4, rtol=0)
    assert {"mean_g", "scale_g"} <= set(guide.state_dict())


def test_scales_are_bounded(cells):
    guide = bound(cells)
    for sign in (-1e6, 1e6):
        guide.encoders.last_bias_ko.data.fill_(sign)
        for _, variance in moments(guide, cells.batch(slice(0, 3))).values():
            assert (variance.log().abs() <= 8.001).all()
            assert (variance > 0).all()


def test_train_and_eval_give_the_same(cells):
    guide, batch = bound(cells), cells.batch(slice(0, 9))
    before = moments(guide.train(), batch)
    after = moments(guide.eval(), batch)
    assert all(torch.equal(before[k][0], after[k][0]) for k in before)


def test_composed_samples_globals_before_and_outside_the_plate():
    import pyro.distributions as dist
    from pyro.nn import PyroSample

    import pyro_fcr as pf

    class Hill(pf.Prior):
        def __init__(self):
            super().__init__()
            self.slope = PyroSample(dist.Normal(0.0, 1.0).expand([2]).to_event(1))

        def forward(self, batch):
            return dist.Normal(self.slope * batch.dose[:, None], 1.0).to_event(1)

    fcr = tiny_fcr(tiny_adata(per_condition=6), priors={"z_t": Hill()},
                   guide=Composed(locals=Amortised(width=8), globals=AutoNormal))  # fmt: skip
    trace = poutine.trace(fcr.guide).get_trace(fcr.cells.batch(slice(0, 4)))
    names = [n for n, s in trace.nodes.items() if s["type"] == "sample"]
    assert names.index("priors.z_t.slope") < names.index("cells") < names.index("z_x")
    assert not trace.nodes["priors.z_t.slope"]["cond_indep_stack"]
    # The automatic guide holds the globals' parameters and nothing of the model's networks.
    assert all("slope" in n for n, _ in fcr.guide.global_guide.named_parameters())
    assert not list(pyro.get_param_store().keys())


class OwnGlobals(Amortised):
    def forward(self, batch):
        pyro.sample("w", dist.Normal(0.0, 1.0))
        return super().forward(batch)


def test_globals_that_the_locals_sample_are_not_missing(cells):
    guide = Composed(locals=OwnGlobals(width=8, depth=2))
    guide.bind(BLOCKS, cells.design, resolve("nb"), tiny_genes(cells))
    before = torch.get_rng_state()
    assert guide.missing(["w", "u"], cells.batch(slice(0, 2))) == ["u"]
    assert guide.missing([], cells.batch(slice(0, 2))) == []
    assert torch.equal(torch.get_rng_state(), before)


def test_thinning_keeps_each_molecule_with_the_share_of_its_cell():
    from pyro_fcr.guides.encoders import thinned

    cells = tiny_cells()
    batch = cells.batch(slice(0, 40))
    counts = batch.counts * 50
    batch = batch.replace(counts=counts, library=counts.sum(1))
    torch.manual_seed(0)
    found = [thinned(batch, 0.3) for _ in range(300)]
    shares = torch.stack([some.library / batch.library for some in found])
    assert 0.3 <= float(shares.min()) < 0.31
    assert 0.99 < float(shares.max()) <= 1.0
    assert float(shares.mean()) == pytest.approx(0.65, abs=0.01)
    assert all((some.counts <= batch.counts).all() for some in found)
    # Binomial given the share: mean and variance of what is kept, in units of their spread.
    off = torch.stack([
        (some.counts - share[:, None] * counts) / (share * (1 - share))[:, None].sqrt()
        for some, share in zip(found, shares, strict=True)
    ])  # fmt: skip
    many = counts > 20
    standard = off[:, many] / counts[many].sqrt()
    assert abs(float(standard.mean())) < 0.02
    assert float(standard.square().mean()) == pytest.approx(1.0, abs=0.05)


def test_encoders_read_thinned_counts_in_training_alone(cells):
    batch = cells.batch(slice(0, 30))
    whole, guide = bound(cells), bound(cells, thinned_to=0.3)
    guide.load_state_dict(whole.state_dict())
    guide.train()
    assert changed_blocks(guide, batch, batch) == {block.name for block in BLOCKS}
    guide.eval()
    torch.testing.assert_close(moments(guide, batch), moments(whole.eval(), batch))


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ArgumentError, match=r"thinned_to=.*above 0 and at most 1"):
        Amortised(thinned_to=share)


def test_values_that_are_no_counts_are_not_thinned(cells):
    guide = Amortised(width=8, thinned_to=0.3)
    guide.bind(BLOCKS, cells.design, resolve("normal"), tiny_genes(cells))
    batch = cells.batch(slice(0, 5))
    torch.testing.assert_close(moments(guide.train(), batch), moments(guide.eval(), batch))


def test_the_sleep_phase_reads_every_molecule(monkeypatch):
    model = tiny_fcr(tiny_adata(), guide=Amortised(width=8, thinned_to=0.3))
    model.fit(max_epochs=1, progress=False)
    called = []
    monkeypatch.setattr("pyro_fcr.guides.encoders.thinned", lambda *given: called.append(given))
    model.calibrate(steps=2)
    assert not called
