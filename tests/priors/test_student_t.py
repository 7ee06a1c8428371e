"""Heavy tails against scipy."""

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import tiny_cells

from pyro_fcr.errors import SlotError
from pyro_fcr.nn import Block
from pyro_fcr.priors import StudentT

BLOCK = Block("z", 2, frozenset({"treatment"}))


@pytest.fixture(scope="module")
def cells():
    return tiny_cells()


@pytest.mark.parametrize("learn", [False, True])
def test_density_is_scipys(cells, learn):
    prior, batch = StudentT(df=4.0, learn_df=learn), cells.batch(slice(0, 7))
    prior.bind(BLOCK, cells.design)
    raw, z = prior.table(batch).detach().double().numpy(), 5 * torch.randn(7, 2)
    scale = np.exp(3 * np.tanh(raw[:, 2:] / 3))
    expected = stats.t.logpdf(z.numpy(), 4.0, raw[:, :2], scale).sum(-1)
    np.testing.assert_allclose(prior(batch).log_prob(z).detach(), expected, rtol=1e-4)


def test_degrees_of_freedom_learn_and_keep_the_variance(cells):
    prior, batch = StudentT(df=4.0, learn_df=True), cells.batch(slice(0, 50))
    prior.bind(BLOCK, cells.design)
    prior(batch).log_prob(torch.randn(50, 2) * 6).sum().backward()
    # Far-out values ask for heavier tails in every dimension.
    assert (prior.raw_df.grad < 0).all()
    for extreme in (-1e4, 1e4):
        with torch.no_grad():
            prior.raw_df.fill_(extreme)
        variance = prior(batch).variance
        assert torch.isfinite(variance).all()
        assert (variance > 0).all()


@pytest.mark.parametrize("df", [2.0, 0.0, -1.0, float("inf"), float("nan")])
def test_refused(df):
    with pytest.raises(SlotError, match=r"StudentT\(df=\).*above 2"):
        StudentT(df=df)
