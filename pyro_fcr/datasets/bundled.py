"""Data sets that come with the package; their provenance stands beside them in ``files/``."""

from __future__ import annotations

import hashlib
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

import anndata

from pyro_fcr.errors import DesignError, LoadError, sentence

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["gbm_crispri", "kang"]

SHA256 = {
    "gbm_crispri": "8bd36d601f1073a21bae02b1ab4e451bf1dcae5ae8bff8eee725352378440647",
    "kang_ifnb": "e745bd754f1e71ac793273bda405769b86a3ac114632689f03a72f7fcd64a34a",
}

LICENSED_LABELS = ("muscat_kang_se", "distinct")
"""The sources of cell types that agree with one another and come under a licence."""


def kang(*, strict: bool = False, common: bool = True, min_cells: int = 20) -> AnnData:
    """Blood cells of eight donors, untreated or under interferon beta.

    Columns of ``obs`` to use: ``condition`` (``"ctrl"``, ``"stim"``), ``cell_type``, ``donor``.

    Parameters
    ----------
    strict
        Keep only the cells whose type comes from one of the two label sources that never
        disagree (``label_source`` in ``muscat_kang_se``, ``distinct``).
    common
        Keep only the cell types with at least ``min_cells`` cells in each condition.
    min_cells
        How many that is.

    Returns
    -------
    AnnData with 9,015 genes and integer counts in ``X``; 1,679 cells with ``common=False``.

    Raises
    ------
    LoadError
        If the bundled file is missing or damaged.
    DesignError
        If no cell type has ``min_cells`` cells in each condition.

    References
    ----------
    Kang et al. 2018, Nature Biotechnology 36:89 (GSE96583).

    Examples
    --------
    >>> adata = kang()
    >>> sorted(adata.obs["condition"].unique())
    ['ctrl', 'stim']
    """
    adata = _bundled("kang_ifnb")
    if strict:
        adata = adata[adata.obs["label_source"].isin(LICENSED_LABELS)]
    if common:
        sizes = adata.obs.groupby(["cell_type", "condition"], observed=False).size().unstack()
        smallest = sizes.min(axis=1)
        kept = smallest.index[smallest >= min_cells]
        if not len(kept):
            raise DesignError(
                sentence(
                    "no cell type is common enough",
                    where="kang(min_cells=)",
                    expected=f"at most {int(smallest.max())}",
                    got=str(min_cells),
                    hint="ask for fewer cells",
                )
            )
        adata = adata[adata.obs["cell_type"].isin(kept)]
    return _own(adata)


def gbm_crispri() -> AnnData:
    """Three glioblastoma lines with nine genes knocked down one at a time.

    Columns of ``obs`` to use: ``treatment`` (control: ``"control"``), ``cell_line``. The
    knockdowns leave next to no trace: use it to see what is found where nothing is.

    Returns
    -------
    AnnData, 2,586 cells and 386 genes, integer counts in ``X``.

    Raises
    ------
    LoadError
        If the bundled file is missing or damaged.

    References
    ----------
    McFaline-Figueroa et al. 2024 (sci-Plex-GxE), as packed by PerturBench.

    Examples
    --------
    >>> gbm_crispri().shape
    (2586, 386)
    """
    return _bundled("gbm_crispri")


def _bundled(name: str) -> AnnData:
    resource = files("pyro_fcr.datasets") / "files" / f"{name}.h5ad"
    if not resource.is_file():
        raise LoadError(
            sentence(
                f"bundled file {name}.h5ad is missing",
                where="pyro_fcr/datasets/files",
                expected="it beside the package's code",
                got="no such file",
                hint="install the package again",
            )
        )
    got = hashlib.sha256(resource.read_bytes()).hexdigest()
    if got != SHA256[name]:
        raise LoadError(
            sentence(
                f"bundled file {name}.h5ad is damaged",
                where="pyro_fcr/datasets/files",
                expected=f"sha256 {SHA256[name]}",
                got=got,
                hint="install the package again",
            )
        )
    with as_file(resource) as path:
        return anndata.read_h5ad(path)


def _own(adata: AnnData) -> AnnData:
    """Return a view's cells as data of their own, without the categories they lost."""
    whole = adata.copy()
    for name in whole.obs.columns:
        if hasattr(whole.obs[name], "cat"):
            whole.obs[name] = whole.obs[name].cat.remove_unused_categories()
    return whole
