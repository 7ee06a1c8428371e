"""Whether fits that differ in nothing but their seed find the same factors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyro_fcr.analysis.conditions import condition_labels
from pyro_fcr.evaluate import restart_agreement

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData

__all__ = ["stability"]


def stability(
    models: Sequence[Any], adata: AnnData | None = None, *, max_cells: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Return how far fitted models agree on their latents within conditions, pair by pair.

    Parameters
    ----------
    models
        Two or more fits of one system to one data set, with different seeds.
    adata
        The cells to compare on, best held out; the first model's training data by default.
    max_cells
        Cells that the probes see.
    seed
        Governs the choice of cells.

    Returns
    -------
    pandas.DataFrame
        One row per block and pair: ``mcc`` of matched components and ``r2`` of whole blocks, as
        :func:`pyro_fcr.evaluate.restart_agreement` gives them.

    Raises
    ------
    DesignError
        If there are fewer than two models, or their blocks differ.
    """
    runs = [{k: v.to_numpy() for k, v in model.latents(adata).items()} for model in models]
    treatment, covariate = condition_labels(models[0].encode(adata))
    condition = [f"{t} | {x}" for t, x in zip(treatment, covariate, strict=True)]
    return restart_agreement(runs, condition, max_cells=max_cells, seed=seed)
