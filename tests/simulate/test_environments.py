"""Simulated environments: their moments, their confounding, their refusals."""

import numpy as np
import pytest

import pyro_fcr as pf
from pyro_fcr.errors import DesignError


@pytest.fixture(scope="module")
def adata():
    return pf.simulate.environments(n_cells=20_000, n_genes=20, confounding=0.5, seed=3)


@pytest.mark.parametrize(("block", "column"), [("z_inv", "biology"), ("z_spur", "batch")])
def test_each_level_has_moments_of_its_own(adata, block, column):
    prior = adata.uns["simulation"]["prior"][block]
    codes = adata.obs[column].cat.codes.to_numpy()
    levels, d = prior["loc"].shape
    assert levels == 2 * d + 1
    for level in range(levels):
        z = adata.obsm[block][codes == level]
        error = prior["scale"][level] / np.sqrt(len(z))
        assert (np.abs(z.mean(0) - prior["loc"][level]) < 5 * error).all()
        np.testing.assert_allclose(z.std(0), prior["scale"][level], rtol=0.15)
    eta = np.concatenate([prior["loc"] / prior["scale"] ** 2, -0.5 / prior["scale"] ** 2], 1)
    # Identifiability of a conditional Gaussian prior: contrasts of full rank.
    assert np.linalg.matrix_rank(eta[1:] - eta[0]) == 2 * d


@pytest.mark.parametrize("confounding", [0.0, 0.5, 0.9])
def test_confounding_is_the_share_that_follows(confounding):
    made = pf.simulate.environments(n_cells=20_000, n_genes=5, confounding=confounding, seed=1)
    d, e = (made.obs[name].cat.codes.to_numpy() for name in ("biology", "batch"))
    share = (e == d % 5).mean()
    assert share == pytest.approx(confounding + (1 - confounding) / 5, abs=0.02)
    if confounding < 0.9:
        assert made.obs.groupby(["biology", "batch"], observed=False).size().min() > 0


def test_blocks_do_not_see_the_other_label(adata):
    """Given its own parent a block says nothing of the other: within-level means agree."""
    d, e = (adata.obs[name].cat.codes.to_numpy() for name in ("biology", "batch"))
    scale = adata.uns["simulation"]["prior"]["z_inv"]["scale"]
    loc = adata.uns["simulation"]["prior"]["z_inv"]["loc"]
    residual = (adata.obsm["z_inv"] - loc[d]) / scale[d]
    for level in range(5):
        inside = residual[e == level]
        assert (np.abs(inside.mean(0)) < 5 / np.sqrt(len(inside))).all()


def test_same_seed_same_cells():
    first, again, other = (
        pf.simulate.environments(n_cells=50, n_genes=10, seed=seed) for seed in (1, 1, 2)
    )
    assert (first.X != again.X).nnz == 0
    assert (first.X != other.X).nnz > 0
    assert (first.X.sum(1) > 0).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_biologies": 8}, "n_biologies.*at least 9"),
        ({"n_batches": 4}, "n_batches.*at least 5"),
        ({"confounding": 1.5}, "confounding"),
        ({"sizes": {"z": 3}}, "sizes"),
        ({"n_genes": 1}, "n_genes"),
    ],
)
def test_refusals(options, said):
    with pytest.raises(DesignError, match=said):
        pf.simulate.environments(**options)
