"""The tasks against numbers known beforehand, and a quick run of every configuration."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import pyro_fcr as pf
from pyro_fcr import evaluate
from pyro_fcr.benchmark import Problem, available, compare, read_config, run, summarise
from pyro_fcr.benchmark.methods import fitted
from pyro_fcr.benchmark.problem import _with_controls
from pyro_fcr.benchmark.table import _figure, shares
from pyro_fcr.benchmark.tasks.calibration import Calibration
from pyro_fcr.benchmark.tasks.prediction import CEILING, REPLICATE, Prediction
from pyro_fcr.benchmark.tasks.reading import Clustering, Factors, Independence
from pyro_fcr.benchmark.tasks.recovery import Recovery, _called
from pyro_fcr.benchmark.tasks.restarts import Restarts
from pyro_fcr.benchmark.tasks.scene import Scene
from pyro_fcr.benchmark.tasks.targets import Targets
from pyro_fcr.errors import SchemaError

SCHEMA = pf.Schema(treatment="treatment", control="control", covariates="covariate")


@pytest.fixture(scope="module")
def problem():
    adata = pf.simulate.factorised(
        n_per_condition=60, n_genes=40, n_treatments=5, n_covariates=4, seed=1
    )
    return Problem(
        adata, SCHEMA, pf.splits.combinations(adata, SCHEMA, share=0.3, valid=0, seed=1)
    )


class Knowing:
    """Knows the truth: the true latents, and the true expectation under another treatment."""

    def __init__(self, adata):
        self.adata = adata

    def latents(self, adata=None):
        adata = self.adata if adata is None else adata
        return {name: pd.DataFrame(adata.obsm[name]) for name in ("z_x", "z_t", "z_tx")}

    def counterfactual(self, adata, *, do, draws, seed):
        found = adata.copy()
        found.X = pf.simulate.counterfactual_truth(adata, do["treatment"], draws=20, seed=seed)
        return found


def test_combinations_are_held_out_whole_and_known_in_parts(problem):
    test, adata = problem.mask("test"), problem.adata
    held = set(problem.condition[test])
    # A share of .3 of 4 x 4 treated conditions.
    assert len(held) == 5
    assert not held & set(problem.condition[~test])
    assert not (adata.obs["treatment"][test] == "control").any()
    assert set(problem.treatment[~test]) == set(problem.treatment)
    assert set(problem.covariate[~test]) == set(problem.covariate)
    again = pf.splits.combinations(adata[::-1], SCHEMA, share=0.3, valid=0, seed=1)
    assert again.hash == problem.split.hash


def test_as_many_combinations_as_can_be_spared(problem):
    adata = problem.adata
    split = pf.splits.combinations(adata, SCHEMA, share=0.99, valid=0, seed=0)
    trained = ~split.mask(adata, "test")
    # Each of four treatments keeps one of four combinations; the groups have their controls.
    treated = set(problem.condition[trained & (problem.treatment != "control")])
    assert sorted(label.split("|")[0] for label in treated) == ["t1", "t2", "t3", "t4"]
    bare = adata[(problem.treatment != "control") | (problem.covariate != "x1")].copy()
    split = pf.splits.combinations(bare, SCHEMA, share=0.99, valid=0, seed=0)
    kept = bare.obs[~split.mask(bare, "test")]
    assert (kept["covariate"] == "x1").any()
    with pytest.raises(SchemaError, match="nothing to combine"):
        pf.splits.combinations(adata, pf.Schema(treatment="treatment", control="control"))


def test_the_truth_predicts_best_and_the_rule_has_no_interaction(problem):
    task = Prediction(draws=1)
    rows = pd.DataFrame(task.references(problem, seed=0))
    both = pd.DataFrame(task.judge(problem, Knowing(problem.adata), seed=0))
    truth, changes = both[both["form"].isna()], both[both["form"] == "as change"]
    assert len(truth) == len(changes) == 5 + 1
    assert changes["effect R2"].dropna().item() > 0.8
    conditions = truth[truth["treatment"] != "*"]
    assert len(conditions) == 5
    measures = ["gain", "size", "effect R2", "interaction R2"]
    mean = rows.groupby("method")[measures].mean()
    assert conditions["gain"].mean() > mean.loc["additive", "gain"] + 0.2
    assert truth["interaction R2"].dropna().item() > 0.7
    # By construction: the rule predicts no interaction, the other half all that is shared.
    assert mean.loc["additive", "interaction R2"] == pytest.approx(0, abs=1e-12)
    assert mean.loc[REPLICATE, "interaction R2"] == pytest.approx(1)
    assert mean.loc["control mean", "effect R2"] == pytest.approx(0, abs=1e-12)
    assert truth["effect R2"].dropna().item() > 0.9
    # The control mean predicts no change at all.
    assert mean.loc["control mean", "gain"] == pytest.approx(0, abs=1e-12)
    assert mean.loc["control mean", "size"] == pytest.approx(0, abs=1e-6)
    gain = rows.groupby("method")["gain"].mean()
    assert gain["additive"] < min(gain["interpolated duplicate"], gain[REPLICATE])
    pearson = rows[rows["treatment"] != "*"].pivot(
        index=["treatment", "covariate"], columns="method", values="pearson change"
    )
    np.testing.assert_allclose(pearson[CEILING] ** 2, pearson[REPLICATE])


def test_corrected_means_are_scored_by_the_change_they_tell(problem):
    """A model whose means are off by a constant but whose changes are true."""

    class Corrected(Knowing):
        design = pf.Design.fit(problem.adata, SCHEMA)

        def condition_means(self, adata, *, draws, seed):
            assert not set(problem.adata.obs_names[problem.mask("test")]) & set(adata.obs_names)
            treatments = self.design.treatment_levels
            groups = tuple(level[0] for level in self.design.covariate_levels)
            change = np.zeros((len(treatments), len(groups), adata.n_vars))
            for (t, x), measured in scene.sampled().items():
                change[treatments.index(t), groups.index(x)] = measured.change
            return SimpleNamespace(
                treatments=treatments, covariates=groups, change=change, mean=change + 100,
                change_sd=np.ones_like(change),
            )  # fmt: skip

    scene = Scene(problem, 1000, seed=0)
    rows = pd.DataFrame(Prediction(draws=1).judge(problem, Corrected(problem.adata), seed=0))
    rows = rows[(rows["form"] == "corrected") & (rows["treatment"] != "*")]
    assert len(rows) == 5
    assert rows["gain"].min() > 0.8
    assert rows["change coverage 90%"].min() == 1
    assert (rows["R2 top 100"] < -10).all()


def test_interaction_agrees_with_the_metric(problem):
    scene = Scene(problem, 1000, seed=0)
    ridge = evaluate.Ridge().fit(scene.training)
    predicted = {key: ridge.predict(*key).to_numpy() for key in scene.conditions}
    changes = {key: value - scene.reference[key[1]] for key, value in predicted.items()}
    row = scene._interaction(changes)
    frame = pd.DataFrame(predicted.values(), pd.MultiIndex.from_tuples(predicted),
                         scene.train.columns)  # fmt: skip
    wanted = evaluate.interaction_r2(frame, scene.halves, scene.train, control="control")
    assert row["interaction R2"] == pytest.approx(wanted.r2)
    assert row["interaction reliability"] == pytest.approx(wanted.reliability)
    assert row["interaction low"] <= row["interaction R2"] <= row["interaction high"]


def test_values_that_are_no_counts_are_compared_as_they_are():
    adata = pf.simulate.factorised(
        "gaussian", n_per_condition=40, n_genes=20, n_treatments=3, n_covariates=3, seed=2
    )
    split = pf.splits.combinations(adata, SCHEMA, share=0.3, valid=0, seed=0)
    problem = Problem(adata, SCHEMA, split, "normal")
    cells = np.flatnonzero(problem.condition == "t1|x1")
    profiles = problem.training(np.arange(adata.n_obs)).profiles
    np.testing.assert_allclose(
        profiles.loc[[("t1", "x1")]].to_numpy()[0], adata.X[cells].mean(0), 1e-5
    )
    rows = pd.DataFrame(Prediction().references(problem, seed=0))
    assert rows.loc[rows["method"] == REPLICATE, "gain"].dropna().min() > 0.8


def test_held_out_controls_keep_the_noise_of_one_control_out_of_both_changes():
    rng = np.random.default_rng(0)
    # Twelve groups of cells that differ in nothing, treated or not: there is no effect.
    obs = pd.DataFrame(
        [(t, f"x{i}") for t in ("control", "a") for i in range(12) for _ in range(20)],
        columns=["t", "x"],
    )
    obs.index = [f"c{i}" for i in range(len(obs))]
    adata = AnnData(rng.standard_normal((len(obs), 200)).astype("float32"), obs)
    schema = pf.Schema(treatment="t", control="control", covariates="x")
    split = pf.splits.combinations(adata, schema, share=0.5, valid=0, seed=0)
    shared = Problem(adata, schema, split, "normal")
    apart = Problem(adata, schema, _with_controls(split, adata, schema, 0.4, 0), "normal")
    found = []
    for problem in (shared, apart):
        scene = Scene(problem, 1000, seed=0)
        everywhere = scene.train.to_numpy().mean(0)
        rows = pd.DataFrame(scene.rows(dict.fromkeys(scene.conditions, everywhere)))
        found.append(rows["pearson change"].mean())
    # The mean over all groups knows of no effect. Against the one noisy control it seems to.
    assert found[0] > 0.4
    assert abs(found[1]) < 0.1
    test = apart.mask("test") & (apart.treatment == "control")
    assert set(np.unique(apart.covariate[test], return_counts=True)[1]) == {8}


def test_sum_of_singles():
    rng, genes = np.random.default_rng(0), 30
    effect = {"control": np.zeros(genes)} | {p: rng.normal(0, 1, genes) for p in "AB"}
    effect["A+B"] = effect["A"] + effect["B"]
    treatment = np.repeat(list(effect), 100)
    x = np.stack([effect[t] for t in treatment]) + 0.1 * rng.standard_normal((400, genes))
    obs = pd.DataFrame({"t": treatment, "x": "one"}, index=[f"c{i}" for i in range(400)])
    adata = AnnData(x.astype("float32"), obs)
    schema = pf.Schema(treatment="t", control="control", covariates="x")
    split = pf.splits.hold_out(adata, {"t": "A+B"}, valid=0)
    rows = Prediction().references(Problem(adata, schema, split, "normal"), seed=0)
    gain = {row["method"]: row["gain"] for row in rows if "gain" in row}
    assert gain["sum of singles"] == pytest.approx(1, abs=0.01)
    assert "additive" not in gain


def test_true_latents_are_recovered_and_independent(problem):
    split = pf.splits.random(problem.adata, test=0.5, valid=0, seed=0)
    whole = Problem(problem.adata, SCHEMA, split)
    (row,) = Recovery(max_cells=400).judge(whole, Knowing(problem.adata), seed=0)
    assert row["MCC z_tx"] == pytest.approx(1)
    assert min(row[f"R2 {z}"] for z in ("z_x", "z_t", "z_tx")) > 0.95
    assert row["leakage"] < 0.1
    few = Problem(problem.adata[problem.covariate < "x3"], SCHEMA, split)
    task = Independence(metric="auc", permutations=99)
    read = pd.DataFrame(task.judge(few, Knowing(few.adata), seed=0))
    table = read.set_index(["block", "label"])
    assert table.loc[("z_x", "treatment"), "p"] > 0.05
    assert abs(table.loc[("z_x", "treatment"), "score"] - 0.5) < 0.1
    assert table.loc[("z_t", "treatment"), "score"] > 0.7
    assert table.loc[("z_x", "covariate"), "score"] > 0.7


def test_several_covariates_are_read_one_by_one(problem):
    few = (problem.covariate < "x3") & np.isin(problem.treatment, ["control", "t1"])
    adata = problem.adata[few].copy()
    adata.obs["donor"] = np.where(adata.obsm["z_x"][:, 0] > 0, "high", "low")
    both = pf.Schema(treatment="treatment", control="control", covariates=["covariate", "donor"])
    made = Problem(adata, both, pf.splits.random(adata, test=0.6, valid=0, seed=0))
    task = Independence(permutations=19, max_cells=40)
    rows = pd.DataFrame(task.judge(made, Knowing(adata), seed=0))
    assert set(rows["label"]) == {"treatment", "covariate", "donor"}
    told = rows.set_index(["block", "label"])["excess"]
    # The donor is the sign of one coordinate of z_x, and of nothing else.
    assert told["z_x", "donor"] > 0.4
    assert abs(told["z_t", "donor"]) < 0.15


def test_coverage_of_the_exact_posterior_and_of_one_too_narrow():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(2000, 2))
    condition = np.repeat(["a", "b"], 1000)
    # A posterior with known errors: truth = mean + N(0, 0.6^2), in another order, sign and scale.
    mean = truth + 0.6 * rng.normal(size=truth.shape)
    shrunk, sd = mean / 1.36, 0.6 / np.sqrt(1.36)
    draws = shrunk + sd * rng.normal(size=(200, *truth.shape))
    row = Calibration()._coverage(-3 * draws[:, :, ::-1] + 1, truth, condition)
    assert row["coverage 90%"] == pytest.approx(0.9, abs=0.02)
    assert row["matched"] == pytest.approx(1 / np.sqrt(1.36), abs=0.02)
    narrow = shrunk + 0.3 * sd * rng.normal(size=draws.shape)
    assert Calibration()._coverage(narrow, truth, condition)["coverage 90%"] < 0.6


def test_a_method_is_calibrated_where_its_configuration_says_so(problem):
    method = {"system": "FCR", "options": {"hidden": 8}, "fit": {"max_epochs": 2}}
    as_fitted = fitted(method, problem, seed=0)
    assert "calibrated" not in as_fitted.settings
    assert (
        fitted({**method, "calibrate": {"steps": 3}}, problem, seed=0).settings["calibrated"] == 3
    )


def test_clusters_and_factors(problem):
    split = pf.splits.random(problem.adata, test=0.5, valid=0, seed=0)
    whole = Problem(problem.adata, SCHEMA, split)
    rows = pd.DataFrame(Clustering(labels=["covariate"]).references(whole, seed=0))
    rows = rows.set_index("method")
    assert rows.loc["noise", "NMI"] < 0.05
    read = pd.DataFrame(
        Clustering(labels=["covariate"]).judge(whole, Knowing(problem.adata), seed=0)
    )
    read = read.set_index("block")
    # The covariate's own means are all there is to cluster where every cell stands at its mean.
    assert read.loc["z_x", "NMI label only"] == pytest.approx(1, abs=0.01)
    # The scales of the groups are left.
    assert read.loc["z_x", "NMI within"] < 0.2
    adata = problem.adata.copy()
    adata.obs["z"] = np.exp(adata.obsm["z_x"][:, 0])
    known = Problem(adata, SCHEMA, split)
    task = Factors(factors={"z": ["z"]}, log=["z"], within={"z": "covariate"})
    found = pd.DataFrame(task.judge(known, Knowing(adata), seed=0)).set_index("block")
    assert found.loc["z_x", "R2"] > 0.95
    assert found.loc["z_x", "R2 within"] > 0.9
    assert found.loc["z_t", "R2"] < 0.1


def test_compare_by_hand():
    rows = pd.DataFrame(
        [
            {"data": "d", "fold": "", "treatment": t, "covariate": "x", "seed": s, "method": m,
             "score": v}
            for t, s, values in (("a", 1, (1, 2, 5)), ("a", 2, (1, 4, 5)), ("b", 1, (0, 1, 2)))
            for m, v in zip(("rule", "model", "ceiling"), values, strict=True)
        ]
    )  # fmt: skip
    config = read_config("held-out-combination")
    table = {"columns": ["score"], "against": "rule", "ceiling": "ceiling"}
    config = type(config)(**{**vars(config), "table": table})
    found = compare(config, rows).set_index("method").loc["model"]
    # Condition a: (1 + 3) / 2; b: 1. Ceiling: (4 + 4) / 2 and 2.
    assert found["difference"] == pytest.approx(1.5)
    assert found["normalised"] == pytest.approx(0.5)
    assert (found["low"], found["high"], found["conditions"]) == (1, 2, 2)
    mean = summarise(config, rows)
    # Seed 1: (2 + 1) / 2; seed 2: 4.
    assert mean.loc[("d", "model"), "score"] == pytest.approx(2.75)


def test_a_picture_has_a_line_for_each_line_of_the_table():
    config = SimpleNamespace(table={"by": ["data", "method", "block"], "columns": ["R2"]})
    rows = pd.DataFrame({
        "data": ["a", "a", "a", "b"], "method": ["FCR", "FCR", "PCA", "FCR"],
        "block": ["z_x", "z_t", None, "z_x"], "seed": 1, "R2": [0.9, 0.1, 0.5, np.nan],
    })  # fmt: skip
    (ax,) = _figure(config, rows).axes
    assert (ax.get_title(loc="left"), ax.get_xlabel()) == ("a", "R2")
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["FCR, z_x", "FCR, z_t", "PCA"]
    dots = [tuple(line.get_xydata()[0]) for line in ax.lines if line.get_marker() == "o"]
    assert sorted(dots) == [(0.1, 1.0), (0.5, 2.0), (0.9, 0.0)]


def test_targets_of_one_who_knows_them():
    adata = pf.simulate.sparse_shifts(
        n_treatments=30, n_per_treatment=60, n_latent=12, n_genes=40, seed=1
    )
    schema = pf.Schema(treatment="treatment", control="control")
    split = pf.splits.hold_out(adata, {"held_out": "True"}, valid=0)
    problem = Problem(adata, schema, split)
    order = [2, 0, 3, 1, 11, 10, 9, 8, 7, 6, 5, 4]
    latents = [f"z_{j}" for j in range(12)]

    class Told:
        def latents(self, cells):
            z = -cells.obsm["z"][:, order]
            return {"z": pd.DataFrame(z, index=cells.obs_names, columns=latents)}

        def targets(self, block):
            mask = adata.uns["simulation"]["mask"][:, order].astype(float)
            names = list(adata.uns["simulation"]["treatments"])
            index = pd.MultiIndex.from_product([names, latents])
            return pd.DataFrame({"inclusion": mask.ravel()}, index=index)

    (row,) = Targets().judge(problem, Told(), seed=0)
    assert [row["MCC"], row["MCC held out"]] == pytest.approx([1, 1])
    assert row["F1"] == row["power"] == 1
    # Probabilities of 0 and 1: a false entry in ten is what the level allows.
    assert row["FDR"] <= 0.1
    null = {r["method"]: r["MCC"] for r in Targets().references(problem, seed=0)}
    assert null["noise"] < 0.2 < null["PCA"]


def test_shares_by_hand():
    rows = pd.DataFrame(
        [
            ("d", "ceiling", 1, 0.5),
            ("d", "ceiling", 2, 0.8),
            ("d", "m", 1, 0.4),
            ("d", "m", 2, 0.8),
        ],
        columns=["data", "method", "seed", "score"],
    )
    config = read_config("recovery")
    config = type(config)(**{**vars(config), "table": {"shares": ["score"], "ceiling": "ceiling"}})
    found = shares(config, rows)["score"]
    assert found["mean", "d", "m"] == pytest.approx((0.8 + 1.0) / 2)
    assert found["worst", "d", "m"] == pytest.approx(0.8)
    assert found["worst", "d", "ceiling"] == 1


def test_restarts_are_fitted_anew_and_compared_in_pairs(problem):
    class Blurred(Knowing):
        def __init__(self, adata, seed):
            super().__init__(adata)
            self.seed = seed

        def latents(self, adata=None):
            # z_x is found each time in another order and sign, z_tx is noise.
            found = super().latents(adata)
            rng = np.random.default_rng(self.seed)
            found["z_x"] = found["z_x"].iloc[:, rng.permutation(3)] * rng.choice([-1, 1], 3)
            noise = rng.standard_normal(found["z_tx"].shape)
            return found | {"z_tx": pd.DataFrame(noise)}

    seeds = []

    def fit(seed):
        seeds.append(seed)
        return Blurred(problem.adata, seed)

    rows = pd.DataFrame(Restarts(fits=4).run(problem, fit, seed=3))
    assert seeds[0] == 3
    assert len(set(seeds)) == 4
    mean = rows.groupby("block")[["MCC", "R2"]].mean()
    assert len(rows) == 3 * 6
    assert mean.loc["z_x", "MCC"] == pytest.approx(1)
    assert mean.loc["z_x", "R2"] > 0.95
    assert mean.loc["z_tx", "R2"] < 0.1
    noise = pd.DataFrame(Restarts(fits=4).references(problem, seed=3))
    assert noise["MCC"].mean() == pytest.approx(mean.loc["z_tx", "MCC"], abs=0.05)


def test_called_interactions_are_compared_with_the_true_ones():
    adata = pf.simulate.factorised(n_per_condition=5, n_genes=30, seed=2)
    change = pf.simulate.true_changes(adata, cells=200)
    true = np.abs(change - change.mean(1, keepdims=True)) > 0.25

    class Effects:
        genes = tuple(adata.var_names)

        def interaction_genes(self, *, least):
            assert least == 0.25
            t, x, g = (index.ravel() for index in np.indices(true.shape))
            return pd.DataFrame(
                {"treatment": [f"t{i + 1}" for i in t], "covariate": [f"x{i + 1}" for i in x],
                 "gene": np.array(self.genes)[g], "selected": self.chosen[t, x, g]}
            )  # fmt: skip

    def called(chosen):
        effects = Effects()
        effects.chosen = chosen
        return _called(effects, change, adata.uns["simulation"])

    assert called(true) == {"interactions": true.sum(), "false interactions": 0}
    assert called(~true)["false interactions"] == 1
    assert called(np.ones_like(true))["false interactions"] == pytest.approx(1 - true.mean())
    assert called(np.zeros_like(true)) == {"interactions": 0, "false interactions": 0}


@pytest.mark.slow
@pytest.mark.parametrize("name", available())
def test_quick_run(name, tmp_path):
    found = run(read_config(name).quick(), tmp_path, processes=0)
    assert set(found.jobs["status"]) <= {"done", "skipped"}, list(found.failed["error"])
    columns = [c for c in read_config(name).table["columns"] if c in found.rows]
    assert columns
    assert found.rows[columns].notna().any(axis=None)
