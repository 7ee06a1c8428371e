"""Mixtures against scipy."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp
from tiny import tiny_cells

from pyro_fcr.nn import Block
from pyro_fcr.priors import Mixture


@pytest.fixture(scope="module")
def cells():
    return tiny_cells()


def bound(cells, size, **options):
    prior = Mixture(**options)
    prior.bind(Block("z", size, frozenset({"treatment", "covariates"})), cells.design)
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return prior


def test_density_by_hand(cells):
    prior, batch = bound(cells, 2, components=3), cells.batch(slice(0, 6))
    raw = prior.table(batch).detach().numpy().astype("float64")
    z = torch.randn(6, 2)
    weight = raw[:, :3] - logsumexp(raw[:, :3], axis=1, keepdims=True)
    loc = raw[:, 3:9].reshape(6, 3, 2) + prior.centres.detach().numpy()
    scale = np.exp(3 * np.tanh(raw[:, 9:] / 3)).reshape(6, 3, 2)
    parts = stats.norm.logpdf(z.numpy()[:, None], loc, scale).sum(-1)
    np.testing.assert_allclose(
        prior(batch).log_prob(z).detach(), logsumexp(weight + parts, axis=1), rtol=1e-4, atol=1e-5
    )


def test_it_integrates_to_one_in_every_condition(cells):
    made = bound(cells, 1, components=4)(cells.batch(slice(0, 8)))
    grid = torch.linspace(-60, 60, 60001)
    density = made.log_prob(grid[:, None, None]).exp()
    torch.testing.assert_close(torch.trapezoid(density, grid, dim=0), torch.ones(8), atol=1e-3,
                               rtol=0)  # fmt: skip


def test_components_start_apart(cells):
    prior = Mixture(components=3)
    prior.bind(Block("z", 4), cells.design)
    made = prior(cells.batch(slice(0, 2)))
    assert torch.pdist(made.component_distribution.mean[0]).min() > 0.1
    torch.testing.assert_close(made.mixture_distribution.probs, torch.full((2, 3), 1 / 3))
