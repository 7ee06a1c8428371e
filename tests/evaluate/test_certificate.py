import numpy as np
import pytest

from pyro_fcr import simulate
from pyro_fcr.errors import DesignError
from pyro_fcr.evaluate import (
    bootstrap_prior,
    interaction_contrasts,
    natural_parameters,
    rank_certificate,
)


def certificate(adata, *, n_boot=60, **options):
    b = bootstrap_prior(
        adata.obsm["z_tx"],
        adata.obs["treatment"],
        adata.obs["covariate"],
        control="control",
        n_boot=n_boot,
    )
    return rank_certificate(b.loc, b.scale, b.loc_replicates, b.scale_replicates, **options)


def test_natural_parameters_by_hand():
    eta = natural_parameters([[3.0, 1.0]], [[0.5, 2.0]])
    assert eta == pytest.approx(np.array([[12.0, 0.25, -2.0, -0.125]]))


def test_contrasts_by_hand():
    eta = np.array([[[1.0], [2.0], [4.0]], [[3.0], [7.0], [0.0]]])
    # 7 - 3 - 2 + 1 = 3 and 0 - 3 - 4 + 1 = -6.
    assert interaction_contrasts(eta) == pytest.approx(np.array([[3.0], [-6.0]]))


def test_contrasts_of_an_additive_table_vanish():
    rng = np.random.default_rng(0)
    eta = rng.normal(size=(5, 1, 6)) + rng.normal(size=(1, 4, 6))
    assert np.abs(interaction_contrasts(eta)).max() < 1e-12


def test_contrasts_have_the_rank_of_the_simulated_truth():
    truth = simulate.factorised(n_per_condition=1, n_genes=5).uns["simulation"]
    prior = truth["prior"]["z_tx"]
    k = interaction_contrasts(natural_parameters(prior["loc"], prior["scale"]))
    assert k.shape == (30, 8)
    assert np.linalg.matrix_rank(k) == truth["rank"]["rank"]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("variant", ["base", "cond"])
def test_valid_designs_are_identified(variant, seed):
    adata = simulate.factorised(variant, n_genes=2, seed=seed)
    result = certificate(adata)
    assert result.identified, str(result)
    assert result.p_value < 1e-6


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("variant", ["additive", "fixed_variance", "few_conditions", "null"])
def test_violations_are_not_identified(variant, seed):
    result = certificate(simulate.factorised(variant, n_genes=2, seed=seed))
    assert result.verdict == "not identified", str(result)


def test_level_where_exactly_one_rank_is_lost():
    # A component whose scale is fixed, in samples: J is chi-square with 30 - 8 + 1 degrees.
    rejected, n_seeds = 0, 60
    for seed in range(n_seeds):
        rng = np.random.default_rng(seed)
        loc = rng.normal(0, 1.5, (7, 6, 4))
        scale = np.exp(rng.uniform(np.log(0.4), np.log(1.6), (7, 6, 4)))
        scale[..., 0] = 0.8
        n = 200
        hat_m = loc + scale * rng.normal(size=loc.shape) / np.sqrt(n)
        hat_s = scale * np.sqrt(rng.chisquare(n - 1, loc.shape) / (n - 1))
        boot_m = hat_m + hat_s * rng.normal(size=(60, *loc.shape)) / np.sqrt(n)
        boot_s = hat_s * np.sqrt(rng.chisquare(n - 1, (60, *loc.shape)) / (n - 1))
        result = rank_certificate(hat_m, hat_s, boot_m, boot_s)
        rejected += result.p_value < 0.05
        assert result.verdict == "not identified"
    # Binomial(60, 0.05) exceeds 9 with probability 0.1 %.
    assert rejected <= 9


def test_statistic_of_one_component_agrees_with_a_grid_search():
    rng = np.random.default_rng(3)
    loc, scale = rng.normal(size=(4, 3, 1)), np.exp(rng.normal(0, 0.3, (4, 3, 1)))
    locs = loc + 0.1 * rng.normal(size=(4000, 4, 3, 1))
    scales = scale * np.exp(0.05 * rng.normal(size=(4000, 4, 3, 1)))
    result = rank_certificate(loc, scale, locs, scales)
    eta = natural_parameters(loc, scale).reshape(12, 2)
    replicates = natural_parameters(locs, scales).reshape(4000, 12, 2)
    design = np.concatenate([np.repeat(np.eye(4), 3, 0), np.tile(np.eye(3), (4, 1))], axis=1)
    values = []
    for angle in np.linspace(0, np.pi, 4000):
        v = np.array([np.cos(angle), np.sin(angle)])
        root = 1 / (replicates @ v).std(0)
        y, a = root * (eta @ v), root[:, None] * design
        values.append(((y - a @ np.linalg.lstsq(a, y, rcond=None)[0]) ** 2).sum())
    assert result.statistic == pytest.approx(min(values), rel=0.03)


def test_shift_and_rescaling_of_components_change_nothing():
    adata = simulate.factorised(n_per_condition=60, n_genes=2, seed=1)
    first = certificate(adata)
    adata.obsm["z_tx"] = adata.obsm["z_tx"] * np.array([2, 0.1, 1, -3]) + np.array([5, 0, -9, 1])
    second = certificate(adata)
    assert second.ratio == pytest.approx(first.ratio, rel=1e-3)
    assert second.statistic == pytest.approx(first.statistic, rel=1e-2)


def test_few_cells_leave_it_undetermined():
    for variant in ("base", "additive"):
        adata = simulate.factorised(variant, n_per_condition=8, n_genes=2, seed=0)
        result = certificate(adata)
        assert result.verdict == "undetermined", str(result)
        assert result.detectable > result.threshold


def test_exact_zero_needs_no_replicates():
    rng = np.random.default_rng(0)
    loc, scale = rng.normal(size=(7, 6, 4)), np.full((7, 6, 4), 0.7)
    result = rank_certificate(loc, scale)
    assert result.verdict == "not identified"
    assert result.ratio == pytest.approx(0, abs=1e-9)
    free = rank_certificate(loc, np.exp(rng.normal(0, 0.4, (7, 6, 4))))
    assert free.verdict == "undetermined"
    assert "no replicates" in str(free)


def test_count_is_checked_first_and_suggests_a_size():
    rng = np.random.default_rng(0)
    result = rank_certificate(rng.normal(size=(3, 4, 4)), np.exp(rng.normal(size=(3, 4, 4))))
    assert result.verdict == "not identified"
    assert "a z_tx of size 3 at most" in str(result)
    assert "6 interaction contrasts for the 8" in str(result)


def test_unseen_conditions_only_cost_contrasts():
    adata = simulate.factorised("hold", n_genes=2, seed=0)
    result = certificate(adata[~adata.obs["held_out"].to_numpy()])
    assert result.n_contrasts == 30 - 7
    assert result.identified


def test_bootstrap_moments():
    rng = np.random.default_rng(0)
    z = rng.normal(2.0, 0.5, (400, 1))
    t, x = np.repeat(["c", "a"], 200), np.tile(["u", "v"], 200)
    b = bootstrap_prior(z, t, x, control="c", variance=np.full((400, 1), 0.75), n_boot=400)
    assert b.treatments == ("c", "a")
    rows = (t == "a") & (x == "v")
    assert b.loc[1, 1, 0] == pytest.approx(z[rows].mean())
    assert b.scale[1, 1, 0] == pytest.approx(np.sqrt(z[rows].var(ddof=1) + 0.75))
    assert b.loc_replicates[:, 1, 1, 0].std() == pytest.approx(z[rows].std() / 10, rel=0.15)


def test_errors():
    with pytest.raises(DesignError, match="not positive"):
        natural_parameters([0.0], [0.0])
    with pytest.raises(DesignError, match="wrong shape"):
        interaction_contrasts(np.ones((2, 2)))
    with pytest.raises(DesignError, match="wrong shape"):
        rank_certificate(np.ones((3, 3, 1)), np.ones((3, 3, 2)))
    rng = np.random.default_rng(0)
    loc, scale = rng.normal(size=(4, 4, 1)), np.exp(rng.normal(size=(4, 4, 1)))
    with pytest.raises(DesignError, match="R >= 20"):
        rank_certificate(loc, scale, loc[None], scale[None])
    with pytest.raises(DesignError, match="do not describe"):
        bootstrap_prior(np.ones((2, 1)), ["a", "b"], ["x", "x"], control="c")
