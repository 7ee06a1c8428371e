"""Likelihoods: what the decoder's output means, and what encoders read."""

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import fit, tiny_adata, tiny_cells, tiny_fcr, tiny_schema

import pyro_fcr as pf
from pyro_fcr.errors import CountsError, DesignError, SlotError
from pyro_fcr.likelihoods import gene_statistics, log_mean_counts, resolve

NAMES = ["nb", "zinb", "poisson", "normal"]


@pytest.fixture(scope="module")
def batch():
    return tiny_cells().batch(slice(0, 7))


@pytest.mark.parametrize("name", NAMES)
def test_shapes(name, batch):
    likelihood = resolve(name)
    likelihood.bind(20)
    made = likelihood(torch.randn(3, 7, 20 * likelihood.channels), batch)
    assert (made.batch_shape, made.event_shape) == ((3, 7), (20,))
    assert made.log_prob(batch.counts).shape == (3, 7)
    assert torch.isfinite(made.log_prob(batch.counts)).all()
    assert made.mean.shape == (3, 7, 20)


def test_names_and_objects():
    mine = pf.likelihoods.Poisson()
    assert resolve(mine) is mine
    with pytest.raises(SlotError, match=r"unknown likelihood .*'nb'.*got 'negbin'"):
        resolve("negbin")
    with pytest.raises(SlotError, match="unknown likelihood"):
        resolve(pf.likelihoods.Poisson)


def test_the_library_is_shared_among_the_genes(batch):
    log_mean = log_mean_counts(torch.randn(7, 20), batch)
    torch.testing.assert_close(log_mean.exp().sum(-1), batch.library)
    assert (batch.library == batch.counts.sum(-1)).all()


@pytest.mark.parametrize("name", ["nb", "poisson"])
def test_density_by_scipy(name, batch):
    likelihood = resolve(name)
    likelihood.bind(20)
    decoded = torch.randn(7, 20)
    share = np.exp(decoded.double().numpy())
    mu = batch.library.double().numpy()[:, None] * share / share.sum(1, keepdims=True)
    counts = batch.counts.double().numpy()
    theta = 4.0
    if name == "nb":
        likelihood.log_dispersion.data.fill_(np.log(theta))
    expected = (
        stats.poisson.logpmf(counts, mu)
        if name == "poisson"
        else stats.nbinom.logpmf(counts, theta, theta / (theta + mu))
    ).sum(1)
    with torch.no_grad():
        made = likelihood(decoded, batch).log_prob(batch.counts)
    np.testing.assert_allclose(made, expected, rtol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_start_is_the_mean_profile(name, batch):
    likelihood = resolve(name)
    likelihood.bind(20)
    genes = gene_statistics(likelihood, [batch])
    with torch.no_grad():
        made = likelihood(likelihood.start(genes.rate).expand(7, -1), batch)
    expected = genes.rate if name == "normal" else genes.rate * batch.library[:, None]
    # A structural zero is rare at the start: sigmoid(-3).
    tolerance = 0.06 if name == "zinb" else 1e-4
    torch.testing.assert_close(made.mean, expected.expand(7, -1), rtol=tolerance, atol=1e-4)


def test_moments_of_the_genes_over_several_batches():
    cells = tiny_cells()
    likelihood = resolve("nb")
    whole = gene_statistics(likelihood, [cells.batch()])
    parts = gene_statistics(
        likelihood, [cells.batch(slice(0, 100)), cells.batch(slice(100, None))]
    )
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    counts = cells.counts.toarray() if hasattr(cells.counts, "toarray") else cells.counts
    features = np.log1p(counts / cells.library[:, None] * 1e4)
    np.testing.assert_allclose(whole.mean, features.mean(0), rtol=1e-4)
    np.testing.assert_allclose(whole.scale, features.std(0).clip(0.1), rtol=1e-3)
    np.testing.assert_allclose(whole.rate, (counts / cells.library[:, None]).mean(0), rtol=1e-4)


def test_a_gene_that_never_varies_keeps_a_scale(batch):
    constant = batch.replace(counts=batch.library[:, None].expand(7, 20) * 0.05)
    assert (gene_statistics(resolve("nb"), [constant]).scale == 0.1).all()


def test_empty_cells_have_finite_features(batch):
    empty = batch.replace(counts=batch.counts * 0, library=batch.library * 0)
    assert (resolve("nb").features(empty) == 0).all()


def test_the_dispersion_is_kept_where_float32_can_evaluate_it(batch):
    likelihood = resolve("nb")
    likelihood.bind(20)
    for extreme in (-100.0, 100.0):
        likelihood.log_dispersion.data.fill_(extreme)
        assert torch.isfinite(likelihood(torch.zeros(7, 20), batch).log_prob(batch.counts)).all()


@pytest.mark.parametrize("name", NAMES)
def test_each_trains_two_epochs_by_name_and_as_an_object(name):
    adata = tiny_adata(per_condition=10)
    if name == "normal":
        adata.X = np.log1p(adata.X) - 1.0
    losses = []
    for given in (name, resolve(name)):
        fcr = tiny_fcr(adata, likelihood=given)
        losses.append(list(fit(fcr)["loss"]))
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]
    assert np.isfinite(fcr.reconstruct(draws=2).X).all()


def test_negative_values_are_for_the_normal_alone():
    adata = tiny_adata(per_condition=10)
    adata.X = adata.X - 1.5
    with pytest.raises(CountsError):
        tiny_fcr(adata, likelihood="nb")


def test_the_batch_enters_the_decoder_where_the_schema_names_one():
    adata = tiny_adata(per_condition=10)
    with_batch = tiny_fcr(adata, schema=tiny_schema(batch="lane"))
    without = tiny_fcr(adata, schema=tiny_schema(batch="lane"), batch_in_decoder=False)
    assert with_batch.model.decoder.reads == {"batch"}
    assert not without.model.decoder.reads
    assert not tiny_fcr(adata).model.decoder.reads
    fit(with_batch)
    a = with_batch.counterfactual(adata, do={"batch": "l0"}, draws=2).X
    b = with_batch.counterfactual(adata, do={"batch": "l1"}, draws=2).X
    assert not np.allclose(a, b)
    fit(without)
    with pytest.raises(DesignError, match=r"nothing in this FCR depends on \['batch'\]"):
        without.counterfactual(adata, do={"batch": "l0"}, draws=2)
