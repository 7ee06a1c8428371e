"""Write the page: which sections a model and its cells give."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_fcr.analysis import plots
from pyro_fcr.analysis.report.blocks import show_blocks, show_diagnosis
from pyro_fcr.analysis.report.effects import show_effects
from pyro_fcr.analysis.report.page import Page
from pyro_fcr.analysis.report.predictions import show_labels, show_predictions
from pyro_fcr.analysis.report.run import describe_blocks, describe_run
from pyro_fcr.analysis.report.targets import show_programs, show_targets
from pyro_fcr.errors import FCRError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from anndata import AnnData

    from pyro_fcr.analysis.contract import Reported
    from pyro_fcr.data import Cells, Split

__all__ = ["write_report"]

MAX_CELLS = 5000
"""Cells that pictures, probes and the certificate are made from; drawn at random from more."""

_OF_CELLS = (
    "latents", "probes", "certificate", "interaction", "diagnosis", "effects", "evaluation",
)  # fmt: skip


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
    page, history = Page(), model.history
    page.draw("history", plots.history(history), "Training curves, one panel per kind of term.")
    describe_run(page, model, split, run or {})
    show_targets(page, model)
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
        page.missing |= dict.fromkeys(_OF_CELLS, reason)
    else:
        shown = _labelled(cells, seed)
        certificate = show_blocks(page, model, shown, split, len(cells), seed)
        show_programs(page, model, shown)
        show_diagnosis(page, model, shown, certificate, seed)
        show_effects(page, model, cells, seed)
        show_predictions(page, model, adata, cells, split, evaluation, seed)
        show_labels(page, model, cells, split)
    return page.write(Path(path), blocks=describe_blocks(model), system=type(model).__name__)


def _labelled(cells: Cells, seed: int) -> Cells:
    """Return the cells whose condition the model knows, a random sample of them if many."""
    rows = np.flatnonzero((cells.treatment_id >= 0) & (cells.covariate_id >= 0))
    if len(rows) > MAX_CELLS:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:MAX_CELLS])
    return cells.subset(rows)
