"""The sparse-shift prior: its moments, its guide, its place in any slot."""

from __future__ import annotations

import numpy as np
import pyro
import pytest
import tiny
import torch
from pyro import poutine
from pyro.infer import Predictive

import pyro_fcr as pf
from pyro_fcr.data import Design
from pyro_fcr.errors import SlotError
from pyro_fcr.infer import SiteELBO
from pyro_fcr.nn import Block
from pyro_fcr.priors import SparseShift

PRIOR = {"z_t": SparseShift()}


def bound(adata=None, **options) -> tuple[SparseShift, pf.Design, object]:
    adata = tiny.tiny_adata(combo=True) if adata is None else adata
    cells = tiny.tiny_cells(adata)
    prior = SparseShift(**options)
    prior.bind(Block("z", 3, frozenset({"treatment"})), cells.design)
    return prior, cells.design, cells


def conditioned(prior: SparseShift, batch, mask, shift):
    data = {"mask": mask, "shift": shift}
    return poutine.condition(prior, data=data)(batch)


def test_control_is_the_origin_and_combinations_add() -> None:
    prior, design, cells = bound()
    mask = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    shift = torch.tensor([[2.0, 5.0, -1.0], [7.0, 7.0, 3.0]])
    labels = cells.obs()["drug"].astype(str).to_numpy()
    rows = [int((labels == name).argmax()) for name in ("ctrl", "A", "B", "A+B")]
    made = conditioned(prior, cells.batch(rows), mask, shift)
    expected = torch.tensor([[0.0, 0, 0], [2, 0, -1], [0, 0, 3], [2, 0, 2]])
    torch.testing.assert_close(made.mean, expected)
    torch.testing.assert_close(made.variance, torch.ones(4, 3))


def test_doses_scale_in_units_of_training_doses() -> None:
    adata = tiny.tiny_adata()
    adata.obs["dose"] = [0.0 if d == "ctrl" else 10.0 + 10.0 * (i % 2)
                         for i, d in enumerate(adata.obs["drug"])]  # fmt: skip
    cells = Design.fit(adata, tiny.tiny_schema(dose="dose"))
    prior = SparseShift()
    prior.bind(Block("z", 1, frozenset({"treatment"})), cells)
    batch = cells.encode(adata).batch()
    made = conditioned(prior, batch, torch.ones(2, 1), torch.ones(2, 1))
    low, high = (made.mean[(batch.dose - d).abs() < 1e-3].unique() for d in (10.0, 20.0))
    torch.testing.assert_close(high, 2 * low)


def test_the_divergences_are_analytic() -> None:
    model = tiny.tiny_fcr(priors=PRIOR)
    batch = model.cells.batch(slice(0, 40))
    guide = poutine.trace(model.guide).get_trace(batch)
    _, found, _ = SiteELBO().site_terms(model.model, model.guide, batch)
    prior = model.model.priors["z_t"]
    q, p = torch.sigmoid(prior.mask_logits), torch.sigmoid(-prior.log_sparsity)
    by_hand = q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()
    torch.testing.assert_close(found["priors.z_t.mask"], by_hand.sum())
    assert set(guide.nodes) >= {"priors.z_t.mask", "priors.z_t.shift"}


def test_what_a_mask_hides_costs_nothing() -> None:
    model = tiny.tiny_fcr(priors=PRIOR)
    prior, batch = model.model.priors["z_t"], model.cells.batch(slice(0, 10))
    with torch.no_grad():
        prior.mask_logits.fill_(-50.0)
    _, off, _ = SiteELBO().site_terms(model.model, model.guide, batch)
    with torch.no_grad():
        prior.mask_logits.fill_(50.0)
    _, on, _ = SiteELBO().site_terms(model.model, model.guide, batch)
    assert off["priors.z_t.shift"].item() == pytest.approx(0.0, abs=1e-4)
    loc, scale, slab = 5 * prior.shift_loc, prior.shift_log_scale.exp(), prior.slab_log_scale.exp()
    ratio = (scale.square() + loc.square()) / slab.square()
    by_hand = 0.5 * (ratio - 1) - (scale / slab).log()
    torch.testing.assert_close(on["priors.z_t.shift"], by_hand.sum())


def test_gradients_reach_masks_and_shifts() -> None:
    model = tiny.tiny_fcr(priors=PRIOR)
    loss = model._objective(model.cells.batch(slice(0, 40))).loss
    loss.backward()
    prior = model.model.priors["z_t"]
    for parameter in (prior.mask_logits, prior.shift_loc, prior.shift_log_scale):
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("bayesian", [True, False])
@pytest.mark.parametrize("slot", ["z_x", "z_t", "z_tx"])
def test_any_slot(slot: str, bayesian: bool, tmp_path) -> None:
    model = tiny.tiny_fcr(priors={slot: SparseShift(bayesian=bayesian)})
    tiny.fit(model)
    again = pf.load(model.save(tmp_path / "model"))
    batch = model.cells.batch(slice(0, 5))
    for name, frame in again.latents(tiny.tiny_adata()).items():
        np.testing.assert_allclose(frame, model.latents()[name], rtol=1.3e-6, atol=1e-5)
    assert torch.isfinite(again._objective(batch).loss)


def test_parallel_predictive_agrees_with_the_loop() -> None:
    model = tiny.tiny_fcr(priors=PRIOR)
    batch = model.cells.batch(slice(0, 6))
    prior = model.model.priors["z_t"]
    with torch.no_grad():
        prior.mask_logits.fill_(50.0)
        prior.shift_log_scale.fill_(-9.0)
    drawn = {}
    for parallel in (True, False):
        pyro.set_rng_seed(0)
        posterior = Predictive(model.guide, num_samples=400, parallel=parallel)(batch)
        wanted = {k: posterior[k] for k in ("priors.z_t.mask", "priors.z_t.shift")}
        model_draws = Predictive(model.model, wanted, parallel=parallel, return_sites=["z_t"])
        drawn[parallel] = model_draws(batch)["z_t"]
    assert drawn[True].shape == drawn[False].shape == (400, 6, 2)
    spread = (drawn[True].var(0) + drawn[False].var(0)) / 400
    gap = drawn[True].mean(0) - drawn[False].mean(0)
    assert (gap.abs() < 4.5 * spread.sqrt()).all()
    torch.testing.assert_close(drawn[True].std(0), drawn[False].std(0), rtol=0.25, atol=0)


def test_settling_reads_the_cells_and_only_them() -> None:
    prior, design, cells = bound(sparsity=2.0)
    batch = cells.batch(slice(None))
    keep = [int((batch.treatment_id == k).nonzero()[0, 0]) for k in range(4)]
    size = torch.tensor([100.0] * 4).double()
    dose = batch.treatment[keep].double()
    effect = torch.tensor([[3.0, 0.0, 0.0], [0.0, -2.0, 0.0]]).double()
    prior.settle(cells.batch(keep), size, dose @ effect, torch.zeros(3))
    assert ((prior.mask_logits > 0) == (effect != 0)).all()
    torch.testing.assert_close(5 * prior.shift_loc.double(), effect, atol=0.05, rtol=0)


def test_the_axes_are_where_shifts_are_sparse() -> None:
    torch.manual_seed(0)
    names = [f"t{i}" for i in range(13)]
    adata = tiny.treated(names, per_treatment=5)
    design = Design.fit(adata, pf.Schema(treatment="drug", control="t0"))
    prior = SparseShift()
    prior.bind(Block("z", 4, frozenset({"treatment"})), design)
    effect = torch.zeros(12, 4).double()
    effect[torch.arange(12), torch.arange(12) % 4] = 3.0
    mixing = torch.randn(4, 4).double()
    covariance = (mixing @ mixing.T).expand(12, 4, 4)
    batch = design.encode(adata[5::5]).batch()
    order = [list(design.treatments).index(name) for name in names[1:]]
    effect = effect[order]
    size = torch.full((12,), 200.0).double()
    found = prior.axes(batch, size, batch.treatment.double() @ effect @ mixing.T, covariance)
    identity = (found @ mixing).abs()
    assert identity.max(1).values.min() > 0.999
    torch.testing.assert_close(identity @ identity.T, torch.eye(4).double(), atol=1e-3, rtol=0)


def test_a_block_without_the_treatment_among_its_parents_is_not_shifted(tmp_path) -> None:
    model = tiny.tiny_fcr(priors={"z_x": SparseShift(), "z_t": SparseShift()})
    tiny.fit(model, align_at=0.5)
    batch = model.cells.batch(slice(0, 8))
    prior = model.model.priors["z_x"]
    everyone = batch.replace(treatment=torch.ones_like(batch.treatment))
    with torch.no_grad():
        torch.testing.assert_close(prior(everyone).mean, torch.zeros(8, 3))
    assert all(torch.isfinite(value).all() for value in prior.state_dict().values())
    # The one that treatments can move is found by itself.
    assert set(model.targets().index.get_level_values("latent")) == {"z_t_0", "z_t_1"}


def test_no_sparsity_is_refused() -> None:
    with pytest.raises(SlotError, match=r"sparsity=.*at least 1.*0\.5"):
        SparseShift(sparsity=0.5)
