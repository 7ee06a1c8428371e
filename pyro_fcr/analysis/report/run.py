"""The run: what went in, how it was trained, and what the blocks are."""

from __future__ import annotations

import contextlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from pyro_fcr.analysis.report.page import rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyro_fcr.analysis.contract import Reported
    from pyro_fcr.analysis.report.page import Page
    from pyro_fcr.data import Design, Split

__all__ = ["describe_blocks", "describe_run"]

_TOLD = {
    frozenset({"covariates"}): (
        "What the cell is",
        "State that goes with the covariates (cell type, donor, line) and with nothing else that "
        "the model is told. A counterfactual on a treatment or batch keeps it.",
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
    frozenset({"batch"}): (
        "What the batch does to every cell",
        "What goes with the way the cells were measured. A correction draws it anew in the "
        "reference batch.",
    ),
    frozenset(): (
        "What differs between cells",
        "State that no label explains. A counterfactual keeps it.",
    ),
}

_ALONE = (
    "What the cell is, and what is done to it",
    "The one block of this system: labels shift it, and cells differ within a condition.",
)


def describe_run(page: Page, model: Reported, split: Split | None, run: Mapping[str, Any]) -> None:
    """Say what went in, how it was cut and trained, and with which versions."""
    design, history = model.design, model.history
    schema = {k: v for k, v in design.schema.to_dict().items() if v not in (None, [], "+")}
    facts: dict[str, Any] = {
        "System": type(model).__name__,
        "Genes": f"{design.n_genes:,}",
        "Design": _groups(design),
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
    n_cells = int(design.conditions["n_cells"].sum())
    many = "s" * (len(design.conditions) > 1)
    page.words["summary"] = (
        f"{n_cells:,} cells, {design.n_genes:,} genes, "
        f"{len(design.conditions)} condition{many}, {held_out}."
    )
    page.tables["run"] = {"rows": [(k, str(v)) for k, v in facts.items()]}
    conditions = design.conditions.sort_values("n_cells", ascending=False)
    page.tables["conditions"] = rows(conditions, most=24)


def describe_blocks(model: Reported) -> list[dict[str, Any]]:
    """Say of every block what it is meant to hold, from its parents."""
    made = []
    blocks = model.declaration.blocks
    for block in blocks:
        causes = " and ".join(sorted(block.parents)) or "nothing"
        roles = model.design.roles(block.parents)
        head, text = _TOLD.get(roles, (f"What goes with {causes}", "A latent block."))
        if len(blocks) == 1 and roles:
            head, text = _ALONE
        made.append({"name": block.name, "size": block.size, "head": head, "text": text})
    return made


def _groups(design: Design) -> str:
    counted = {
        "condition": len(design.conditions),
        "treatment group": design.n_treatment_levels if design.schema.treatment else 0,
        "covariate group": design.n_covariate_levels if design.covariates else 0,
        "batch": len(design.batches) if design.schema.batch else 0,
    }
    told = [f"{int(design.conditions['n_cells'].sum()):,} cells"]
    for name, count in counted.items():
        if count:
            plural = {"batch": "batches"}.get(name, f"{name}s")
            told.append(f"{count} {name if count == 1 else plural}")
    return ", ".join(told)


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
