"""What treatments do to genes: ranked interactions, strongest genes, shares."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pyro_fcr.analysis import plots
from pyro_fcr.analysis.changes import estimate_effects
from pyro_fcr.analysis.report.page import rows
from pyro_fcr.errors import FCRError

if TYPE_CHECKING:
    from pyro_fcr.analysis.contract import Reported
    from pyro_fcr.analysis.effects import Effects
    from pyro_fcr.analysis.report.page import Page
    from pyro_fcr.data import Cells

__all__ = ["show_effects"]

EFFECT_CELLS = 20_000
EFFECT_VALUES = 60_000_000
"""Draws × conditions × genes of the effects that a page holds while it is made."""

EFFECT_DRAWS = (40, 200)
"""Fewest and most draws behind the effects."""

RANKED, SHOWN_CONDITIONS, SHOWN_GENES, SHARED_GENES = 60, 30, 15, 100


def show_effects(page: Page, model: Reported, cells: Cells, seed: int) -> None:
    """Show what treatments do to genes, or say why not."""
    design = model.design
    size = max(1, (design.n_treatment_levels - 1) * design.n_covariate_levels * design.n_genes)
    fewest, most = EFFECT_DRAWS
    if design.schema.treatment is None:
        return
    refusals = (
        (not model.model.likelihood.reads_counts, "The model reads no counts."),
        (
            fewest * size > EFFECT_VALUES,
            "There are too many conditions for a page; model.effects(draws=...) has them.",
        ),
    )
    for refused, why in refusals:
        if refused:
            page.missing["effects"] = why
            return
    chosen = np.flatnonzero((cells.treatment_id >= 0) & (cells.covariate_id >= 0))
    if len(chosen) > EFFECT_CELLS:
        chosen = np.sort(np.random.default_rng(seed).permutation(chosen)[:EFFECT_CELLS])
    draws = int(np.clip(EFFECT_VALUES // size, fewest, most))
    try:
        effects = estimate_effects(model, cells.subset(chosen), draws=draws, seed=seed)
    except FCRError as error:
        page.missing["effects"] = str(error)
        return
    page.words["effects"] = (
        f"Estimated from {len(chosen):,} cells with {draws} posterior draws; intervals hold "
        f"{effects.level:.0%}."
    )
    if len(effects.covariates) > 1:
        ranked = effects.interactions()
        _show_ranking(page, effects, ranked)
        _show_shares(page, effects)
        _show_genes(page, effects, ranked[["treatment", "covariate"]].to_numpy().tolist())
    else:
        # The strongest treatment first: there is one group of cells.
        size = (effects.draws.mean(0) ** 2).mean((1, 2))
        first = [effects.treatments[t] for t in np.argsort(-size)]
        _show_genes(page, effects, [[t, effects.covariates[0]] for t in first])


def _show_ranking(page: Page, effects: Effects, ranked: pd.DataFrame) -> None:
    one = len(effects.treatments) == 1
    names = ranked["covariate"] if one else ranked["treatment"] + " in " + ranked["covariate"]
    drawn = ranked.set_index(names).rename(columns={"strength": "lfc"}).head(20)
    axes = plots.intervals(
        {"": drawn}, list(drawn.index), label="interaction (rms over genes, log2)"
    )
    axes.set_xlim(left=0)
    page.draw("ranking", axes, "Strength of the interaction of each condition with its interval, "
              "the strongest first, as given in the table.")  # fmt: skip
    ranked = ranked.assign(
        genes=ranked["genes"].round().astype(int),
        measured=np.where(ranked["measured"], "yes", "no"),
    )
    notes = {
        "strength": "Root mean square over genes of what the treatment does to this group "
        "beyond what it does on average, log2 units",
        "genes": "Expected number of genes whose interaction is larger than 0.25",
        "measured": "No: no cells, the model extrapolates",
    }
    page.tables["ranking"] = rows(ranked, most=RANKED, notes=notes)


def _show_genes(page: Page, effects: Effects, conditions: list[list[str]]) -> None:
    tables, silent = [], 0
    for t, x in conditions[:SHOWN_CONDITIONS]:
        found = effects.genes_of(t, x)
        # The likeliest effects are many: of those, the largest.
        sure = found[found["selected"]]
        silent += not len(sure)
        sure = sure.loc[sure["lfc"].abs().sort_values(ascending=False).index].head(SHOWN_GENES)
        named = {"treatment": t, "covariate": x, "gene": sure.index}
        if len(effects.covariates) == 1:
            del named["covariate"]
        kept = sure[["lfc", "low", "high", "p_effect", "model", "measured"]]
        tables.append(kept.reset_index(drop=True).assign(**named)[[*named, *kept.columns]])
    table = pd.concat(tables, ignore_index=True)
    if silent:
        many = "condition has" if silent == 1 else "conditions have"
        page.words["silent"] = f"{silent} {many} no gene that is sure enough."
    notes = {
        "lfc": "Log2 fold change against control cells of the same group, posterior mean",
        "low, high": "Its interval",
        "p effect": "Probability that the change is larger than 0.25 either way",
        "model": "What the model alone says",
        "measured": "What the cells alone say",
    }
    page.tables["genes"] = rows(table, most=len(table), notes=notes)
    page.tables["genes"]["left_out"] = max(0, len(conditions) - SHOWN_CONDITIONS)


def _show_shares(page: Page, effects: Effects) -> None:
    shares = effects.decompose()
    columns = ["size", "common", "interaction", "interaction_low", "interaction_high"]
    notes = {
        "size": "Root mean square of the gene's log2 fold changes over conditions",
        "common": "Share of the squared changes that all groups of cells have in common",
        "interaction": "Share that differs between groups of cells",
    }
    page.tables["shares"] = rows(shares[columns].reset_index(), most=SHARED_GENES, notes=notes)
    names = {"interaction": "lfc", "interaction_low": "low", "interaction_high": "high"}
    drawn = shares.head(20)[list(names)].rename(columns=names)
    axes = plots.intervals({"": drawn}, list(drawn.index), label="share of the interaction")
    axes.set_xlim(0, 1)
    page.draw("shares", axes, "Share of the interaction in the changes of the twenty most changed "
              "genes, with intervals, as given in the table.")  # fmt: skip
