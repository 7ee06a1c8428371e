"""A fitted model's state in plain words: what is fine, what is not, what to try."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from pyro_fcr.analysis.conditions import role_labels
from pyro_fcr.analysis.diagnostics import (
    K_HAT_BAD,
    block_use,
    importance,
    predictive_checks,
    simulated_ranks,
)
from pyro_fcr.analysis.draws import moments, seeded
from pyro_fcr.analysis.leakage import block_leakage, probes
from pyro_fcr.errors import FCRError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from pyro_fcr.analysis.contract import Diagnosed
    from pyro_fcr.data import Batch, Cells

__all__ = ["Diagnosis", "Finding", "diagnose"]

MOST_CELLS = 1000
DRAWN_CELLS = 200
UNEVEN = 0.2
DRAWS = 100


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Parameters
    ----------
    subject
        What was looked at.
    state
        ``"fine"``, ``"look"`` (not wrong, but know it) or ``"bad"``.
    words
        What was found, with its numbers.
    advice
        What to try; empty where all is fine.
    """

    subject: str
    state: Literal["fine", "look", "bad"]
    words: str
    advice: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All findings on a fitted model; print it for words.

    Parameters
    ----------
    findings
        In the order they were looked at.
    """

    findings: tuple[Finding, ...]

    @property
    def table(self) -> pd.DataFrame:
        """One row per finding: ``state``, ``words``, ``advice``."""
        rows = [vars(finding) for finding in self.findings]
        return pd.DataFrame(rows).set_index("subject")

    @property
    def state(self) -> str:
        """The worst of the findings' states."""
        return max((f.state for f in self.findings), key=["fine", "look", "bad"].index)

    def __str__(self) -> str:
        """Return a line or two per finding."""
        lines = []
        for finding in self.findings:
            lines.append(f"[{finding.state}] {finding.subject}: {finding.words}")
            if finding.advice:
                lines.append(f"       try: {finding.advice}")
        return "\n".join(lines)


def diagnose(
    fitted: Diagnosed,
    cells: Cells,
    *,
    certificate: Callable[[], Any] | None = None,
    assumed: bool = False,
    seed: int = 0,
) -> Diagnosis:
    """Run the cheap diagnostics and put them into words.

    Parameters
    ----------
    fitted
        A fitted model.
    cells
        Cells to look at; at most 1,000 are drawn from them, all are counted.
    certificate
        Makes the certificate of the interaction block, where there is one.
    assumed
        Whether all these cells were taken for training cells, for want of a split.
    seed
        Governs which cells, and all draws.
    """
    rng = np.random.default_rng(seed)
    some = cells.subset(np.sort(rng.permutation(len(cells))[:MOST_CELLS]))
    few = some.subset(np.sort(rng.permutation(len(some))[:DRAWN_CELLS]))
    findings = [
        *_composition(cells),
        *_training(fitted.history),
        *_critics(fitted.history),
        *_use(fitted, some, seed),
        *_separation(fitted, some, seed),
        *_fit(fitted, some, seed),
        *_posterior(fitted, few, seed),
    ]
    if certificate is not None:
        findings.append(_identified(certificate, len(cells) if assumed else 0))
    return Diagnosis(tuple(findings))


def _composition(cells: Cells) -> Iterator[Finding]:
    known = (cells.treatment_id >= 0) & (cells.covariate_id >= 0)
    pair = np.stack([cells.treatment_id[known], cells.covariate_id[known]])
    n_t, n_x = cells.design.n_treatment_levels, cells.design.n_covariate_levels
    counts = np.zeros((n_t, n_x))
    np.add.at(counts, tuple(pair), 1)
    counts = counts[counts.sum(1) > 0][:, counts.sum(0) > 0]
    if min(counts.shape) < 2:
        return
    association = cramers_v(counts)
    words = f"treatments and covariate groups are associated by {association:.2f} (Cramér's V)."
    if association > UNEVEN:
        yield Finding(
            "composition",
            "look",
            words + " Treated and control cells are not of the same kinds.",
            "if treatments choose or kill kinds of cells, they may choose within kinds as well, "
            "which passes for an effect: randomise, or name what selection acts on in covariates",
        )
    else:
        yield Finding("composition", "fine", words)


def cramers_v(counts: np.ndarray) -> float:
    """Return the association of rows and columns, 0 to 1, corrected for bias.

    Parameters
    ----------
    counts
        Cells by row and column, none of which is empty (Bergsma 2013, J. Korean Stat. Soc. 42).
    """
    n, (r, k) = counts.sum(), counts.shape
    expected = counts.sum(1, keepdims=True) * counts.sum(0) / n
    square = ((counts - expected) ** 2 / expected).sum() / n
    rows, columns = (m - (m - 1) ** 2 / (n - 1) for m in (r, k))
    left = max(0.0, square - (r - 1) * (k - 1) / (n - 1))
    return float(np.sqrt(left / (min(rows, columns) - 1)))


def _training(history: pd.DataFrame) -> Iterator[Finding]:
    divergences = [name for name in history if name.startswith("kl.")]
    late = history.iloc[int(0.8 * len(history)) :]
    if len(late) < 4:
        yield Finding(
            "training",
            "bad",
            f"{len(history)} epochs are too few to judge by.",
            "train for the default number of epochs: leave max_epochs out",
        )
        return
    moving = {
        name: float(abs(late[name].iloc[-1] - late[name].iloc[0]))
        for name in divergences
        if abs(late[name].iloc[-1] - late[name].iloc[0])
        > 0.05 * max(abs(float(late[name].iloc[-1])), 0.2)
    }
    if moving:
        told = ", ".join(f"{name} by {change:.2f} nats" for name, change in moving.items())
        yield Finding(
            "training",
            "look",
            f"over the last fifth of the run {told} still moved.",
            "more epochs: blocks go on separating long after the loss is flat",
        )
    else:
        yield Finding("training", "fine", "the divergence of every block has settled.")
    if "valid.loss" in history:
        valid = history["valid.loss"].dropna()
        rise = float(valid.iloc[-1] - valid.min())
        if rise > 0.01 * abs(float(valid.min())):
            yield Finding(
                "overfitting",
                "look",
                f"the held-out loss ended {rise:.1f} nats above its lowest point.",
                "early_stopping=True, more weight_decay, or fewer genes (pf.top_genes)",
            )
        else:
            yield Finding("overfitting", "fine", "the held-out loss ended at its lowest.")


def _critics(history: pd.DataFrame) -> Iterator[Finding]:
    for column in (name for name in history if name.startswith("accuracy.")):
        late = float(history[column].iloc[int(0.8 * len(history)) :].mean())
        name = column.removeprefix("accuracy.")
        if late > 0.6:
            yield Finding(
                f"discriminator {name}",
                "bad",
                f"it still tells the pairs apart with accuracy {late:.2f} (chance 0.50).",
                f"a larger weight: penalties={{'{name}': ...}}",
            )
        else:
            yield Finding(f"discriminator {name}", "fine", f"accuracy {late:.2f}, chance 0.50.")


def _use(fitted: Diagnosed, cells: Cells, seed: int) -> Iterator[Finding]:
    table = block_use(fitted.guide, fitted.model, _batches(cells, fitted.device), seed=seed)
    for name, row in table.iterrows():
        told = (
            f"{row.information:.1f} nats a cell beyond its condition, "
            f"{row.used:.0f} of {row['size']:.0f} components in use."
        )
        if row.used == 0:
            yield Finding(
                f"use of {name}",
                "look",
                told + " It holds at most the condition itself.",
                "fewer dimensions, or read nothing into differences between cells there",
            )
        else:
            yield Finding(f"use of {name}", "fine", told)


def _separation(fitted: Diagnosed, cells: Cells, seed: int) -> Iterator[Finding]:
    known = (cells.treatment_id >= 0) & (cells.covariate_id >= 0)
    cells = cells.subset(known)
    means = _means(fitted, cells)
    told = block_leakage(means, cells.condition_id).items()
    worst, share = max(told, key=lambda item: item[1], default=("", 0.0))
    if worst:
        source, target = worst.removeprefix("leakage.").split(".")
        words = f"within conditions at most {share:.2f} of a block is told by another"
        words += f" ({target} by {source})."
        if share > 0.1:
            yield Finding(
                "blocks apart",
                "bad" if share > 0.3 else "look",
                words,
                "smaller sizes, or more epochs",
            )
        else:
            yield Finding("blocks apart", "fine", words)
    parents = {b.name: fitted.design.roles(b.parents) for b in fitted.declaration.blocks}
    for row in probes(means, role_labels(cells), parents=parents, seed=seed).itertuples():
        if row.expected != "chance":
            continue
        words = (
            f"fresh classifiers read it from {row.block} with balanced accuracy "
            f"{row.score:.2f} ({row.low:.2f} to {row.high:.2f}; chance {row.chance:.2f})."
        )
        over = row.score - row.chance
        subject = f"{row.question} from {row.block}"
        if row.low > row.chance and over > 0.05:
            yield Finding(
                subject,
                "bad" if over > 0.15 else "look",
                words,
                "a larger weight of the block's independence penalty, or more cells",
            )
        else:
            yield Finding(subject, "fine", words)


def _fit(fitted: Diagnosed, cells: Cells, seed: int) -> Iterator[Finding]:
    table = predictive_checks(
        fitted.model, fitted.guide, cells, draws=4, seed=seed, device=fitted.device
    )
    zeros, variance = table.loc["share of zeros by gene"], table.loc["variance of genes (log10)"]
    gap = abs(zeros.observed - zeros.replicated)
    words = (
        f"zeros {zeros.observed:.3f} observed, {zeros.replicated:.3f} replicated; "
        f"gene variances agree with correlation {variance.agreement:.2f}."
    )
    if gap > 0.03 or variance.agreement < 0.9:
        yield Finding(
            "counts replicated", "look", words, "likelihood='zinb', or a wider decoder (hidden=)"
        )
    else:
        yield Finding("counts replicated", "fine", words)


def _posterior(fitted: Diagnosed, cells: Cells, seed: int) -> Iterator[Finding]:
    found = importance(
        fitted.model,
        fitted.guide,
        _batches(cells, fitted.device),
        draws=DRAWS,
        seed=seed,
    )
    bad = float((found.k_hat > K_HAT_BAD).mean())
    words = (
        f"k-hat above {K_HAT_BAD} in {100 * bad:.0f} % of cells; the importance-weighted bound "
        f"lies {(found.bound - found.elbo).mean():.1f} nats above the ELBO."
    )
    if bad > 0.2:
        yield Finding(
            "guide against exact posterior",
            "look",
            words + " Spreads of single cells' latents are not to be taken at their word.",
            "fcr.calibrate(), guide=pf.guides.Joint(), or importance weights (fcr.importance)",
        )
    else:
        yield Finding("guide against exact posterior", "fine", words)
    ranks = simulated_ranks(
        fitted.model, fitted.guide, _batches(cells, fitted.device), draws=DRAWS, seed=seed
    )
    for name, values in ranks.items():
        inside = (values >= 0.05 * DRAWS) & (values <= 0.95 * DRAWS)
        share = float(inside.mean())
        words = f"90 % intervals of simulated cells hold the truth in {100 * share:.0f} %."
        if abs(share - 0.9) > 0.05:
            yield Finding(
                f"spread of {name}",
                "look",
                words,
                "fcr.calibrate(), which trains the guide on cells that the model draws",
            )
        else:
            yield Finding(f"spread of {name}", "fine", words)


def _identified(certificate: Callable[[], Any], assumed: int) -> Finding:
    try:
        found = certificate()
    except FCRError as error:
        return Finding("identifiability", "look", str(error))
    state: Any = {"identified": "fine", "undetermined": "look"}.get(found.verdict, "bad")
    advice = "" if state == "fine" else "fewer dimensions of the interaction block, or read blocks"
    words = str(found).splitlines()[0]
    if assumed:
        # What held-out conditions would identify, the model has not learned.
        words += f" All {assumed:,} cells given were taken for training cells."
        advice = "; ".join(filter(None, [advice, "split= where some of them were held out"]))
        state = "look" if state == "fine" else state
    return Finding("identifiability", state, words, advice)


def _batches(cells: Cells, device: torch.device) -> Iterator[Batch]:
    starts = range(0, len(cells), 512)
    return (cells.batch(slice(start, start + 512)).to(device) for start in starts)


def _means(fitted: Diagnosed, cells: Cells) -> dict[str, np.ndarray]:
    parts: dict[str, list[np.ndarray]] = {}
    with seeded(0):
        for batch in _batches(cells, fitted.device):
            for name, (mean, _) in moments(fitted.guide, batch).items():
                parts.setdefault(name, []).append(mean.cpu().numpy())
    return {name: np.concatenate(values) for name, values in parts.items()}
