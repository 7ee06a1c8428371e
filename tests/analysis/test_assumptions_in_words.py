"""What the certificate says beside the rank."""

import numpy as np
import pytest
from tiny import fit, levels_design, tiny_adata, tiny_fcr

from pyro_fcr.analysis.assumptions import doubts, posterior_and_prior
from pyro_fcr.analysis.conditions import condition_cells
from pyro_fcr.evaluate import rank_certificate

PARENTS = {"z_x": frozenset({"covariates"}), "z_tx": frozenset({"treatment", "covariates"})}


@pytest.fixture(scope="module")
def cells():
    return condition_cells(levels_design(5, 4), repeats=80)


def moments(cells, shift=0.0, correlation=0.0, seed=0):
    """Posteriors without error of latents around their prior, in units that are not one."""
    rng = np.random.default_rng(seed)
    n, found = len(cells), {}
    scale = np.exp(rng.uniform(-1, 1, (5, 4, 3)))[cells.treatment_id, cells.covariate_id]
    prior = rng.standard_normal((5, 4, 3))[cells.treatment_id, cells.covariate_id]
    for name in PARENTS:
        noise = rng.standard_normal((n, 3))
        if name == "z_x":
            noise += shift * rng.standard_normal((5, 3))[cells.treatment_id]
        else:
            common = rng.standard_normal((n, 1))
            noise = np.sqrt(1 - correlation) * noise + np.sqrt(correlation) * common
        found[name] = prior + scale * noise, np.zeros((n, 3)), prior, scale**2
    return found


def test_valid_cells_leave_no_doubt(cells):
    assert sum(bool(doubts(moments(cells, seed=s), PARENTS, cells, "z_tx")) for s in range(20)) < 2


def test_each_doubt_names_its_block(cells):
    (words,) = doubts(moments(cells, shift=0.3), PARENTS, cells, "z_tx")
    assert words.startswith("z_x depends on the treatment against its prior, by 0.")
    (words,) = doubts(moments(cells, correlation=0.6), PARENTS, cells, "z_tx")
    assert words.startswith("components of z_tx correlate within conditions (about 0.")
    assert len(doubts(moments(cells, 0.3, 0.6), PARENTS, cells, "z_tx")) == 2


def test_doubts_unmake_an_identification_and_nothing_else(cells):
    rng = np.random.default_rng(0)
    loc, scale = rng.normal(0, 2, (6, 5, 2)), np.exp(rng.uniform(-1, 0.5, (6, 5, 2)))
    noise = 1 + 0.01 * rng.standard_normal((30, 6, 5, 2))
    sure = rank_certificate(loc, scale, loc * noise, scale * noise)
    assert sure.identified
    assert sure.doubting(()) is sure
    doubted = sure.doubting(("selection",))
    assert doubted.verdict == "undetermined"
    assert "Beside the rank: selection." in str(doubted)
    additive = rank_certificate(np.zeros((6, 5, 2)), np.ones((6, 5, 2))).doubting(("selection",))
    assert additive.verdict == "not identified"
    assert additive.doubts == ("selection",)


def test_moments_are_those_of_the_guide_and_of_the_prior():
    fcr = tiny_fcr(tiny_adata())
    fit(fcr)
    cells = fcr.encode()
    batch = cells.batch()
    found = posterior_and_prior(fcr.model, fcr.guide, [batch], seed=0)
    prior = fcr.model.priors["z_x"](batch)
    assert found["z_x"][0] == pytest.approx(fcr.latents()["z_x"].to_numpy(), abs=1e-5)
    assert found["z_x"][2] == pytest.approx(prior.mean.detach().numpy(), abs=1e-6)
    assert found["z_x"][3] == pytest.approx(prior.variance.detach().numpy(), rel=1e-5)
