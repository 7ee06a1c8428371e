"""Predictions of cells that were held out: counterfactuals beside baselines, labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from pyro_fcr.analysis import plots
from pyro_fcr.analysis.conditions import condition_labels
from pyro_fcr.analysis.draws import moments, seeded
from pyro_fcr.analysis.expression import expected_under
from pyro_fcr.analysis.report.page import number, rows
from pyro_fcr.errors import FCRError
from pyro_fcr.evaluate import profile, top_de_genes

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from pyro_fcr.analysis.contract import Reported
    from pyro_fcr.analysis.report.page import Page
    from pyro_fcr.data import Cells, Split

__all__ = ["show_labels", "show_predictions"]

NOTES = {
    "r2": "R² of the mean profile over all genes, and over the 100 most changed ones (top100)",
    "pearson_change": "Correlation of predicted and measured change from the control over all "
    "genes, and over the 20 or 100 most changed ones",
    "pearson_change_treated": "The same for the change from the mean of all treated cells",
    "de_pr_auc": "How well predicted changes rank the genes that differ; 1 is best",
    "centroid_accuracy": "Share of the other treatments that lie farther from the prediction",
    "energy_distance": "Between measured cells and control cells moved by the predicted change; "
    "smaller is better",
    "energy_distance_cells": "The same for predicted cells themselves",
    "interaction_r2": "R² of what an additive rule cannot predict; the additive rule scores 0",
}
"""What the columns of the table mean, for those that are shown."""

NOTHING_HELD_OUT = "No cells were held out, so nothing here is a prediction."


def show_predictions(
    page: Page,
    model: Reported,
    adata: AnnData | None,
    cells: Cells,
    split: Split | None,
    evaluation: pd.DataFrame | None,
    seed: int,
) -> None:
    """Show the model beside the baselines on held-out conditions, or say why not."""
    if model.design.schema.treatment is None:
        return
    if split is None:
        page.missing["evaluation"] = NOTHING_HELD_OUT
        return
    try:
        if evaluation is None:
            evaluation = model.evaluate(adata, split, draws=10, by_condition=True, seed=seed)
    except FCRError as error:
        page.missing["evaluation"] = str(error)
        return
    long = evaluation.reset_index()
    conditions = long[["treatment", "covariate"]].drop_duplicates()
    table = long.drop(columns=["treatment", "covariate"]).groupby("method", sort=False).mean()
    table = table.dropna(axis=1, how="all")
    page.draw("evaluation", plots.evaluation(table), "The model beside the baselines, one panel "
              "per metric, as given in the table.")  # fmt: skip
    page.tables["evaluation"] = {
        "head": [str(c).replace("_", " ") for c in table.columns],
        "rows": [
            {
                "method": str(name).replace("_", " ").split(" (")[0],
                "cells": [number(v) for v in row],
                "reads": str(name).startswith(plots.YARDSTICKS),
            }
            for name, row in zip(table.index, table.to_numpy(), strict=True)
        ],
        "notes": {c.replace("_", " "): NOTES[c] for c in table.columns if c in NOTES},
    }
    page.words["verdict_on_predictions"] = _compared(table)
    many = "s" * (len(conditions) > 1)
    page.words["conditions"] = f"{len(conditions)} treated condition{many} with held-out cells"
    _show_scatter(page, model, cells, split, conditions, seed)


def show_labels(page: Page, model: Reported, cells: Cells, split: Split | None) -> None:
    """Show how well classifiers on the latents name held-out cells, where there are some."""
    obs = cells.obs()
    asked = {
        name: column
        for name, head in model.heads.items()
        for column in obs
        if head.levels and list(head.levels) == [str(v) for v in _categories(obs[column])]
    }
    if not asked:
        return
    if split is None or not (test := split.mask(cells, "test")).any():
        page.missing["labels"] = NOTHING_HELD_OUT
        return
    held_out = cells.subset(test)
    tables, said = [], []
    for name, column in asked.items():
        odds = _odds(model, held_out, name)
        truth = np.asarray(obs[column][test].astype(str))
        levels = np.asarray(model.heads[name].levels)
        right = levels[odds.argmax(1)] == truth
        counts = pd.Series(right).groupby(truth).agg(["size", "mean"])
        said.append(f"{column}: {right.mean():.1%} of {len(truth):,} cells named right, "
                    f"{counts['mean'].mean():.1%} averaged over labels")  # fmt: skip
        sure = pd.Series(odds.max(1)).groupby(truth).mean()
        tables.append(
            pd.DataFrame(
                {
                    "label": column,
                    "value": counts.index,
                    "cells": counts["size"].to_numpy(),
                    "named right": counts["mean"].to_numpy(),
                    "mean probability": sure.to_numpy(),
                }
            )
        )
    page.words["labels"] = "; ".join(said) + "."
    notes = {"mean probability": "Of the label that the classifier chose, right or wrong"}
    page.tables["labels"] = rows(pd.concat(tables, ignore_index=True), most=100, notes=notes)


def _odds(model: Reported, cells: Cells, head: str) -> NDArray[np.float64]:
    """Return a head's probabilities (N, levels) at the latents' posterior means."""
    found = []
    with seeded(0), torch.no_grad():
        for start in range(0, len(cells), 512):
            batch = cells.batch(slice(start, start + 512)).to(model.device)
            means = {name: mean for name, (mean, _) in moments(model.guide, batch).items()}
            reading: Any = model.heads[head](means, batch)
            found.append(reading.distribution.probs.double().cpu().numpy())
    return np.concatenate(found)


def _categories(column: pd.Series) -> list[Any]:
    return list(column.cat.categories) if isinstance(column.dtype, pd.CategoricalDtype) else []


def _compared(table: pd.DataFrame, metric: str = "pearson_change_top100") -> str:
    """Say in words how the model, which is the first row, stands to the baselines."""
    scores = table.get(metric, pd.Series(np.nan, table.index))
    rivals = scores[[not str(n).startswith(plots.YARDSTICKS) for n in scores.index]].iloc[1:]
    rivals = rivals.dropna()
    if not len(rivals) or not np.isfinite(scores.iloc[0]):
        return ""
    best = str(rivals.idxmax())
    said = (
        f"On the Pearson correlation of the change over the top 100 DE genes the model scores "
        f"{scores.iloc[0]:.3f}; the best baseline, {best}, scores {rivals.max():.3f}"
    )
    if "additive" in rivals and best != "additive":
        said += f", and the additive one {rivals['additive']:.3f}"
    verdict = "is ahead of" if scores.iloc[0] > rivals.max() else "does not beat"
    return f"{said}: here the model {verdict} the best of them."


def _show_scatter(
    page: Page, model: Reported, cells: Cells, split: Split, conditions: pd.DataFrame, seed: int
) -> None:
    """Draw the held-out condition with the most cells, gene by gene."""
    design = model.design
    treatment, covariate = condition_labels(cells)
    train, test = split.mask(cells, "train"), split.mask(cells, "test")

    def of(t: str, x: str) -> NDArray[np.bool_]:
        return (treatment == t) & (covariate == x)

    t, x = max(conditions.to_numpy().tolist(), key=lambda pair: int((of(*pair) & test).sum()))
    is_control = (covariate == x) & (cells.treatment_id == 0)
    control = cells.subset(is_control & train if (is_control & train).any() else is_control)
    truth = cells.subset(of(t, x) & test)
    do = design.setting(design.treatment_levels.index(t))
    expected = expected_under(model, control, do, draws=10, seed=seed)
    start, observed = profile(control.counts), profile(truth.counts)
    seen = bool((of(t, x) & train).any())
    axes = plots.counterfactual(
        profile(expected.mean) - start,
        observed - start,
        genes=design.genes,
        highlight=top_de_genes(truth.counts, control.counts, 100),
        title=plots.plain(f"{t} in {x}") + ("" if seen else ", never seen in training"),
        quantity="change (log CP10k)",
    )
    page.draw("scatter", axes, f"Predicted against observed change of every gene, {t} in {x}.")
    page.words["scatter"] = f"{t} in {x}"
