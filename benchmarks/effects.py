"""Do the intervals of effects hold the truth, and are planted interactions found?

    python benchmarks/effects.py --seeds 11 12 13
    python benchmarks/effects.py --seeds 11 12 13 14 15 --strengths
    python benchmarks/effects.py --seeds 11 12 13 --contrasts --jobs 1

Semi-synthetic cells with the genes of untreated Kang cells (1,000 genes; 5 treatments, the control
among them, by 5 covariate groups, 200 cells each), the same with interactions planted into three
tenths of the treated conditions alone, the factorised simulation (base, 7 x 6), and the same with
a fifth of its treated conditions never measured. One FCR at its defaults for each. Strengths of
conditions and shares of genes come from the counts whatever the model: ``--strengths`` asks for
those alone, after a single epoch. ``--contrasts`` asks ``differential`` of the base simulation,
after two epochs, ten and a whole fit: two treatments of a kind of cell, two kinds of cell under
one treatment, groups of mixed cells, and control cells as they would be against cells as they are.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from _common import RESULTS, parser, run
from sklearn.metrics import average_precision_score

import pyro_fcr as pf

if TYPE_CHECKING:
    from collections.abc import Iterator

    import anndata as ad
    from numpy.typing import NDArray

    from pyro_fcr.analysis import effects as pf_effects

LEAST = 0.25
FDR = 0.1
WELL_COUNTED = 100
"""Molecules of a gene in a condition and in its control."""

FITS = {"two epochs": 2, "ten epochs": 10, "whole": None}

LARGE = 1.0
"""What counts as different between two groups; of smaller differences there are too many."""

MIXED = 0.7
"""Share of a mixed group's first kind of cell, of the other group's second."""

SIMULATIONS = ("kang-like", "planted", "base", "hold")
COLUMNS = (
    "coverage", "width", "rmse", "rmse_measured", "rmse_model", "coverage_interaction",
    "auprc_interaction", "auprc_measured", "auprc_oracle", "auprc_well_counted",
    "share_interacting", "fdr_at_10", "selected", "coverage_strength", "width_strength",
    "strength_ratio", "coverage_share", "auprc_conditions", "auprc_conditions_truth",
    "share_planted", "coverage_unseen", "rmse_unseen", "absorbed",
)  # fmt: skip
"""Empty where a simulation does not answer."""


def simulate(name: str, seed: int) -> ad.AnnData:
    """Return one of the simulations; conditions in ``obs["held_out"]`` are not to be seen."""
    if name not in {"kang-like", "planted"}:
        return pf.simulate.factorised(name, seed=seed)
    kang = pf.datasets.kang()
    untreated = kang[kang.obs["condition"] == "ctrl"].copy()
    return pf.simulate.from_data(
        pf.top_genes(untreated, 1000), n_treatments=5, n_covariates=5,
        interacting=0.3 if name == "planted" else 1.0, seed=seed,
    )  # fmt: skip


def job(simulation: str, seed: int, *, strengths: bool = False) -> list[dict[str, Any]]:
    """Fit, estimate, compare with the truth."""
    adata = simulate(simulation, seed)
    unseen = (
        adata.obs["held_out"].to_numpy()
        if "held_out" in adata.obs
        else np.zeros(len(adata.obs), bool)
    )
    schema = pf.Schema(treatment="treatment", control="control", covariates="covariate")
    train = adata[~unseen].copy()
    fcr = pf.FCR(train, schema)
    fcr.fit(max_epochs=1 if strengths else None, seed=0, progress=False)
    effects = fcr.effects()
    truth = pf.simulate.true_changes(adata, cells=5000, seed=seed)
    if strengths:
        return [_sums(effects, truth, adata, train)]
    seen = np.isfinite(effects.measured).any(-1)
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {
        "coverage": _inside(effects.draws, truth)[seen].mean(),
        "width": np.ptp(np.quantile(effects.draws, (0.05, 0.95), axis=0), axis=0)[seen].mean(),
        "rmse": _rmse(effects.draws.mean(0) - truth, seen),
        "rmse_measured": _rmse(effects.measured - truth, seen),
        "rmse_model": _rmse(effects.predicted - truth, seen),
        "absorbed": effects.error.absorbed,
    }
    if seen.all():
        row |= _interactions(effects, truth, train) | _sums(effects, truth, adata, train)
    else:
        row["coverage_unseen"] = _inside(effects.draws, truth)[~seen].mean()
        row["rmse_unseen"] = _rmse(effects.predicted - truth, ~seen)
    return [row]


def contrasts(fit: str, seed: int) -> list[dict[str, Any]]:
    """Fit, compare many pairs of groups, and the answers with the truth."""
    adata = simulate("base", seed)
    schema = pf.Schema(treatment="treatment", control="control", covariates="covariate")
    fcr = pf.FCR(adata, schema)
    fcr.fit(max_epochs=FITS[fit], seed=0, progress=False)
    effects = fcr.effects()
    told: dict[str, list[pd.DataFrame]] = {}
    for kind, groups, truth in _pairs(adata, seed):
        table = fcr.differential(*groups[:2], do=groups[2], effects=effects, least=LARGE, fdr=FDR)
        table["truth"] = pd.Series(truth, index=adata.var_names)
        told.setdefault(kind, []).append(table)
    return [{"kind": kind, **_judged(pd.concat(tables))} for kind, tables in told.items()]


def _pairs(
    adata: ad.AnnData, seed: int
) -> Iterator[tuple[str, tuple[ad.AnnData, ad.AnnData, dict[str, str] | None], NDArray[Any]]]:
    """Yield pairs of groups, what is done to the first, and the true log2 fold changes."""
    rng = np.random.default_rng(seed)
    share = pf.simulate.true_shares(adata, cells=20_000, seed=seed)
    names = [list(adata.obs[column].cat.categories) for column in ("treatment", "covariate")]
    treatment, covariate = (
        adata.obs[column].cat.codes.to_numpy() for column in ("treatment", "covariate")
    )
    n_t, n_x = share.shape[:2]

    def cells(kept: NDArray[np.bool_]) -> ad.AnnData:
        return adata[kept].copy()

    def mixture(t: int, x: int, y: int, first: float) -> tuple[ad.AnnData, NDArray[Any]]:
        # Every cell by its own lot, so that the numbers vary as those of a sample do.
        chance = np.select([covariate == x, covariate == y], [first, 1 - first])
        kept = (treatment == t) & (rng.random(len(chance)) < chance)
        return cells(kept), first * share[t, x] + (1 - first) * share[t, y]

    for t, u in ((t, t + 1) for t in range(1, n_t - 1, 2)):
        for x in range(n_x):
            y = (x + 1) % n_x
            own = [cells((treatment == level) & (covariate == x)) for level in (0, t, u)]
            yield "treatments", (own[1], own[2], None), np.log2(share[t, x] / share[u, x])
            (one, a), (two, b) = mixture(t, x, y, MIXED), mixture(u, x, y, 1 - MIXED)
            yield "mixtures", (one, two, None), np.log2(a / b)
            do = {"treatment": names[0][t]}
            yield "as if, other cells", (own[0], own[2], do), np.log2(share[t, x] / share[u, x])
            yield "as if, same cells", (own[0], own[0], do), np.log2(share[t, x] / share[0, x])
    for t in range(n_t):
        for x in range(0, n_x - 1, 2):
            pair = [cells((treatment == t) & (covariate == k)) for k in (x, x + 1)]
            yield "kinds of cell", (pair[0], pair[1], None), np.log2(share[t, x] / share[t, x + 1])


def _judged(table: pd.DataFrame) -> dict[str, float]:
    error = {name: table[name] - table["truth"] for name in ("lfc", "model", "measured")}
    found = table[table["selected"]]
    p_effect = table["p_effect"]
    return {
        "coverage": table["truth"].between(table["low"], table["high"]).mean(),
        "width": (table["high"] - table["low"]).mean(),
        "rmse": np.sqrt((error["lfc"] ** 2).mean()),
        "rmse_measured": np.sqrt((error["measured"] ** 2).mean()),
        "rmse_model": np.sqrt((error["model"] ** 2).mean()),
        "selected": len(found) / len(table),
        "expected_fdr": 1 - p_effect[table["selected"]].mean(),
        "fdr": (found["truth"].abs() <= LARGE).mean(),
        "share_different": (table["truth"].abs() > LARGE).mean(),
    }


def _interactions(
    effects: pf_effects.Effects, truth: NDArray[Any], adata: ad.AnnData
) -> dict[str, float]:
    """Judge what a treatment does to one group beyond what it does on average, gene by gene."""
    specific = effects.draws - effects.draws.mean(2, keepdims=True)
    true_specific = truth - truth.mean(1, keepdims=True)
    there = np.abs(true_specific) > LEAST
    score = (np.abs(specific) > LEAST).mean(0)
    counted = _counted(adata, effects)
    found = effects.interaction_genes(least=LEAST, fdr=FDR)
    chosen = found[found["selected"]]
    places = tuple(
        np.asarray([list(names).index(v) for v in chosen[column]], dtype=int)
        for names, column in (
            (effects.treatments, "treatment"),
            (effects.covariates, "covariate"),
            (effects.genes, "gene"),
        )
    )
    return {
        "coverage_interaction": _inside(specific, true_specific).mean(),
        "auprc_interaction": average_precision_score(there.ravel(), score.ravel()),
        "auprc_well_counted": average_precision_score(there[counted], score[counted]),
        "fdr_at_10": (~there[places]).mean() if len(chosen) else 0.0,
        "selected": len(chosen) / there.size,
    }


def _sums(
    effects: pf_effects.Effects, truth: NDArray[Any], adata: ad.AnnData, train: ad.AnnData
) -> dict[str, float]:
    """Judge sums over genes and groups, and what the counts say of genes without a model."""
    true_specific = truth - truth.mean(1, keepdims=True)
    there = np.abs(true_specific) > LEAST
    measured = effects.measured - effects.measured.mean(1, keepdims=True)
    oracle = _oracle(measured, _noise(train, effects), true_specific)
    true = np.sqrt((true_specific**2).mean(-1)).ravel()
    strength, low, high = (_by_condition(effects, name) for name in ("strength", "low", "high"))
    shares = effects.decompose().loc[list(effects.genes)]
    true_share = (true_specific**2).sum((0, 1)) / np.maximum((truth**2).sum((0, 1)), 1e-12)
    held = shares["interaction_low"].le(true_share) & shares["interaction_high"].ge(true_share)
    row = {
        "auprc_measured": average_precision_score(there.ravel(), np.abs(measured).ravel()),
        "auprc_oracle": average_precision_score(there.ravel(), oracle.ravel()),
        "share_interacting": there.mean(),
        "coverage_strength": ((low <= true) & (true <= high)).mean(),
        "width_strength": (high - low).mean(),
        "strength_ratio": strength.mean() / true.mean(),
        "coverage_share": held[np.sqrt((truth**2).mean((0, 1))) > LEAST].mean(),
    }
    planted = adata.uns["simulation"].get("interacting", np.ones((2, 1), bool))[1:].ravel()
    if not planted.all():
        row |= {
            "auprc_conditions": average_precision_score(planted, strength),
            # Conditions without an interaction lie off the mean of those with one.
            "auprc_conditions_truth": average_precision_score(planted, true),
            "share_planted": planted.mean(),
        }
    return row


def _oracle(measured: NDArray[Any], sd: NDArray[Any], truth: NDArray[Any]) -> NDArray[Any]:
    """Return the best score there is of a gene's own measured interaction, (T, X, G).

    Its probability to interact, for one who knows every gene's noise and how the condition's true
    interactions are distributed, but not whose they are.
    """
    score = np.empty_like(measured)
    for place in np.ndindex(measured.shape[:2]):
        gap = (measured[place][:, None] - truth[place]) / sd[place][:, None]
        odds = np.exp(-0.5 * (gap**2 - (gap**2).min(1, keepdims=True)))
        score[place] = odds @ (np.abs(truth[place]) > LEAST) / odds.sum(1)
    return score


def _noise(adata: ad.AnnData, effects: pf_effects.Effects) -> NDArray[Any]:
    """Return the standard error of each measured interaction, (T, X, G), by the delta method."""
    variance = np.empty((len(effects.treatments) + 1, len(effects.covariates), adata.n_vars))
    for t, x, counts in _conditions(adata, effects):
        depth, total = counts.sum(1, keepdims=True), counts.sum(0) + 0.5
        squares = ((counts - depth * (total / depth.sum())) ** 2).sum(0)
        variance[t, x] = np.maximum(squares / total**2, 1 / total) / np.log(2) ** 2
    change = variance[1:] + variance[:1]
    groups = len(effects.covariates)
    return np.sqrt(change * (1 - 2 / groups) + change.mean(1, keepdims=True) / groups)


def _conditions(
    adata: ad.AnnData, effects: pf_effects.Effects
) -> Iterator[tuple[int, int, NDArray[Any]]]:
    for t, treatment in enumerate(("control", *effects.treatments)):
        for x, group in enumerate(effects.covariates):
            rows = (adata.obs["treatment"] == treatment) & (adata.obs["covariate"] == group)
            yield t, x, np.asarray(adata[rows.to_numpy()].X.toarray(), np.float64)


def _by_condition(effects: pf_effects.Effects, column: str) -> NDArray[Any]:
    """Return a column of the ranking, treatments varying slowest."""
    ranked = effects.interactions(least=LEAST).set_index(["treatment", "covariate"])[column]
    return ranked.loc[list(product(effects.treatments, effects.covariates))].to_numpy()


def _counted(adata: ad.AnnData, effects: pf_effects.Effects) -> NDArray[np.bool_]:
    """Return which genes have molecules enough in a condition and its control, (T, X, G)."""
    total = np.empty((len(effects.treatments) + 1, len(effects.covariates), adata.n_vars))
    for t, x, counts in _conditions(adata, effects):
        total[t, x] = counts.sum(0)
    return np.minimum(total[1:], total[:1]) >= WELL_COUNTED


def _inside(draws: NDArray[Any], truth: NDArray[Any]) -> NDArray[np.bool_]:
    low, high = np.quantile(draws, (0.05, 0.95), axis=0)
    return (truth >= low) & (truth <= high)


def _rmse(error: NDArray[Any], kept: NDArray[np.bool_]) -> float:
    return float(np.sqrt(np.mean(error[kept] ** 2)))


if __name__ == "__main__":
    made = parser(__doc__ or "", seeds=(11, 12, 13))
    made.add_argument("--strengths", action="store_true", help="what needs no trained model")
    made.add_argument("--contrasts", action="store_true", help="any two groups of cells")
    arguments = made.parse_args()
    if arguments.contrasts:
        fits = [{"fit": fit, "seed": seed} for seed in arguments.seeds for fit in FITS]
        out = arguments.out or RESULTS / "contrasts.csv"
        told = run(contrasts, fits, jobs=arguments.jobs, out=out)
        by_kind = told.groupby(["fit", "kind"], sort=False).mean(numeric_only=True)
        print(by_kind.round(3).to_string())
        raise SystemExit
    # Where all conditions are measured.
    names = SIMULATIONS[:3] if arguments.strengths else SIMULATIONS
    tasks = [{"simulation": name, "seed": seed} for seed in arguments.seeds for name in names]
    table = run(
        partial(job, strengths=arguments.strengths),
        tasks,
        jobs=arguments.jobs,
        out=arguments.out or RESULTS / ("strengths.csv" if arguments.strengths else "effects.csv"),
    )
    print(table.groupby("simulation").mean(numeric_only=True).round(3).T.to_string())
