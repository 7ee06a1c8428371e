"""Every picture once, from data that no random generator or fit can change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyro_fcr.analysis import plots
from pyro_fcr.analysis.diagnostics import Importance

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GENES = ("ISG15", "IFIT1", "CXCL10", "HLA-DRA", "TNFSF13B", "LY6E")


def points(n: int = 300, d: int = 3) -> pd.DataFrame:
    """Cells in three clouds, by a low-discrepancy sequence."""
    i = np.arange(n)[:, None]
    u = np.modf(i * np.array([0.7548776662, 0.5698402910, 0.3819660113])[:d])[0]
    return pd.DataFrame(np.log(u + 0.02) + 6.0 * (i % 3 == np.arange(d)))


def labels(n: int = 300) -> pd.DataFrame:
    kinds = np.array(["B cells", "CD14+ Monocytes", "CD4 T cells"])
    return pd.DataFrame(
        {
            "condition": np.where(np.arange(n) % 2, "stim", "ctrl"),
            "cell_type": kinds[np.arange(n) % 3],
        }
    )


def history() -> pd.DataFrame:
    e = np.arange(60)
    return pd.DataFrame(
        {
            "loss": 900 + 200 * np.exp(-e / 8), "valid.loss": 905 + 190 * np.exp(-e / 8),
            "kl.z_x": 3.6 - 2 * np.exp(-e / 5), "kl.z_t": 1.6 - np.exp(-e / 9),
            "kl.z_tx": 1.4 - np.exp(-e / 20), "z_x_vs_treatment": np.exp(-e / 10),
            "z_t_vs_cell_type": 0.6 * np.exp(-e / 6), "gradient_norm": 60 * np.exp(-e / 12) + 15,
            "accuracy.z_x_vs_z_tx": 0.5 + 0.3 * np.exp(-e / 15),
        },
        index=pd.Index(e + 1, name="epoch"),
    )  # fmt: skip


def table(shift: float = 0.0) -> pd.DataFrame:
    middle = np.linspace(4, -1, len(GENES)) + shift
    width = np.linspace(0.2, 0.8, len(GENES))
    columns = {"lfc": middle, "low": middle - width, "high": middle + width}
    return pd.DataFrame(columns, index=list(GENES))


def curves() -> pd.DataFrame:
    doses = (0.0, 0.01, 0.1, 1.0, 10.0)
    rows = [
        {"covariate": x, "dose": d, "gene": g, "lfc": y, "low": y - 0.3, "high": y + 0.3}
        for x, k in (("A549", 1.0), ("K562", -0.6), ("MCF7", 0.2))
        for j, g in enumerate(GENES[:4])
        for d in doses
        for y in [k * (j + 1) * d / (d + 0.3)]
    ]
    return pd.DataFrame(rows)


def evaluation() -> pd.DataFrame:
    names = ["FCR", "control mean", "treated mean", "additive", "nearest condition", "ridge",
             "PCA + additive", "latent additive", "decoder only", "noise",
             "reconstruction (reads the test cells)", "half of the test cells (noise ceiling)",
             "interpolated half (positive control)"]  # fmt: skip
    score = np.linspace(0.95, 0.1, len(names))
    columns = {
        "pearson_change_top100": score, "pearson_change_top20": score - 0.05,
        "pearson_change": np.where(np.arange(len(names)) == 1, np.nan, score - 0.1),
        "r2_top100": 2 * score - 1.2, "r2": score, "energy_distance": 10 * (1 - score),
    }  # fmt: skip
    return pd.DataFrame(columns, index=pd.Index(names, name="method"))


def counterfactual() -> Axes:
    i = np.arange(200)
    observed = 3 * np.modf(i * 0.7548776662)[0] ** 4
    predicted = 0.8 * observed + 0.3 * np.sin(i)
    marked = np.argsort(-observed)[:40]
    return plots.counterfactual(predicted, observed, genes=[f"GENE{k}" for k in i],
                                highlight=marked, title="stim in B cells, never seen")  # fmt: skip


def inclusion() -> pd.DataFrame:
    rows = ["IFNGR1", "JAK2", "STAT1", "IRF1", "SMAD4", "BRD4", "non-responding-7"]
    values = np.zeros((len(rows), 8))
    values[:3, 5], values[3, [3, 5]], values[4, 1], values[5, 7] = 1.0, 0.97, 0.99, 0.38
    return pd.DataFrame(values, index=rows)


def interactions() -> pd.DataFrame:
    columns = ["B cells", "CD14+ Monocytes", "CD4 T cells", "Dendritic cells", "NK cells"]
    values = np.modf(np.arange(20).reshape(4, 5) * 0.618034)[0] * 2.4
    values[2, 3] = np.nan
    return pd.DataFrame(values, index=["belinostat", "pracinostat", "vehicle 2", "A+B"],
                        columns=columns)  # fmt: skip


def probes() -> pd.DataFrame:
    rows = [
        {"block": b, "question": q, "score": s, "chance": 0.5 if q.startswith("t") else 0.14}
        for q, scores in (
            ("treatment, same covariate and batch", (0.51, 0.98, 0.88)),
            ("covariate, same treatment and batch", (0.87, 0.15, 0.67)),
            ("batch, same treatment and covariate", (0.16, 0.17, 0.14)),
        )
        for b, s in zip(("z_x", "z_t", "z_tx"), scores, strict=True)
    ]
    return pd.DataFrame(rows)


LEAKAGE = {
    f"leakage.{a}.{b}": v
    for (a, b), v in zip(
        [(a, b) for a in ("z_x", "z_t", "z_tx") for b in ("z_x", "z_t", "z_tx") if a != b],
        (0.02, 0.05, 0.24, -0.01, 0.11, 0.4),
        strict=True,
    )
}

RANKS = {
    "z_x": np.arange(2000) % 100, "z_t": 30 + np.arange(2000) % 40, "z_tx": np.arange(2000) % 97,
}  # fmt: skip

USE = pd.DataFrame(
    {"size": [8, 4, 4], "information": [2.8, 2.4, 0.02], "overlap": [0.62, 0.66, 0.99],
     "used": [8, 4, 0]},
    index=pd.Index(["z_x", "z_t", "z_tx"], name="block"),
)  # fmt: skip

CHECKS = pd.DataFrame(
    {
        "observed": [1843.0, 0.21, 0.675, -1.1, -0.9, 0.031],
        "low": [1838.0, 0.205, 0.678, -1.12, -1.02, 0.018],
        "high": [1852.0, 0.212, 0.681, -1.09, -0.97, 0.024],
        "agreement": [np.nan, np.nan, 0.99, 1.0, 0.98, 0.87],
    },
    index=["total counts of a cell", "spread of total counts (sd of log10)",
           "share of zeros by gene", "mean of genes (log10)", "variance of genes (log10)",
           "correlation of genes"],
)  # fmt: skip

AGREEMENT = pd.DataFrame(
    {
        "block": np.repeat(["z_x", "z_t", "z_tx"], 3),
        "mcc": [0.91, 0.88, 0.94, 0.82, 0.77, 0.8, 0.41, 0.55, 0.48],
        "r2": [0.98, 0.97, 0.98, 0.95, 0.93, 0.94, 0.78, 0.7, 0.74],
    }
)


def weights() -> Importance:
    i = np.modf(np.arange(400) * 0.618034)[0]
    return Importance(1.1 * i**2, 4 * i**3 - 900, np.full(400, -900.0), np.zeros((400, 1)), {})


BY_BLOCK = {"z_x": points(), "z_t": points(d=2), "z_tx": points(d=1)}

PICTURES: dict[str, Any] = {
    "block_use": lambda: plots.block_use(USE),
    "counterfactual": counterfactual,
    "coverage": lambda: plots.coverage({k: (v + 0.5) / 100 for k, v in RANKS.items()}),
    "dose_response": lambda: plots.dose_response(curves(), measured=[0.01, 1.0]),
    "evaluation": lambda: plots.evaluation(evaluation()),
    "history": lambda: plots.history(history()),
    "importance": lambda: plots.importance(weights()),
    "interaction": lambda: plots.interaction(interactions()),
    "intervals": lambda: plots.intervals(
        {"CD14+ Monocytes": table(), "CD4 T cells": table(-1.5)}, GENES
    ),
    "latents": lambda: plots.latents(points(), labels()["cell_type"], title="z_x"),
    "latents_named": lambda: plots.latents(points(), labels()["cell_type"], legend_loc="on data"),
    "latents_numbers": lambda: plots.latents(points(), pd.Series(np.arange(300.0), name="dose")),
    "leakage": lambda: plots.leakage(probes()),
    "leakage_matrix": lambda: plots.leakage_matrix(LEAKAGE),
    "masks": lambda: plots.masks(inclusion()),
    "overview": lambda: plots.overview(BY_BLOCK, labels(), color=["condition", "cell_type"]),
    "predictive_checks": lambda: plots.predictive_checks(CHECKS),
    "rank_histogram": lambda: plots.rank_histogram(RANKS, draws=99),
    "stability": lambda: plots.stability(AGREEMENT),
}
"""One call of every picture that the package draws."""


def figure_of(drawn: Any) -> Figure:
    return np.ravel(np.asarray(drawn, dtype=object))[0].figure
