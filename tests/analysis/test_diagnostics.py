"""Diagnostics, on a linear-Gaussian model whose posterior is known in closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from scipy import stats
from tiny import fit, levels_design, tiny_adata, tiny_cells, tiny_fcr

from pyro_fcr.analysis.conditions import condition_cells
from pyro_fcr.analysis.diagnose import Diagnosis, Finding, _composition, cramers_v
from pyro_fcr.analysis.diagnostics import (
    block_use,
    importance,
    pit_values,
    predictive_checks,
    reweighted_moments,
    simulated_ranks,
)
from pyro_fcr.analysis.stability import stability
from pyro_fcr.analysis.summary import summary
from pyro_fcr.errors import ArgumentError
from pyro_fcr.model import OBSERVATION
from pyro_fcr.nn import LocalModule

WEIGHT, NOISE = 1.5, 0.5


class Linear(LocalModule):
    """z ~ N(0, 1), counts = 1.5 z + N(0, 0.5²) for each gene."""

    def forward(self, batch):
        genes = batch.counts.shape[1]
        with pyro.plate("cells", batch.n_cells, subsample=batch.index):
            zero = batch.library.new_zeros(len(batch), 1)
            z = pyro.sample("z", dist.Normal(zero, 1.0).to_event(1))
            made = dist.Normal(WEIGHT * z.expand(-1, genes), NOISE).to_event(1)
            return pyro.sample(OBSERVATION, made, obs=batch.counts)


class Posterior(LocalModule):
    """The exact posterior, its scale times ``wide``."""

    def __init__(self, wide=1.0, shift=0.0):
        super().__init__()
        self.wide, self.shift = wide, shift

    def forward(self, batch):
        mean, sd = exact(batch.counts)
        with pyro.plate("cells", batch.n_cells, subsample=batch.index):
            loc = mean[:, None] + self.shift
            return pyro.sample("z", dist.Normal(loc, self.wide * sd).to_event(1))


def exact(counts):
    precision = 1 + counts.shape[1] * WEIGHT**2 / NOISE**2
    return WEIGHT / NOISE**2 * counts.sum(1) / precision, precision**-0.5


@pytest.fixture
def batch():
    made = tiny_cells(tiny_adata(n_genes=4)).batch(slice(0, 100))
    z = torch.randn(100, 1)
    return made.replace(counts=WEIGHT * z + NOISE * torch.randn(100, 4))


def test_the_exact_posterior_has_even_weights_and_the_true_evidence(batch):
    found = importance(Linear(), Posterior(), [batch], draws=50, seed=0)
    covariance = NOISE**2 * np.eye(4) + WEIGHT**2
    evidence = stats.multivariate_normal(np.zeros(4), covariance).logpdf(batch.counts.numpy())
    np.testing.assert_allclose(found.bound, evidence, atol=1e-3)
    np.testing.assert_allclose(found.elbo, evidence, atol=1e-3)


def test_weights_mend_a_guide_that_is_too_wide(batch):
    guide = Posterior(wide=2.0, shift=0.1)
    found = importance(Linear(), guide, [batch], draws=4000, seed=0)
    assert (found.k_hat < 0.7).all()
    mean, sd = exact(batch.counts)
    got_mean, got_sd = reweighted_moments(found)["z"]
    np.testing.assert_allclose(got_mean[:, 0], mean, atol=0.03)
    np.testing.assert_allclose(got_sd[:, 0], np.full(100, sd), rtol=0.12)
    # The bound is the evidence up to Monte-Carlo error; the ELBO lies a divergence below.
    divergence = 0.5 * (4 + (0.1 / sd) ** 2 - 1) - np.log(2)
    np.testing.assert_allclose((found.bound - found.elbo).mean(), divergence, rtol=0.05)


def test_k_hat_sees_a_guide_that_is_too_narrow(batch):
    narrow = importance(Linear(), Posterior(wide=0.3), [batch], draws=500, seed=0)
    assert np.median(narrow.k_hat) > 0.7


@pytest.mark.parametrize(("wide", "coverage"), [(1.0, 0.9), (0.5, 0.589)])
def test_ranks_cover_as_theory_says(batch, wide, coverage):
    """A posterior half as wide as it should be covers P(|N(0, 1)| < 1.645 / 2) = 0.589."""
    many = [batch] * 20
    ranks = simulated_ranks(Linear(), Posterior(wide=wide), many, draws=99, seed=1)["z"]
    inside = (ranks >= 5) & (ranks < 95)
    assert inside.mean() == pytest.approx(coverage, abs=0.03)


def test_use_of_a_block_in_closed_form(batch):
    table = block_use(Posterior(), Linear(), [batch])
    mean, sd = exact(batch.counts)
    mean = mean.numpy()
    overlap = np.sqrt(2 * sd / (1 + sd**2)) * np.exp(-(mean**2) / (4 * (1 + sd**2)))
    assert table.loc["z", "overlap"] == pytest.approx(overlap.mean(), rel=1e-4)
    divergence = 0.5 * (sd**2 + mean**2 - 1 - np.log(sd**2))
    assert table.loc["z", "information"] == pytest.approx(divergence.mean(), rel=0.15)
    assert table.loc["z", "used"] == 1


@pytest.fixture(scope="module")
def fitted():
    model = tiny_fcr(tiny_adata(per_condition=40))
    fit(model, max_epochs=15)
    return model


class Blind(LocalModule):
    """The prior itself: with it, what is replicated knows nothing of what was observed."""

    def forward(self, batch):
        with pyro.plate("cells", batch.n_cells, subsample=batch.index):
            zero = batch.library.new_zeros(len(batch), 1)
            return pyro.sample("z", dist.Normal(zero, 1.0).to_event(1))


@pytest.mark.parametrize("spread", [1.0, 2.0])
def test_pit_is_uniform_for_the_models_own_counts_alone(spread):
    rng = np.random.default_rng(0)
    cells = tiny_cells(tiny_adata(n_genes=4, per_condition=60))
    z = rng.normal(size=(len(cells), 1))
    counts = spread * (WEIGHT * z + NOISE * rng.normal(size=(len(cells), 4)))
    cells = replace(cells, counts=counts.astype(np.float32))
    made = pit_values(Linear(), Blind(), cells, draws=49, seed=0, device=torch.device("cpu"))
    p = [stats.kstest(column, "uniform").pvalue for column in made.T]
    assert (np.asarray(p) > 0.001).all() == (spread == 1.0)


def test_predictive_checks_see_a_missing_spread(fitted):
    arguments = {"draws": 3, "seed": 0, "device": torch.device("cpu")}
    fine = predictive_checks(fitted.model, fitted.guide, fitted.cells, **arguments)
    assert fine.loc["mean of genes (log10)", "agreement"] > 0.95
    total = fine.loc["total counts of a cell"]
    assert total.replicated == pytest.approx(total.observed, rel=0.05)
    zeros = fine.loc["share of zeros by gene"]
    assert zeros.low <= zeros.replicated <= zeros.high


def test_summary_is_that_of_arviz(fitted):
    az = pytest.importorskip("arviz")
    tree = fitted.posterior(None, draws=50)
    tree = xr.DataTree.from_dict({"/posterior": tree["posterior"].dataset.isel(cell=slice(0, 3))})
    ours = summary(tree, level=0.9)
    import pyro_fcr as pf

    theirs = az.summary(pf.to_arviz(tree), kind="stats", round_to="none")
    assert list(ours.index) == list(theirs.index)
    np.testing.assert_allclose(ours["mean"], theirs["mean"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ours["sd"], theirs["sd"], rtol=1e-4)


@pytest.mark.parametrize("level", [90, 0, np.nan])
def test_summary_refuses_a_level_that_is_no_probability(fitted, level):
    with pytest.raises(ArgumentError, match=r"level=.*a number between 0 and 1"):
        summary(fitted.posterior(None, draws=2), level=level)


def test_a_diagnosis_tells_of_everything_it_looked_at(fitted):
    diagnosis = fitted.diagnose()
    table = diagnosis.table
    assert set(table["state"]) <= {"fine", "look", "bad"}
    looked_at = {"training", "use of z_tx", "blocks apart", "counts replicated"}
    looked_at |= {"guide against exact posterior", "spread of z_x", "identifiability"}
    assert looked_at <= set(table.index)
    # Fifteen epochs on a handful of cells: a diagnosis that finds all well is none.
    assert diagnosis.state != "fine"
    assert (table["advice"] != "").equals(table["state"] != "fine")


def test_a_model_agrees_with_itself_and_not_with_noise(fitted):
    same = stability([fitted, fitted], max_cells=300)
    assert set(same["block"]) == {"z_x", "z_t", "z_tx"}
    assert (same["mcc"] > 0.999).all()

    other = tiny_fcr(tiny_adata(per_condition=40))
    fit(other, max_epochs=1, seed=7)
    apart = stability([fitted, other], max_cells=300)
    assert apart["mcc"].mean() < 0.9
    assert (same["r2"] > apart["r2"]).all()


def test_a_diagnosis_is_as_bad_as_its_worst_finding():
    fine, bad = Finding("a", "fine", "all well."), Finding("b", "bad", "no.", "more cells")
    diagnosis = Diagnosis((fine, bad))
    assert diagnosis.state == "bad"
    assert Diagnosis((fine,)).state == "fine"
    assert str(diagnosis).splitlines() == [
        "[fine] a: all well.", "[bad] b: no.", "       try: more cells",
    ]  # fmt: skip


def test_association_of_treatments_and_kinds_of_cells():
    # Each treatment has a kind of its own: the bias correction cancels exactly.
    assert cramers_v(np.diag([50, 50, 50])) == pytest.approx(1)
    assert cramers_v(np.full((3, 4), 20)) == 0
    # phi squared is .04 by hand; less 1/399, and sides of 2 - 1/399.
    assert cramers_v(np.array([[120, 80], [80, 120]])) == pytest.approx(
        np.sqrt((0.04 - 1 / 399) / (1 - 1 / 399))
    )
    rng = np.random.default_rng(0)
    drawn = [cramers_v(rng.multinomial(400, np.full(12, 1 / 12)).reshape(3, 4)) for _ in range(50)]
    assert max(drawn) < 0.2


def test_uneven_composition_is_told():
    cells = condition_cells(levels_design(3, 4), repeats=30)
    (fine,) = _composition(cells)
    assert fine.state == "fine"
    kept = (cells.treatment_id != 2) | (cells.covariate_id == 1)
    (told,) = _composition(cells.subset(kept))
    assert told.state == "look"
    assert "randomise" in told.advice
    assert not list(_composition(cells.subset(cells.treatment_id == 0)))


def test_verbs_ask_of_the_cells_they_are_given(fitted):
    """The verbs say what the functions say of the same cells."""
    adata = tiny_adata(per_condition=40)[:60]
    cells = fitted.encode(adata)
    batches = [cells.batch()]
    table = fitted.block_use(adata)
    assert list(table["size"]) == [block.size for block in fitted.declaration.blocks]
    again = block_use(fitted.guide, fitted.model, batches)
    np.testing.assert_allclose(table["overlap"], again["overlap"], rtol=1e-5)
    ranks = fitted.simulated_ranks(adata, draws=9)
    for block in fitted.declaration.blocks:
        assert ranks[block.name].shape == (60, block.size)
        assert ranks[block.name].min() >= 0
        assert ranks[block.name].max() <= 9
    pit = fitted.pit_values(adata, draws=10)
    made = pit_values(
        fitted.model, fitted.guide, cells, draws=10, seed=0, device=torch.device("cpu")
    )
    np.testing.assert_array_equal(pit, made)
    assert pit.shape == adata.shape
