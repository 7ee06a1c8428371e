"""Dose–response curves: what a treatment does to genes, dose by dose, with bands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyro_fcr import arguments
from pyro_fcr.analysis.conditions import condition_labels
from pyro_fcr.analysis.draws import draw_observations
from pyro_fcr.errors import DesignError, sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from pyro_fcr.analysis.contract import Intervened
    from pyro_fcr.data import Cells

__all__ = ["dose_response"]


def dose_response(
    model: Intervened,
    adata: AnnData | None = None,
    *,
    treatment: str,
    doses: Sequence[float],
    genes: Sequence[str] | None = None,
    cells: int = 200,
    draws: int = 50,
    level: float = 0.9,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the log2 fold change of genes against the control over a grid of doses.

    Control cells of each covariate group are given the treatment at every dose. A draw takes the
    globals from their posterior, the latents from guide and prior, and the cells by a Bayesian
    bootstrap; the same cells and weights serve all doses, so that curves are smooth.

    Parameters
    ----------
    model
        A fitted model whose schema names treatment and dose.
    adata
        The cells; the training data by default. Only control cells are read.
    treatment
        A single treatment.
    doses
        In the data's unit; they need not have been measured. At 0 nothing changes.
    genes
        Names; all by default.
    cells
        Control cells per covariate group.
    draws
        Posterior draws.
    level
        Probability of the bands.
    seed
        Governs which cells, and all draws.

    Returns
    -------
    pandas.DataFrame
        One row per covariate group, dose and gene: ``covariate``, ``dose``, ``gene``, ``lfc``,
        ``low``, ``high``.

    Raises
    ------
    DesignError
        If the schema names no dose, or there are no control cells.
    """
    tails = arguments.tails(level)
    arguments.whole(draws, "draws=", least=2)
    arguments.whole(cells, "cells=", least=1)
    everything = model.encode(adata)
    design = everything.design
    if design.schema.dose is None:
        raise DesignError(
            sentence(
                "no doses to vary",
                where="dose_response",
                expected="a schema with a dose column",
                got="none",
                hint="Schema(dose=...)",
            )
        )
    chosen = list(design.genes) if genes is None else list(genes)
    columns = pd.Index(design.genes).get_indexer(pd.Index(chosen))
    if (columns < 0).any():
        raise DesignError(
            sentence(
                f"no gene is called '{chosen[int((columns < 0).argmax())]}'",
                where="dose_response(genes=)",
                expected="names of the model's genes",
                got=repr(chosen[int((columns < 0).argmax())]),
                hint="design.genes lists them",
            )
        )
    controls = everything.subset(np.flatnonzero(everything.treatment_id == 0))
    if not len(controls):
        raise DesignError(
            sentence(
                "no control cells to start from",
                where="dose_response",
                expected="cells of the control",
                got="none",
                hint="pass data that hold some",
            )
        )
    rng = np.random.default_rng(seed)
    frames = []
    _, names = condition_labels(controls)
    for name in sorted(set(names)):
        rows = rng.permutation(np.flatnonzero(names == name))[:cells]
        start = controls.subset(np.sort(rows))
        weights = rng.exponential(size=(draws, len(start)))
        none = {"treatment": design.schema.control}
        base = _curve(model, start, none, weights, columns, seed=seed)
        for dose in doses:
            do = {"treatment": treatment, "dose": dose} if dose else none
            change = _curve(model, start, do, weights, columns, seed=seed) - base
            low, high = np.quantile(change, tails, axis=0)
            frames.append(
                pd.DataFrame(
                    {
                        "covariate": name,
                        "dose": float(dose),
                        "gene": chosen,
                        "lfc": change.mean(0),
                        "low": low,
                        "high": high,
                    }
                )
            )
    return pd.concat(frames, ignore_index=True)


def _curve(
    model: Intervened,
    start: Cells,
    do: dict[str, Any],
    weights: NDArray[np.float64],
    columns: NDArray[np.int64],
    *,
    seed: int,
) -> NDArray[np.float64]:
    out = np.empty((len(weights), len(columns)))
    depth = weights @ start.library
    drawn = draw_observations(
        model.model, model.guide, start, start.design.do(start, do), size=len(start),
        redraw=model.descendants(do), draws=len(weights), seed=seed, device=model.device,
    )  # fmt: skip
    for _, _, observations in drawn:
        for d, observation in enumerate(observations):
            expected = observation.mean.cpu().numpy()[:, columns]
            out[d] = np.log2((weights[d] @ expected + 0.5 * weights[d].mean()) / depth[d])
    return out
