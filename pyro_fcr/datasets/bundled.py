"""Data sets that come with the package; their provenance stands beside them in ``files/``."""

from __future__ import annotations

import hashlib
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

import anndata

from pyro_fcr.errors import DesignError, LoadError, sentence

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "bodenmiller",
    "gbm_crispri",
    "jurkat",
    "kang",
    "lincs_p100",
    "mixology",
    "norman",
    "pbmc_3tech",
    "rnamix",
    "thp1",
]

SHA256 = {
    "bodenmiller_cytof": "502441af6c95b42ad40546a6512244763b5e95737720c529d159ed22fdfa18bf",
    "gbm_crispri": "8bd36d601f1073a21bae02b1ab4e451bf1dcae5ae8bff8eee725352378440647",
    "jurkat_tcr_crop": "0bcb3f49599066500d9949344c9402117752dc22954d50423b06b63f2024cdce",
    "kang_ifnb": "e745bd754f1e71ac793273bda405769b86a3ac114632689f03a72f7fcd64a34a",
    "lincs_p100": "512117ed342ad2908619aadae5435d005393e0eb9be077dad5cd97f3483127e6",
    "norman_small": "74d94dfc2328b4937d7343902a438168fd01d7d097b614ad1858e609153cb449",
    "pbmc_3tech": "cf9ad28c93f583f10983f9efb6fa3bf382c2d5330682bd2fbe27c33954a07709",
    "rnamix": "7176e4974069a8b0507824f53a5d31f83e5fa5fa22cee8bbf289d59aa2bf3821",
    "scmix_3line_3protocol": "2ffe7d0632e3661340539043be778f77672293427235998a515d7342c4c8261f",
    "thp1_papalexi": "cc65b5cafc4cb0d2006ef17898f9df821a951cd3a1be866f2b7cf280ba78bf96",
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


def bodenmiller(*, functional: bool = True) -> AnnData:
    """Blood cells under three stimuli and none, by mass cytometry: intensities, not counts.

    Columns of ``obs`` to use: ``treatment`` (``"BCR/FcR-XL"``, ``"PMA/Ionomycin"``,
    ``"vanadate"``; control: ``"reference"``), ``cell_type`` (14 gates). Good for interactions,
    which are strong here, under a Normal likelihood. One well a condition, so that an effect of
    the well passes for one of the stimulus.

    Parameters
    ----------
    functional
        Keep only the 14 phosphorylation sites. The 9 phenotype markers define the cell types:
        they are no response.

    Returns
    -------
    AnnData, 51,936 cells and 14 markers (23 with ``functional=False``), arcsinh intensities in a
    dense ``X``. Licence of the source: CC0.


    Raises
    ------
    LoadError
        If the bundled file is missing or damaged.

    References
    ----------
    Bodenmiller et al. 2012, Nature Biotechnology 30:858.

    Examples
    --------
    >>> bodenmiller().shape
    (51936, 14)
    """
    adata = _bundled("bodenmiller_cytof")
    return _own(adata[:, adata.var["marker_class"] == "functional"]) if functional else adata


def thp1() -> AnnData:
    """Stimulated THP-1 cells with 25 genes knocked out one at a time, in three replicates.

    Columns of ``obs`` to use: ``target`` (control: ``"non-targeting"``), ``guide``, ``batch`` (the
    replicate). Good for effects of graded strength (JAK2, IFNGR1, STAT1 strong; some fourteen
    targets without a trace) and for held-out cells; there is no interaction to be found.

    Returns
    -------
    AnnData, 16,192 cells and 299 genes, integer counts in ``X``. Licence of the source: GPL-3.


    Raises
    ------
    LoadError
        If the bundled file is missing or damaged.

    References
    ----------
    Papalexi et al. 2021, Nature Genetics 53:322 (ECCITE-seq).

    Examples
    --------
    >>> thp1().shape
    (16192, 299)
    """
    return _bundled("thp1_papalexi")


def norman() -> AnnData:
    """K562 cells with 18 genes switched on alone and 15 pairs of genes together.

    Columns of ``obs`` to use: ``treatment`` (``"A+B"`` is a pair; control: ``"control"``). Good
    for combinations of treatments; both genes of a pair were also given alone for five pairs only.

    Returns
    -------
    AnnData, 3,375 cells and 144 genes, integer counts in ``X``. Licence of the source: BSD-3.


    Raises
    ------
    LoadError
        If the bundled file is missing or damaged.

    References
    ----------
    Norman et al. 2019, Science 365:786, as packed by PerturBench.

    Examples
    --------
    >>> norman().shape
    (3375, 144)
    """
    return _bundled("norman_small")


def lincs_p100(*, core: bool = True) -> AnnData:
    """Phosphorylation in six cell lines after 84 drugs: bulk log2 ratios, not cells, not counts.

    Columns of ``obs`` to use: ``treatment`` (control: ``"DMSO"``), ``cell_line``, ``dose``,
    ``plate``. Good for unseen combinations in a full factorial, under a Normal likelihood. A plate
    holds one line, and the line's own level is normalised away.

    Parameters
    ----------
    core
        Keep only the full factorial: 6 lines, 85 treatments, one dose each, 3 h, mostly three
        replicates.

    Returns
    -------
    AnnData, 1,702 samples (2,310 with ``core=False``) and 96 phosphopeptides in a dense ``X``.
    Licence of the source: MIT.


    Raises
    ------
    LoadError
        If the bundled file is missing or damaged.

    References
    ----------
    Litichevskiy et al. 2018, Cell Systems 6:424.

    Examples
    --------
    >>> lincs_p100().shape
    (1702, 96)
    """
    adata = _bundled("lincs_p100")
    return _own(adata[adata.obs["core6"]]) if core else adata


def mixology() -> AnnData:
    """Three lung cancer lines sequenced by three protocols, the line of every cell known.

    Columns of ``obs`` to use: ``cell_line``, ``batch`` (``"10x"``, ``"CEL-seq2"``,
    ``"Drop-seq"``). Good for integration: what should stay together is known from the cells'
    variants.

    Returns
    -------
    AnnData, 1,345 cells and 889 genes, integer counts in ``X``. Licence of the sources: MIT.


    Raises
    ------
    LoadError
        If the bundled file is missing or damaged.

    References
    ----------
    Tian et al. 2019, Nature Methods 16:479 (GSE118767).

    Examples
    --------
    >>> mixology().shape
    (1345, 889)
    """
    return _bundled("scmix_3line_3protocol")


def rnamix() -> AnnData:
    """RNA of three cell lines in known proportions and amounts, by two protocols.

    Columns of ``obs`` to use: ``H2228_prop``, ``H1975_prop``, ``HCC827_prop`` (seven mixtures, by
    label in ``mixture``), ``mRNA_amount`` (3.75 to 30 pg), ``batch`` (``"CEL-seq2"``,
    ``"SORT-seq"``). Good for disentanglement: real data whose continuous factors are known.

    Returns
    -------
    AnnData, 636 pseudo-cells and 13,880 genes, integer counts in ``X``. Licence of the source:
    MIT.


    Raises
    ------
    LoadError
        If the bundled file is missing or damaged.

    References
    ----------
    Tian et al. 2019, Nature Methods 16:479.

    Examples
    --------
    >>> rnamix().shape
    (636, 13880)
    """
    return _bundled("rnamix")


def pbmc_3tech() -> AnnData:
    """Blood cells by three chemistries, with nine cell types.

    Columns of ``obs`` to use: ``batch`` (``"3pv1"``, ``"3pv2"``, ``"5p"``), ``cell_type``,
    ``cell_type_broad``. Good for integration with a batch effect that is hard to remove; each
    chemistry is another donor.

    Returns
    -------
    AnnData, 1,500 cells and 1,260 genes, integer counts in ``X``. Licence of the source: GPL-3 or
    later, the 10x data CC BY 4.0.


    Raises
    ------
    LoadError
        If the bundled file is missing or damaged.

    References
    ----------
    10x Genomics, as packed by symphony (Kang et al. 2021, Nature Communications 12:5890).

    Examples
    --------
    >>> pbmc_3tech().shape
    (1500, 1260)
    """
    return _bundled("pbmc_3tech")


def jurkat() -> AnnData:
    """Jurkat cells with 20 genes knocked out one at a time, stimulated or not.

    Columns of ``obs`` to use: ``target`` (control: ``"control"``), ``guide``, ``context``
    (``"stimulated"``, ``"unstimulated"``). Good for very sparse counts (85 a cell): stimulation is
    found, the knock-outs hardly.

    Returns
    -------
    AnnData, 7,500 cells and 2,000 genes, integer counts in ``X``. Licence of the source: MIT.


    Raises
    ------
    LoadError
        If the bundled file is missing or damaged.

    References
    ----------
    Datlinger et al. 2021, Nature Methods 18:635 (scifi-RNA-seq), as packed by scPerturb.

    Examples
    --------
    >>> jurkat().shape
    (7500, 2000)
    """
    return _bundled("jurkat_tcr_crop")


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
