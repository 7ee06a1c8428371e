"""An interaction prior carries no main effect, exactly."""

import numpy as np
import pytest
import torch
from tiny import tiny_adata, tiny_cells

from pyro_fcr.errors import SlotError
from pyro_fcr.nn import Block
from pyro_fcr.nn.conditions import GAIN
from pyro_fcr.priors import Interaction

BOTH = Block("z_tx", 2, frozenset({"treatment", "covariates"}))


def bound(cells, **options):
    prior = Interaction(**options)
    prior.bind(BOTH, cells.design)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter)
    return prior


def grid(cells, treatments=("ctrl", "A", "B"), kinds="uvw", **extra):
    """Batch and shape (treatments, kinds) of every pair."""
    made = [
        cells.design.do(cells.subset([0]), {"treatment": t, "type": x, **extra}).batch()
        for t in treatments
        for x in kinds
    ]
    fields = ("counts", "library", "treatment", "treatment_id", "dose", "covariates",
              "covariate_id", "continuous", "batch", "index")  # fmt: skip
    joined = {name: torch.cat([getattr(one, name) for one in made]) for name in fields}
    return made[0].replace(**joined)


def mean(prior, batch, shape=(3, 3)):
    return prior(batch).mean.detach().unflatten(0, shape)


def test_double_centring_is_the_textbooks_on_a_full_grid():
    cells = tiny_cells()
    prior = bound(cells)
    raw = GAIN * prior.means.table.detach()
    expected = raw - raw.mean(0) - raw.mean(1, keepdim=True) + raw.mean((0, 1))
    made = mean(prior, grid(cells))
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)
    assert made.abs().max() > 0.5


def unbalanced():
    adata = tiny_adata(per_condition=12)
    rng = np.random.default_rng(0)
    pair = adata.obs["drug"].astype(str) + adata.obs["type"].astype(str)
    size = {name: int(rng.integers(6, 12)) for name in pair.unique()} | {"Av": 0}
    rank = pair.groupby(pair, observed=True).cumcount()
    return tiny_cells(adata[(rank < pair.map(size)).to_numpy()].copy())


@pytest.mark.parametrize("weights", ["levels", "cells"])
def test_unbalanced_designs_centre_over_what_was_seen(weights):
    cells = unbalanced()
    prior = bound(cells, weights=weights)
    made = mean(prior, grid(cells)).double()
    n = np.zeros((3, 3))
    np.add.at(n, (cells.treatment_id, cells.covariate_id), 1)
    assert n[1, 1] == 0
    w = torch.tensor(n if weights == "cells" else (n > 0) * 1.0)[..., None]
    assert (made[1, 1] == 0).all(), "an unseen pair has no interaction"
    torch.testing.assert_close((w * made).sum(0) / w.sum(0), torch.zeros(3, 2).double(),
                               atol=2e-5, rtol=0)  # fmt: skip
    torch.testing.assert_close((w * made).sum(1) / w.sum(1), torch.zeros(3, 2).double(),
                               atol=2e-5, rtol=0)  # fmt: skip
    # Nothing but main effects was taken out: what is left is a least-squares residual.
    raw = GAIN * prior.means.table.detach().double()
    seen = (w[..., 0] > 0).numpy()
    rows, columns = np.nonzero(seen)
    main = np.concatenate([np.eye(3)[rows], np.eye(3)[columns]], axis=1)
    root = np.sqrt(w[..., 0].numpy()[seen])[:, None]
    fit = np.linalg.lstsq(root * main, root * raw.numpy()[seen], rcond=None)[0]
    np.testing.assert_allclose(made.numpy()[seen], raw.numpy()[seen] - main @ fit, atol=1e-4)


def test_main_effects_in_the_table_change_nothing():
    cells = unbalanced()
    prior = bound(cells)
    batch = grid(cells)
    before = mean(prior, batch)
    with torch.no_grad():
        prior.means.table += torch.randn(3, 1, 2) + torch.randn(1, 3, 2)
    torch.testing.assert_close(mean(prior, batch), before, atol=1e-4, rtol=1e-4)


def test_pairs_that_training_does_not_have_do_not_count():
    cells = tiny_cells()
    prior = bound(cells)
    batch = grid(cells)
    training = batch.rows(torch.arange(9) != 4)
    prior.means.zero_unseen(training)
    made = mean(prior, batch)
    assert (made[1, 1] == 0).all()
    torch.testing.assert_close(made.sum(0), torch.zeros(3, 2), atol=2e-5, rtol=0)
    torch.testing.assert_close(made.sum(1), torch.zeros(3, 2), atol=2e-5, rtol=0)


def test_combinations_and_doses_add():
    adata = tiny_adata(per_condition=8, combo=True)
    adata.obs["dose"] = (
        adata.obs["drug"].astype(str).map({"ctrl": "0", "A": "2", "B": "3", "A+B": "2+3"})
    )
    cells = tiny_cells(adata, dose="dose")
    prior = bound(cells)
    r = prior.means.interactions().detach()
    combined = grid(cells, ["A+B"], dose="1+6")
    torch.testing.assert_close(mean(prior, combined, (1, 3))[0], 0.5 * r[1] + 2 * r[2])
    # Whatever the dose, the mean over kinds is nothing.
    assert mean(prior, combined, (1, 3)).mean(1).abs().max() < 2e-5


def test_log_scales_centred_by_option():
    cells = tiny_cells()
    prior, batch = bound(cells, centre_scale=True), grid(cells)
    raw = 3 * torch.atanh((prior(batch).variance.sqrt().log() / 3).clamp(-0.9999, 0.9999))
    raw = raw.unflatten(0, (3, 3)) - prior.usual
    torch.testing.assert_close(prior.scales(batch).unflatten(0, (3, 3)), raw, atol=0.05, rtol=0.05)
    assert prior.scales(batch).unflatten(0, (3, 3)).sum(0).abs().max() < 1e-4
    assert (bound(cells, learn_scale=False)(batch).variance == 1).all()


def test_it_starts_without_interaction_and_learns_one():
    cells = tiny_cells()
    prior = Interaction()
    prior.bind(BOTH, cells.design)
    batch = grid(cells)
    made = prior(batch)
    assert (made.mean == 0).all()
    made.mean[4].sum().backward()
    assert prior.means.table.grad.abs().max() > 0


def test_refit_finds_the_interactions_of_a_target():
    cells = tiny_cells()
    for centre in (False, True):
        prior, batch = bound(cells, centre_scale=centre), grid(cells)
        target = torch.randn(3, 3, 2, dtype=torch.float64)
        scale = torch.rand(9, 2) + 0.5
        prior.refit(batch, target.flatten(0, 1), scale)
        pure = target - target.mean(0) - target.mean(1, keepdim=True) + target.mean((0, 1))
        torch.testing.assert_close(mean(prior, batch), pure.float(), atol=1e-4, rtol=1e-4)
        if not centre:
            torch.testing.assert_close(prior(batch).variance.sqrt(), scale, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("parents", [(), ("treatment",), ("covariates",)], ids=str)
def test_without_both_parents_there_is_nothing_to_interact(parents):
    cells = tiny_cells()
    prior = Interaction(centre_scale=True)
    prior.bind(Block("z", 3, frozenset(parents)), cells.design)
    batch = cells.batch(slice(0, 7))
    assert prior(batch).mean.shape == (7, 3)
    assert not prior(batch).mean.any()
    prior.refit(batch, torch.randn(7, 3), torch.rand(7, 3) + 0.5)
    assert not prior(batch).mean.any()


def test_two_covariates_interact_by_their_joint_group():
    adata = tiny_adata(per_condition=16)
    cells = tiny_cells(adata, covariates=["type", "lane"])
    prior = bound(cells)
    made = prior.means.interactions()
    assert made.shape == (3, 6, 2)
    batch = cells.batch()
    expected = made[batch.treatment_id, batch.covariate_id]
    torch.testing.assert_close(prior(batch).mean, expected)


def test_weights_have_two_names():
    with pytest.raises(SlotError, match=r"weights=.*'levels' or 'cells'.*'users'"):
        Interaction(weights="users")
