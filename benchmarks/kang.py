"""Kang 2018, IFN-β on blood cells: what the blocks hold, and prediction of unseen combinations.

    python benchmarks/kang.py                  # factors and held-out cell types, reported seeds

``factors``: fit on 75 % of the cells; classifiers that had no part in training (the stronger of
logistic regression and gradient boosting, cross-validated) read the posterior means of the six
common cell types, on all cells and on the test cells alone. ``hold_out``: the stimulated cells
of one cell type are never seen, for each of the six in turn.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
from _common import RESULTS, parser, run, table

import pyro_fcr as pf
from pyro_fcr.errors import DesignWarning
from pyro_fcr.evaluate import profile, r2, separability

COMMON = (
    "B cells", "CD14+ Monocytes", "CD4 T cells", "CD8 T cells", "FCGR3A+ Monocytes", "NK cells",
)  # fmt: skip
HSIC = ("z_x_vs_treatment", "z_t_vs_cell_type")

MODEL: dict[str, dict[str, Any]] = {
    "default": {},
    "donor": {},
    "elbo": {"penalties": dict.fromkeys(HSIC, 0.0)},
    "lr_8e-3": {},
    "lr_3e-3": {},
    "discriminators_1": {"penalties": {"z_x_vs_z_tx": 1.0, "z_t_vs_z_tx": 1.0}},
    "heads": {"penalties": {"covariate_head": 1.0, "treatment_head": 1.0}},
    "weight_30": {"penalties": dict.fromkeys(HSIC, 30.0)},
    "labels": {"guide": pf.guides.Amortised(labels=True)},
}
FIT: dict[str, dict[str, Any]] = {
    "lr_8e-3": {"learning_rate": 8e-3},
    "lr_3e-3": {"learning_rate": 3e-3},
}


def _fit(variant: str, seed: int, adata: Any, split: pf.Split) -> tuple[pf.FCR, float]:
    covariates = ["cell_type", "donor"] if variant == "donor" else "cell_type"
    schema = pf.Schema(treatment="condition", control="ctrl", covariates=covariates)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DesignWarning)
        model = pf.FCR(adata, schema, **MODEL[variant])
    start = time.perf_counter()
    model.fit(split=split, seed=seed, device="cpu", progress=False, **FIT.get(variant, {}))
    return model, time.perf_counter() - start


def factors(variant: str, genes: int, seed: int) -> list[dict[str, Any]]:
    """Return what fresh classifiers read from the blocks, and how well means are held."""
    adata = pf.datasets.kang()
    split = pf.splits.random(adata, test=0.25, valid=0.0, stratify="cell_type", seed=seed)
    if genes:
        adata = pf.top_genes(adata, genes, split=split)
    model, seconds = _fit(variant, seed, adata, split)
    z = {name: frame.to_numpy() for name, frame in model.latents(adata).items()}
    condition = adata.obs["condition"].astype(str).to_numpy()
    cell_type = adata.obs["cell_type"].astype(str).to_numpy()
    common = adata.obs["cell_type"].isin(COMMON).to_numpy()
    rows = []
    for cells, mask in {"all": common, "test": common & split.mask(adata, "test")}.items():
        t, x = condition[mask], cell_type[mask]
        found = {
            "AUC of t from z_x within x": separability(z["z_x"][mask], t, x, metric="auc"),
            "AUC of t from z_t": separability(z["z_t"][mask], t, metric="auc"),
            "accuracy of x from z_t within t": separability(z["z_t"][mask], x, t),
            "accuracy of x from z_x": separability(z["z_x"][mask], x),
        }
        for name, probe in found.items():
            rows.append({"measure": name, "cells": cells, "value": probe.score})
    rows += _means(model, adata[common], split)
    rows.append({"measure": "fit seconds", "cells": "", "value": seconds})
    return rows


def _means(model: pf.FCR, adata: Any, split: pf.Split) -> list[dict[str, Any]]:
    """Return R² of the twelve conditions' test means: of counts, and of log pseudobulk profiles.

    Beside the reconstruction stands the mean of each condition's own training cells: what
    sampling noise allows.
    """
    test = split.mask(adata, "test")
    expected = model.reconstruct(adata, draws=10).X
    conditions = adata.obs.groupby(["cell_type", "condition"], observed=True).indices.values()
    found: dict[str, list[float]] = {}
    for members in conditions:
        held, trained = (adata.X[members[test[members] == is_test]] for is_test in (True, False))
        predicted = {
            "reconstruction": expected[members[test[members]]],
            "training cells (ceiling)": trained,
        }
        mean = np.asarray(held.mean(0)).ravel()
        for name, counts in predicted.items():
            found.setdefault(f"R2 of mean counts, {name}", []).append(
                r2(np.asarray(counts.mean(0)).ravel(), mean)
            )
            found.setdefault(f"R2 of log profile, {name}", []).append(
                r2(profile(counts), profile(held))
            )
    return [
        {"measure": name, "cells": "test", "value": float(np.mean(values))}
        for name, values in found.items()
    ]


def hold_out(variant: str, genes: int, seed: int, held: str) -> list[dict[str, Any]]:
    """Return every method's scores on the stimulated cells of one type, never seen."""
    adata = pf.datasets.kang()
    split = pf.splits.hold_out(
        adata, {"cell_type": held, "condition": "stim"}, valid=0.0, seed=seed
    )
    if genes:
        adata = pf.top_genes(adata, genes, split=split)
    model, seconds = _fit(variant, seed, adata, split)
    scores = model.evaluate(adata, split, draws=20).reset_index()
    scores["fit_seconds"] = round(seconds, 1)
    return scores.to_dict("records")


def main() -> None:
    """Run the tasks and print the tables."""
    arguments = parser(__doc__.splitlines()[0], seeds=(11, 12, 13))
    arguments.add_argument("--variants", nargs="+", default=["default"], choices=list(MODEL))
    arguments.add_argument("--genes", type=int, default=0, help="most variable ones; 0 for all")
    arguments.add_argument("--tasks", nargs="+", default=["factors", "hold_out"])
    given = arguments.parse_args()
    folder = given.out or RESULTS
    pairs = [
        {"variant": v, "genes": given.genes, "seed": s}
        for s in given.seeds
        for v in given.variants
    ]
    if "factors" in given.tasks:
        rows = run(factors, pairs, jobs=given.jobs, out=folder / "kang_factors.csv")
        grouped = rows.groupby(["variant", "genes", "measure", "cells"], sort=False, dropna=False)[
            "value"
        ]
        print(table(grouped.agg(["mean", "min", "max", "count"])), "\n")
    if "hold_out" in given.tasks:
        tasks = [{**pair, "held": held} for pair in pairs for held in COMMON]
        rows = run(hold_out, tasks, jobs=given.jobs, out=folder / "kang_hold_out.csv")
        wide = rows.pivot_table(
            index=["variant", "genes", "held"],
            columns="method",
            values="pearson_change_top100",
            sort=False,
        )
        print(table(wide), "\n")
        methods = rows.drop(columns="seed").groupby(["variant", "genes", "method"], sort=False)
        print(table(methods.mean(numeric_only=True)))


if __name__ == "__main__":
    main()
