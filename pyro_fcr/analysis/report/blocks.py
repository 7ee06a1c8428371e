"""What the latent blocks hold: pictures, what they give away, the interaction and its axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pyro_fcr.analysis import plots
from pyro_fcr.analysis.certificate import interaction_certificate, learned_prior
from pyro_fcr.analysis.conditions import condition_labels, role_labels
from pyro_fcr.analysis.diagnose import diagnose
from pyro_fcr.analysis.draws import moments, seeded
from pyro_fcr.analysis.leakage import probes
from pyro_fcr.analysis.report.page import rows
from pyro_fcr.errors import FCRError
from pyro_fcr.evaluate import bootstrap_prior

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyro_fcr.analysis.contract import Reported
    from pyro_fcr.analysis.report.page import Page
    from pyro_fcr.data import Cells, Design, Split
    from pyro_fcr.evaluate import Certificate

__all__ = ["block_moments", "interaction_strength", "show_blocks", "show_diagnosis"]

Moments = dict[str, tuple[np.ndarray, np.ndarray]]

_INTERACTION = frozenset({"treatment", "covariates"})


def block_moments(model: Reported, cells: Cells) -> Moments:
    """Return posterior means and standard deviations (N, d) of every block."""
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


def show_blocks(
    page: Page, model: Reported, cells: Cells, split: Split | None, n_all: int, seed: int
) -> Callable[[], Certificate] | None:
    """Show what the blocks hold; return what tells the certificate, where there is one."""
    found, design = block_moments(model, cells), model.design
    means = {name: mean for name, (mean, _) in found.items()}
    page.words["cells"] = (
        f"{len(cells):,} of {n_all:,} cells" if len(cells) < n_all else f"{n_all:,} cells"
    )
    labels = role_labels(cells)
    named = {_column(design, role): values for role, values in labels.items()}
    obs = pd.DataFrame(named or {"cells": np.full(len(cells), "all")})
    axes = plots.overview(
        {k: pd.DataFrame(v) for k, v in means.items()}, obs, color=list(obs.columns)
    )
    page.draw("latents", axes, "Each latent block on two principal components, one column of "
              f"pictures for each label: {', '.join(map(str, obs.columns))}.")  # fmt: skip
    parents = {b.name: design.roles(b.parents) for b in model.declaration.blocks}
    table = probes(means, labels, parents=parents, seed=seed)
    if len(table):
        page.draw("probes", plots.leakage(table), "How well fresh classifiers read each label "
                  "from each block, as given in the table.")  # fmt: skip
        page.tables["probes"] = {"rows": table.to_dict("records")}
    else:
        page.missing["probes"] = "No group of cells holds two labels with five cells each."
    both = [name for name, causes in parents.items() if causes >= _INTERACTION]
    if not both:
        return None
    try:
        with seeded(seed):
            prior = learned_prior(model.model, model.guide, both[0], design)
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


def show_diagnosis(
    page: Page,
    model: Reported,
    cells: Cells,
    certificate: Callable[[], Certificate] | None,
    seed: int,
) -> None:
    """Show what the cheap diagnostics found, each with its state as a word."""
    try:
        found = diagnose(model, cells, certificate=certificate, seed=seed)
    except FCRError as error:
        page.missing["diagnosis"] = str(error)
        return
    page.tables["diagnosis"] = {"rows": found.findings}
    states = [finding.state for finding in found.findings]
    page.words["diagnosis"] = (
        f"{len(states)} things were looked at. Fine: {states.count('fine')}; to be known: "
        f"{states.count('look')}; bad: {states.count('bad')}."
    )


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


def _show_interaction(page: Page, strength: pd.DataFrame) -> None:
    strongest = strength.max(axis=1).sort_values(ascending=False).index
    common = strength.max(axis=0).sort_values(ascending=False).index
    drawn = strength.loc[strength.index.isin(strongest[:25]), strength.columns.isin(common[:25])]
    page.draw("interaction", plots.interaction(drawn), "Strength of the interaction by treatment "
              "and covariate; the strongest are in the table.")  # fmt: skip
    long = strength.stack().rename("strength").reset_index()
    long.columns = ["treatment", "covariate", "strength"]
    long = long.sort_values("strength", ascending=False).head(8)
    page.tables["interaction"] = rows(long, most=8)


def _column(design: Design, role: str) -> str:
    """Return the column, or columns, of ``obs`` that a role stands for."""
    columns = {
        "treatment": design.schema.treatment,
        "covariates": " | ".join(design.covariates),
        "batch": design.schema.batch,
    }
    return columns[role] or role
