"""Joint diagonalisation on planted axes, and its absorption into encoder, decoder and prior."""

import numpy as np
import pytest
import torch
from tiny import fit, tiny_adata, tiny_fcr, tiny_schema

import pyro_fcr as pf
from pyro_fcr.errors import FitError
from pyro_fcr.infer import Trainer, gauge
from pyro_fcr.infer.gauge import align, condition_moments, joint_diagonaliser


def planted(d, n_conditions, seed):
    """Diagonal covariances of several conditions, seen through a mixing matrix."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    variances = torch.rand(n_conditions, d, generator=generator, dtype=torch.float64) * 3 + 0.2
    return mixing, mixing @ torch.diag_embed(variances) @ mixing.T


@pytest.mark.parametrize("d", [2, 4, 6])
@pytest.mark.parametrize("seed", range(3))
def test_planted_axes_are_found_up_to_order_and_scale(d, seed):
    mixing, covariance = planted(d, 10, seed)
    found = joint_diagonaliser(covariance, torch.ones(10)) @ mixing
    share = found.square() / found.square().sum(1, keepdim=True)
    assert (share.max(1).values > 1 - 1e-6).all()
    assert len(set(share.argmax(1).tolist())) == d


def test_every_covariance_becomes_diagonal_and_the_size_stays():
    _, covariance = planted(3, 8, 0)
    matrix = joint_diagonaliser(covariance, torch.ones(8))
    turned = matrix @ covariance @ matrix.T
    off = turned - torch.diag_embed(torch.diagonal(turned, dim1=1, dim2=2))
    assert float(off.abs().max()) < 1e-5 * float(turned.abs().max())
    pooled = torch.diagonal(turned.mean(0))
    assert pooled == pytest.approx(float(torch.diagonal(covariance.mean(0)).mean()), rel=1e-8)


def test_moments_by_hand():
    mean = torch.tensor([[0.0], [2.0], [4.0], [10.0], [10.0], [13.0], [99.0]])
    variance = torch.full((7, 1), 0.5)
    condition = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    codes, size, centre, covariance = condition_moments(mean, variance, condition)
    assert codes.tolist() == [0, 1]  # one cell is too few for one dimension
    assert size.tolist() == [3, 3]
    assert centre.flatten().tolist() == [2, 11]
    assert covariance.flatten().tolist() == pytest.approx([8 / 3 + 0.5, 2 + 0.5])


@pytest.fixture
def fcr():
    made = tiny_fcr(tiny_adata())
    fit(made, max_epochs=5)
    return made


def turn(fcr, groups=None, prior=None):
    cells, design = fcr.cells, fcr.design
    batch = cells.batch()
    z_tx = fcr.guide.locals.posteriors(batch)["z_tx"]
    start = sum(b.size for b in fcr.declaration.blocks if b.name in ("z_x", "z_t"))
    condition = cells.treatment_id * design.n_covariate_levels + cells.covariate_id
    condition = condition if groups is None else condition % groups
    return align(
        "z_tx",
        prior=fcr.model.priors["z_tx"] if prior is None else prior,
        encoder=fcr.guide.locals,
        decoder=fcr.model.decoder,
        columns=slice(start, start + z_tx.event_shape[0]),
        moments=(z_tx.mean.detach(), z_tx.variance.detach()),
        condition=torch.from_numpy(condition),
        batch=cells.batch,
        device=torch.device("cpu"),
    )


def test_what_the_posterior_means_decode_to_is_unchanged(fcr):
    batch = fcr.cells.batch()

    def decoded():
        with torch.no_grad():
            means = {k: q.mean for k, q in fcr.guide.locals.posteriors(batch).items()}
            return fcr.model.observation(means, batch).mean, means

    before, z_before = decoded()
    assert turn(fcr)
    after, z_after = decoded()
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(z_after["z_x"], z_before["z_x"])
    assert not torch.allclose(z_after["z_tx"], z_before["z_tx"], rtol=1e-2)


class Settling:
    """A prior with axes of its own, whose globals settle."""

    matrix = torch.tensor([[2.0, 1.0], [0.0, -1.0]], dtype=torch.float64)

    def axes(self, batch, size, loc, covariance):
        return self.matrix

    def settle(self, batch, size, loc, variance, *, dense=False):
        self.told = size, loc, variance, dense


def test_a_prior_settles_densely_on_the_turned_posteriors(fcr):
    batch, prior = fcr.cells.batch(), Settling()
    before = fcr.guide.locals.posteriors(batch)["z_tx"]
    assert turn(fcr, 2, prior)
    size, loc, variance, dense = prior.told
    n_x, cells = fcr.design.n_covariate_levels, fcr.cells
    group = torch.from_numpy((cells.treatment_id * n_x + cells.covariate_id) % 2)
    mean = before.mean.detach().double() @ prior.matrix.T
    by_hand = torch.stack([mean[group == g].mean(0) for g in (0, 1)])
    torch.testing.assert_close(loc, by_hand, rtol=1e-5, atol=1e-6)
    spread = before.variance.detach().double() @ prior.matrix.square().T
    torch.testing.assert_close(variance, spread.mean(0), rtol=1e-5, atol=1e-6)
    assert size.tolist() == [int((group == g).sum()) for g in (0, 1)]
    assert dense


@pytest.mark.parametrize(("groups", "enough"), [(2, True), (1, False)])
def test_two_conditions_tell_axes_apart_and_one_does_not(fcr, groups, enough):
    before = fcr.model.decoder.linear.weight.detach().clone()
    assert turn(fcr, groups) is enough
    assert torch.equal(fcr.model.decoder.linear.weight, before) is not enough


def test_the_prior_takes_the_moments_of_the_turned_posterior(fcr):
    turn(fcr)
    batch = fcr.cells.batch()
    with torch.no_grad():
        q = fcr.guide.locals.posteriors(batch)["z_tx"]
        prior = fcr.model.priors["z_tx"](batch)
    pair = np.stack([fcr.cells.treatment_id, fcr.cells.covariate_id], 1)
    for t, x in np.unique(pair, axis=0):
        rows = torch.from_numpy((pair == (t, x)).all(1))
        torch.testing.assert_close(prior.mean[rows][0], q.mean[rows].mean(0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("share", "step"), [(0, 1), (0.5, 8), (1, 15), (2, None)])
def test_the_gauge_is_fixed_when_it_was_asked_for(share, step, monkeypatch):
    made, seen = tiny_fcr(tiny_adata()), []
    steps, step_of = [0], Trainer.step

    def counted(self, batch):
        steps[0] += 1
        return step_of(self, batch)

    monkeypatch.setattr(Trainer, "step", counted)
    monkeypatch.setattr(gauge, "align", lambda name, **_: seen.append((name, steps[0])))
    # 216 cells in batches of 80: three steps an epoch.
    fit(made, max_epochs=5, batch_size=80, align_at=share)
    assert seen == ([] if step is None else [("z_tx", step)])


@pytest.mark.parametrize("share", [0.5, 2])
def test_sparse_axes_too_are_left_alone_on_request(share, monkeypatch):
    svae, seen = pf.SVAE(tiny_adata(), tiny_schema(), sizes={"z": 2}), []
    monkeypatch.setattr(gauge, "align", lambda name, **_: seen.append(name))
    fit(svae, max_epochs=3, align_at=share)
    assert seen == (["z", "z"] if share == 0.5 else [])


def test_a_time_before_the_start_is_refused():
    with pytest.raises(FitError, match=r"fit\(align_at=\).*at least 0"):
        fit(tiny_fcr(), align_at=-0.1)


def test_axes_that_are_not_finite_are_not_taken(fcr, monkeypatch):
    monkeypatch.setattr(gauge, "joint_diagonaliser", lambda s, _: torch.full_like(s[0], np.nan))
    before = {k: v.clone() for k, v in fcr._objective.state_dict().items()}
    assert not turn(fcr)
    assert all(torch.equal(before[k], v) for k, v in fcr._objective.state_dict().items())


def test_parts_that_cannot_be_turned_are_left_alone(fcr):
    before = fcr.model.decoder.linear.weight.detach().clone()
    assert not align(
        "z_tx", prior=object(), encoder=fcr.guide.locals, decoder=fcr.model.decoder,
        columns=slice(0, 1), moments=(torch.zeros(3, 1), torch.ones(3, 1)),
        condition=torch.zeros(3, dtype=torch.long), batch=fcr.cells.batch,
        device=torch.device("cpu"),
    )  # fmt: skip
    assert torch.equal(fcr.model.decoder.linear.weight, before)
