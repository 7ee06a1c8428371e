"""One page on a fitted model: self-contained HTML, good on a phone and in print."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import warnings
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pyro_fcr.analysis import plots
from pyro_fcr.analysis.certificate import interaction_certificate, learned_prior
from pyro_fcr.analysis.conditions import condition_labels
from pyro_fcr.analysis.diagnose import diagnose
from pyro_fcr.analysis.draws import moments, seeded
from pyro_fcr.analysis.effects import estimate_effects
from pyro_fcr.analysis.expression import expected_counts
from pyro_fcr.analysis.leakage import probes
from pyro_fcr.errors import FCRError
from pyro_fcr.evaluate import bootstrap_prior, profile, top_de_genes
from pyro_fcr.files import whole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from anndata import AnnData
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from pyro_fcr.analysis.effects import Effects
    from pyro_fcr.data import Cells, Design, Split
    from pyro_fcr.evaluate import Certificate
    from pyro_fcr.model import LatentModel

__all__ = ["Reported", "interaction_strength", "write_report"]

MAX_CELLS = 5000
"""Cells that pictures, probes and the certificate are made from; drawn at random from more."""

EFFECT_CELLS = 20_000
EFFECT_VALUES = 60_000_000
"""Draws × conditions × genes of the effects that a page holds while it is made."""

EFFECT_DRAWS = (40, 200)
"""Fewest and most draws behind the effects."""

RANKED, SHOWN_CONDITIONS, SHOWN_GENES, SHARED_GENES = 60, 30, 15, 100

_OF_CELLS = (
    "latents", "probes", "certificate", "interaction", "diagnosis", "effects", "evaluation",
)  # fmt: skip

Moments = dict[str, tuple[np.ndarray, np.ndarray]]


class Reported(Protocol):
    """What the page asks of a fitted model."""

    design: Design
    declaration: Any
    settings: dict[str, Any]

    @property
    def model(self) -> LatentModel:
        """The generative half."""

    @property
    def guide(self) -> Any:
        """The approximate posterior."""

    @property
    def device(self) -> torch.device:
        """Where the weights live."""

    @property
    def history(self) -> pd.DataFrame:
        """The training curves."""

    def encode(self, adata: AnnData | None = None) -> Cells:
        """Return data as encoded cells."""

    def descendants(self, do: Mapping[str, Any]) -> list[str]:
        """Return the blocks an intervention redraws."""

    def evaluate(
        self,
        adata: AnnData | None = None,
        split: Split | None = None,
        *,
        draws: int = ...,
        by_condition: bool = ...,
        seed: int = ...,
    ) -> pd.DataFrame:
        """Score predictions beside baselines."""


@dataclass
class _Page:
    """What the template shows; a section without content says why in ``missing``."""

    figures: dict[str, dict[str, str]] = field(default_factory=dict)
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def draw(self, name: str, axes: Any, alt: str) -> None:
        """Keep the figure of some axes as an SVG data URI."""
        figure: Figure = np.ravel(np.asarray(axes, dtype=object))[0].figure
        self.figures[name] = {"uri": _data_uri(figure), "alt": alt}


def write_report(
    model: Reported,
    path: str | Path,
    adata: AnnData | None = None,
    split: Split | None = None,
    *,
    run: Mapping[str, Any] | None = None,
    evaluation: pd.DataFrame | None = None,
    seed: int = 0,
) -> Path:
    """Write one self-contained HTML page on a fitted model.

    Parameters
    ----------
    model
        A fitted model.
    path
        The page; written whole or not at all.
    adata
        The cells to show; the training data by default. A loaded model holds none, and its page
        then tells of the training run alone.
    split
        The split the model was trained with; its test cells judge the counterfactuals.
    run
        More to say of the run, by name, such as ``{"command": ..., "data": ...}``.
    evaluation
        ``model.evaluate(adata, split, by_condition=True)``, where it is at hand.
    seed
        Governs which cells are shown, the probes and the draws.

    Returns
    -------
    pathlib.Path
        The page.
    """
    page, history = _Page(), model.history
    page.draw("history", plots.history(history), "Training curves, one panel per kind of term.")
    _describe_run(page, model, split, run or {})
    cells: Cells | None
    try:
        cells, reason = model.encode(adata).loaded(), ""
    except FCRError as error:
        cells, reason = None, str(error)
        if adata is not None:
            raise
    if cells is not None and not ((cells.treatment_id >= 0) & (cells.covariate_id >= 0)).any():
        cells, reason = None, "no cell has both a treatment and covariates that the model knows."
    if cells is None:
        for section in _OF_CELLS:
            page.missing[section] = reason
    else:
        shown = _labelled(cells, seed)
        certificate = _show_cells(page, model, shown, split, len(cells), seed)
        _show_diagnosis(page, model, shown, certificate, seed)
        _show_effects(page, model, cells, seed)
        _show_predictions(page, model, adata, cells, split, evaluation, seed)
    environment = _environment()
    script = _source(environment, "report.js")
    content = environment.get_template("report.html.j2").render(
        page=page,
        blocks=_blocks(model),
        system=type(model).__name__,
        title="pyro_fcr report",
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    )
    return _write(Path(path), content)


def interaction_strength(mean: np.ndarray, sd: np.ndarray, cells: Cells) -> pd.DataFrame:
    r"""Say how far each treatment's shift of a block departs from its usual shift.

    .. math:: \| (m_{tx} - m_{0x}) - \operatorname{mean}_x (m_{tx} - m_{0x}) \|

    over the block's components, each in units of its standard deviation within a condition.

    Parameters
    ----------
    mean, sd
        Posterior moments of the block, shape (N, n).
    cells
        The same cells.

    Returns
    -------
    pandas.DataFrame
        Treatments (control left out) by covariates; missing where a condition or its control has
        fewer than five cells.
    """
    treatment, covariate = condition_labels(cells)
    control = cells.design.treatment_levels[0]
    prior = bootstrap_prior(
        mean, treatment, covariate, control=control, variance=sd**2, n_boot=1
    )  # fmt: skip
    unit = np.sqrt(np.nanmean(prior.scale**2, axis=(0, 1)))
    shift = (prior.loc - prior.loc[:1])[1:] / unit
    seen = np.isfinite(shift).all(axis=-1, keepdims=True)
    usual = np.where(seen, shift, 0).sum(1, keepdims=True) / np.maximum(seen.sum(1)[:, None], 1)
    values = np.linalg.norm(shift - usual, axis=-1)
    return pd.DataFrame(values, index=list(prior.treatments[1:]), columns=list(prior.covariates))


# ---- sections --------------------------------------------------------------------------------


def _describe_run(
    page: _Page, model: Reported, split: Split | None, run: Mapping[str, Any]
) -> None:
    design, history = model.design, model.history
    schema = {k: v for k, v in design.schema.to_dict().items() if v not in (None, [], "+")}
    facts: dict[str, Any] = {
        "System": type(model).__name__,
        "Genes": f"{design.n_genes:,}",
        "Design": f"{int(design.conditions['n_cells'].sum()):,} cells, "
        f"{len(design.conditions)} conditions, {design.n_treatment_levels} treatment groups, "
        f"{design.n_covariate_levels} covariate groups",
        "Schema": ", ".join(f"{k} = {_told(v)}" for k, v in schema.items()),
        "Latent sizes": ", ".join(f"{b.name} = {b.size}" for b in model.declaration.blocks),
        "Split": split.describe() if split is not None else "none: all cells trained the model",
        "Settings": ", ".join(f"{k} = {_told(v)}" for k, v in model.settings.items()),
        "Training": f"{len(history):,} epochs"
        + (f", {history['seconds'].sum():,.0f} seconds" if "seconds" in history else ""),
        "Versions": ", ".join(f"{k} {v}" for k, v in _versions().items()),
    }
    if split is not None:
        facts["Split hash"] = split.hash
    facts |= {str(name): value for name, value in run.items()}
    held_out = (
        "nothing held out" if split is None else f"{split.counts()['test']:,} cells held out"
    )
    page.words["summary"] = (
        f"{int(design.conditions['n_cells'].sum()):,} cells, {design.n_genes:,} genes, "
        f"{len(design.conditions)} conditions, {held_out}."
    )
    page.tables["run"] = {"rows": [(k, str(v)) for k, v in facts.items()]}
    conditions = design.conditions.sort_values("n_cells", ascending=False)
    page.tables["conditions"] = _rows(conditions, most=24)


def _show_cells(
    page: _Page, model: Reported, cells: Cells, split: Split | None, n_all: int, seed: int
) -> Callable[[], Certificate] | None:
    """Show what the blocks hold; return what tells the certificate, where there is one."""
    found, design = _moments(model, cells), model.design
    means = {name: mean for name, (mean, _) in found.items()}
    treatment, covariate = condition_labels(cells)
    page.words["cells"] = (
        f"{len(cells):,} of {n_all:,} cells" if len(cells) < n_all else f"{n_all:,} cells"
    )
    obs = pd.DataFrame({"treatment": treatment, "covariate": covariate})
    names = {
        "treatment": design.schema.treatment or "treatment",
        "covariate": " | ".join(design.covariates) or "covariate",
    }
    axes = plots.overview(
        {k: pd.DataFrame(v) for k, v in means.items()},
        obs.rename(columns=names),
        treatment=names["treatment"],
        covariate=names["covariate"],
    )
    page.draw("latents", axes, "Each latent block on two principal components, coloured by "
              "treatment on the left and by covariate on the right.")  # fmt: skip
    parents = {b.name: model.design.roles(b.parents) for b in model.declaration.blocks}
    table = probes(means, treatment, covariate, parents=parents, seed=seed)
    if len(table):
        page.draw("probes", plots.leakage(table), "How well fresh classifiers read treatment and "
                  "covariate from each block, as given in the table.")  # fmt: skip
        page.tables["probes"] = {"rows": table.to_dict("records")}
    else:
        page.missing["probes"] = "No group of cells holds two labels with five cells each."
    both = [name for name, causes in parents.items() if {"treatment", "covariates"} <= causes]
    if not both:
        page.missing["certificate"] = page.missing["interaction"] = "No interaction block."
        return None
    try:
        with seeded(seed):
            prior = learned_prior(model.model, model.guide, both[0], model.design)
        trained = np.ones(len(cells), bool) if split is None else split.mask(cells, "train")
        mean, sd = found[both[0]]
        certificate = interaction_certificate(
            mean[trained],
            sd[trained],
            cells.subset(trained),
            prior=prior,
            replicates=100,
            seed=seed,
        )
        page.words["verdict"] = certificate.verdict
        page.words["certificate"] = str(certificate)
        _show_interaction(page, interaction_strength(*found[both[0]], cells))
    except FCRError as error:
        failed = error
        for section in ("certificate", "interaction"):
            page.missing.setdefault(section, str(error))

        def refuse() -> Certificate:
            raise failed

        return refuse
    return lambda: certificate


def _show_interaction(page: _Page, strength: pd.DataFrame) -> None:
    strongest = strength.max(axis=1).sort_values(ascending=False).index
    common = strength.max(axis=0).sort_values(ascending=False).index
    drawn = strength.loc[strength.index.isin(strongest[:25]), strength.columns.isin(common[:25])]
    page.draw("interaction", plots.interaction(drawn), "Strength of the interaction by treatment "
              "and covariate; the strongest are in the table.")  # fmt: skip
    long = strength.stack().rename("strength").reset_index()
    long.columns = ["treatment", "covariate", "strength"]
    long = long.sort_values("strength", ascending=False).head(8)
    page.tables["interaction"] = _rows(long, most=8)


def _show_diagnosis(
    page: _Page,
    model: Reported,
    cells: Cells,
    certificate: Callable[[], Certificate] | None,
    seed: int,
) -> None:
    try:
        found = diagnose(model, cells, certificate=certificate, seed=seed)
    except FCRError as error:
        page.missing["diagnosis"] = str(error)
        return
    page.tables["diagnosis"] = {"rows": found.findings}
    states = [finding.state for finding in found.findings]
    page.words["diagnosis"] = (
        f"{len(states)} things were looked at: {states.count('fine')} are fine, "
        f"{states.count('look')} should be known, {states.count('bad')} are bad."
    )


def _show_effects(page: _Page, model: Reported, cells: Cells, seed: int) -> None:
    """Show what treatments do to genes: ranked interactions, strongest genes, shares."""
    design = model.design
    size = max(1, (design.n_treatment_levels - 1) * design.n_covariate_levels * design.n_genes)
    fewest, most = EFFECT_DRAWS
    if fewest * size > EFFECT_VALUES or not model.model.likelihood.reads_counts:
        page.missing["effects"] = (
            "The model reads no counts."
            if not model.model.likelihood.reads_counts
            else "There are too many conditions for a page; model.effects(draws=...) has them."
        )
        return
    rows = np.flatnonzero((cells.treatment_id >= 0) & (cells.covariate_id >= 0))
    if len(rows) > EFFECT_CELLS:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:EFFECT_CELLS])
    draws = int(np.clip(EFFECT_VALUES // size, fewest, most))
    try:
        effects = estimate_effects(model, cells.subset(rows), draws=draws, seed=seed)
    except FCRError as error:
        page.missing["effects"] = str(error)
        return
    page.words["effects"] = (
        f"Estimated from {len(rows):,} cells with {draws} posterior draws; intervals hold "
        f"{effects.level:.0%}."
    )
    ranked = effects.interactions()
    _show_genes(page, effects, ranked)
    if len(effects.covariates) > 1:
        _show_ranking(page, effects, ranked)
        _show_shares(page, effects)
    else:
        page.missing["shares"] = "There is one group of cells alone, so no interaction."


def _show_ranking(page: _Page, effects: Effects, ranked: pd.DataFrame) -> None:
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
    page.tables["ranking"] = _rows(ranked, most=RANKED) | {
        "notes": {
            "strength": "Root mean square over genes of what the treatment does to this group "
            "beyond what it does on average, log2 units",
            "genes": "Expected number of genes whose interaction is larger than 0.25",
            "measured": "No: no cells, the model extrapolates",
        }
    }


def _show_genes(page: _Page, effects: Effects, ranked: pd.DataFrame) -> None:
    tables, hovers = [], []
    for t, x in ranked[["treatment", "covariate"]].head(SHOWN_CONDITIONS).to_numpy():
        found = effects.genes_of(t, x)
        # The likeliest effects are many: of those, the largest.
        sure = found[found["selected"]] if found["selected"].any() else found.head(SHOWN_GENES)
        sure = sure.loc[sure["lfc"].abs().sort_values(ascending=False).index].head(SHOWN_GENES)
        hovers += [
            f"The model alone says {_number(row.model)}, the cells alone {_number(row.measured)}"
            for row in sure.itertuples()
        ]
        named = {"treatment": t, "covariate": x, "gene": sure.index}
        kept = sure[["lfc", "low", "high", "p_effect", "selected"]]
        kept = kept.assign(selected=np.where(kept["selected"], "yes", "no"))
        tables.append(kept.reset_index(drop=True).assign(**named)[[*named, *kept.columns]])
    table = pd.concat(tables, ignore_index=True)
    page.tables["genes"] = _rows(table, most=len(table)) | {
        "hovers": hovers,
        "left_out": max(0, len(ranked) - SHOWN_CONDITIONS),
        "notes": {
            "lfc": "Log2 fold change against control cells of the same group, posterior mean",
            "p effect": "Probability that the change is larger than 0.25 either way",
            "selected": "Expected share of false ones at most 5 %",
        },
    }


def _show_shares(page: _Page, effects: Effects) -> None:
    shares = effects.decompose()
    columns = ["size", "common", "interaction", "interaction_low", "interaction_high"]
    page.tables["shares"] = _rows(shares[columns].reset_index(), most=SHARED_GENES) | {
        "notes": {
            "size": "Root mean square of the gene's log2 fold changes over conditions",
            "common": "Share of the squared changes that all groups of cells have in common",
            "interaction": "Share that differs between groups of cells",
        }
    }
    names = {"interaction": "lfc", "interaction_low": "low", "interaction_high": "high"}
    drawn = shares.head(20)[list(names)].rename(columns=names)
    axes = plots.intervals({"": drawn}, list(drawn.index), label="share of the interaction")
    axes.set_xlim(0, 1)
    page.draw("shares", axes, "Share of the interaction in the changes of the twenty most changed "
              "genes, with intervals, as given in the table.")  # fmt: skip


def _show_predictions(
    page: _Page,
    model: Reported,
    adata: AnnData | None,
    cells: Cells,
    split: Split | None,
    evaluation: pd.DataFrame | None,
    seed: int,
) -> None:
    if split is None:
        page.missing["evaluation"] = "No cells were held out, so nothing here is a prediction."
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
    page.draw("evaluation", plots.evaluation(table), "The model beside the baselines, one panel "
              "per metric, as given in the table.")  # fmt: skip
    page.tables["evaluation"] = {
        "head": [str(c).replace("_", " ") for c in table.columns],
        "rows": [
            {
                "method": str(name).replace("_", " "),
                "cells": [_number(v) for v in row],
                "reads": str(name).startswith("reconstruction"),
            }
            for name, row in zip(table.index, table.to_numpy(), strict=True)
        ],
    }
    page.words["verdict_on_predictions"] = _compared(table)
    many = "s" * (len(conditions) > 1)
    page.words["conditions"] = f"{len(conditions)} treated condition{many} with held-out cells"
    _show_scatter(page, model, cells, split, conditions, seed)


def _compared(table: pd.DataFrame, metric: str = "pearson_change_top100") -> str:
    """Say in words how the model, which is the first row, stands to the baselines."""
    scores = table[metric]
    rivals = scores[[not str(n).startswith("reconstruction") for n in scores.index]].iloc[1:]
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
    page: _Page, model: Reported, cells: Cells, split: Split, conditions: pd.DataFrame, seed: int
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
    label, dose = design.label(design.treatment_rows[list(design.treatment_levels).index(t)])
    do = {"treatment": label} | ({"dose": dose} if design.schema.dose else {})
    expected = expected_counts(
        model.model,
        model.guide,
        control,
        design.do(control, do),
        redraw=model.descendants(do),
        draws=10,
        seed=seed,
        device=model.device,
    )
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


# ---- pieces ----------------------------------------------------------------------------------


def _blocks(model: Reported) -> list[dict[str, Any]]:
    told = {
        frozenset({"covariates"}): (
            "What the cell is",
            "State that goes with the covariates (cell type, donor, line) and that the treatment "
            "leaves alone. A counterfactual keeps it.",
        ),
        frozenset({"treatment"}): (
            "What the treatment does to every cell",
            "The response that all kinds of cells share. A counterfactual draws it anew under "
            "the new treatment.",
        ),
        frozenset({"treatment", "covariates"}): (
            "What the treatment does to this kind of cell alone",
            "The part of the response that differs between kinds of cells: the interaction. "
            "A counterfactual draws it anew.",
        ),
    }
    made = []
    for block in model.declaration.blocks:
        causes = " and ".join(sorted(block.parents)) or "nothing"
        head, text = told.get(block.parents, (f"Depends on {causes}", "A latent block."))
        made.append({"name": block.name, "size": block.size, "head": head, "text": text})
    return made


def _labelled(cells: Cells, seed: int) -> Cells:
    """Return the cells whose condition the model knows, a random sample of them if many."""
    rows = np.flatnonzero((cells.treatment_id >= 0) & (cells.covariate_id >= 0))
    if len(rows) > MAX_CELLS:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:MAX_CELLS])
    return cells.subset(rows)


def _moments(model: Reported, cells: Cells) -> Moments:
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    with seeded(0):
        for start in range(0, len(cells), 512):
            batch = cells.batch(slice(start, start + 512)).to(model.device)
            for name, (mean, sd) in moments(model.guide, batch).items():
                parts.setdefault(name, []).append((mean.cpu().numpy(), sd.cpu().numpy()))
    return {
        name: (np.concatenate([m for m, _ in both]), np.concatenate([s for _, s in both]))
        for name, both in parts.items()
    }


def _rows(table: pd.DataFrame, *, most: int) -> dict[str, Any]:
    rows = [[_number(value) for value in row] for row in table.head(most).itertuples(index=False)]
    return {
        "head": [str(c).replace("_", " ") for c in table.columns],
        "rows": rows,
        "left_out": max(0, len(table) - most),
        "numeric": [pd.api.types.is_numeric_dtype(table[c]) for c in table.columns],
    }


def _number(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.3f}" if np.isfinite(value) else "–"
    return f"{value:,}" if isinstance(value, int | np.integer) else str(value)


def _told(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _versions(names: Sequence[str] = ("pyro-fcr", "pyro-ppl", "torch")) -> dict[str, str]:
    found = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _data_uri(figure: Figure) -> str:
    drawn = io.BytesIO()
    with plots.house_style(), warnings.catch_warnings():
        # A script that the font lacks is drawn as boxes; the tables have the names.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        # Without a date the same model gives the same page.
        figure.savefig(drawn, format="svg", metadata={"Date": None}, transparent=True)
    return "data:image/svg+xml;base64," + base64.b64encode(drawn.getvalue()).decode("ascii")


def _source(environment: Environment, name: str) -> str:
    loader: Any = environment.loader
    return str(loader.get_source(environment, name)[0])


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("pyro_fcr.analysis", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _write(path: Path, content: str) -> Path:
    with whole(path) as partial:
        partial.write_text(content, encoding="utf-8")
    return path
