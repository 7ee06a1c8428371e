"""Choosing genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from pyro_fcr.errors import DesignError, sentence

if TYPE_CHECKING:
    from anndata import AnnData

    from pyro_fcr.data.splits import Split

__all__ = ["top_genes"]


def top_genes(
    adata: AnnData, n: int, *, split: Split | None = None, layer: str | None = None
) -> AnnData:
    """Return the data with the genes that vary most, in their own order.

    Variance of log1p of counts per 10,000 over the training cells.

    Parameters
    ----------
    adata
        Counts, dense or sparse.
    n
        How many genes to keep; all of them where there are no more.
    split
        Only its training cells choose, so that the test stays a test.
    layer
        The layer with the counts; ``X`` by default.

    Raises
    ------
    DesignError
        If there is no such layer.
    """
    if layer is not None and layer not in adata.layers:
        raise DesignError(
            sentence(
                "no such layer",
                where="layer",
                expected=f"one of {sorted(filter(None, adata.layers))}",
                got=repr(layer),
                hint="name the layer with raw counts, or leave it out for X",
            )
        )
    counts = adata.X if layer is None else adata.layers[layer]
    if split is not None:
        counts = counts[split.mask(adata, "train")]
    # Negative or missing counts are the model's to refuse; here they only must not stop the sum.
    x_ng = sparse.csr_matrix(counts, dtype=np.float64)
    np.nan_to_num(x_ng.data, copy=False, posinf=0.0)
    np.maximum(x_ng.data, 0, out=x_ng.data)
    total_n = np.maximum(np.asarray(x_ng.sum(axis=1)).ravel(), 1e-12)
    x_ng = sparse.diags(1e4 / total_n) @ x_ng
    x_ng.data = np.log1p(x_ng.data)
    mean_g = np.asarray(x_ng.mean(axis=0)).ravel()
    variance_g = np.asarray(x_ng.power(2).mean(axis=0)).ravel() - mean_g**2
    kept = np.sort(np.argsort(-variance_g, kind="stable")[:n])
    return adata[:, kept].copy()
