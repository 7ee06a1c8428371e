import hashlib
from pathlib import Path

import numpy as np
import pytest

from pyro_fcr import datasets
from pyro_fcr.datasets import bundled
from pyro_fcr.errors import DesignError, LoadError


def whole(adata):
    return bool((adata.X.data == np.rint(adata.X.data)).all())


def test_kang_common_types():
    adata = datasets.kang()
    # 1,679 less Megakaryocytes (14), Erythroid (1) and activated T cells (17).
    assert adata.shape == (1647, 9015)
    assert whole(adata)
    assert not adata.is_view
    types = adata.obs["cell_type"]
    assert len(types.cat.categories) == types.nunique() == 7
    assert not types.isin(["Megakaryocytes", "Erythroid", "T cells (activated)"]).any()
    assert adata.obs.groupby(["cell_type", "condition"], observed=True).size().min() >= 20


def test_kang_strict():
    adata = datasets.kang(strict=True, common=False)
    # 954 cells labelled by muscat and 353 by distinct.
    assert adata.n_obs == 954 + 353
    assert set(adata.obs["label_source"]) == {"muscat_kang_se", "distinct"}


def test_kang_everything():
    assert datasets.kang(common=False).shape == (1679, 9015)


def test_kang_min_cells():
    assert set(datasets.kang(min_cells=150).obs["cell_type"]) == {"CD4 T cells", "CD14+ Monocytes"}
    with pytest.raises(DesignError, match="no cell type is common enough.*at most 256, got 257"):
        datasets.kang(min_cells=257)


def test_gbm_crispri():
    adata = datasets.gbm_crispri()
    assert adata.shape == (2586, 386)
    assert whole(adata)
    assert adata.obs["treatment"].nunique() == 10
    assert (adata.obs["treatment"] == "control").sum() == 300
    assert set(adata.obs["cell_line"]) == {"A172", "T98G", "U87MG"}


def test_bodenmiller():
    adata = datasets.bodenmiller()
    assert adata.shape == (51_936, 14)
    assert set(adata.var["marker_class"]) == {"functional"}
    conditions = adata.obs.groupby(["cell_type", "treatment"], observed=True).size()
    assert len(conditions) == 14 * 4
    assert (adata.obs["treatment"] == "reference").sum() == 15_792
    assert not adata.is_view
    everything = datasets.bodenmiller(functional=False)
    assert everything.shape == (51_936, 9 + 14)
    # BCR/FcR-XL phosphorylates Plcg2 in B cells, hardly in CD8 T cells.
    shift = {}
    for kind in ("igm+", "cd8+"):
        of_kind = adata[adata.obs["cell_type"] == kind, "pPlcg2"]
        stimulated = (of_kind.obs["treatment"] == "BCR/FcR-XL").to_numpy()
        resting = (of_kind.obs["treatment"] == "reference").to_numpy()
        shift[kind] = of_kind.X[stimulated].mean() - of_kind.X[resting].mean()
    assert shift["igm+"] > 5 * abs(shift["cd8+"])


def test_thp1():
    adata = datasets.thp1()
    assert adata.shape == (16_192, 299)
    assert whole(adata)
    assert adata.obs["target"].nunique() == 25 + 1
    assert (adata.obs["target"] == "non-targeting").sum() == 1923
    assert adata.obs["batch"].nunique() == 3


def test_norman():
    adata = datasets.norman()
    assert adata.shape == (3375, 144)
    assert whole(adata)
    labels = set(adata.obs["treatment"])
    pairs = {label for label in labels if "+" in label}
    assert len(pairs) == 15
    assert len(labels - pairs - {"control"}) == 18
    assert sum(set(pair.split("+")) <= labels for pair in pairs) == 5


def test_lincs_p100():
    adata = datasets.lincs_p100()
    assert adata.shape == (1702, 96)
    assert np.isfinite(adata.X).all()
    factorial = adata.obs.groupby(["cell_line", "treatment"], observed=True).size()
    assert len(factorial) == 6 * 85
    assert factorial.min() >= 2
    assert len(adata.obs["treatment"].cat.categories) == 85
    assert datasets.lincs_p100(core=False).shape == (2310, 96)


def test_mixology():
    adata = datasets.mixology()
    assert adata.shape == (1345, 889)
    assert whole(adata)
    assert adata.obs["batch"].value_counts().to_dict() == {
        "10x": 895, "CEL-seq2": 240, "Drop-seq": 210,
    }  # fmt: skip
    assert set(adata.obs["cell_line"]) == {"H1975", "H2228", "HCC827"}


def test_rnamix():
    adata = datasets.rnamix()
    assert adata.shape == (636, 13_880)
    assert whole(adata)
    proportions = adata.obs[["H2228_prop", "H1975_prop", "HCC827_prop"]].to_numpy()
    np.testing.assert_allclose(proportions.sum(1), 1, atol=0.011)
    assert len(np.unique(proportions, axis=0)) == adata.obs["mixture"].nunique() == 7
    assert set(adata.obs["mRNA_amount"]) == {3.75, 7.5, 15, 30}
    assert adata.obs["batch"].value_counts().to_dict() == {"CEL-seq2": 340, "SORT-seq": 296}


def test_pbmc_3tech():
    adata = datasets.pbmc_3tech()
    assert adata.shape == (1500, 1260)
    assert whole(adata)
    assert set(adata.obs["batch"]) == {"3pv1", "3pv2", "5p"}
    assert adata.obs["cell_type"].nunique() == 9


def test_jurkat():
    adata = datasets.jurkat()
    assert adata.shape == (7500, 2000)
    assert whole(adata)
    assert adata.obs["target"].nunique() == 20 + 1
    assert set(adata.obs["context"]) == {"stimulated", "unstimulated"}


@pytest.mark.parametrize("name", bundled.SHA256)
def test_provenance_stands_beside_the_file(name):
    folder = Path(bundled.__file__).parent / "files"
    got = hashlib.sha256((folder / f"{name}.h5ad").read_bytes()).hexdigest()
    assert got in (folder / f"{name}.md").read_text()


def test_a_damaged_or_missing_file_is_refused(monkeypatch):
    monkeypatch.setitem(bundled.SHA256, "gbm_crispri", "0" * 64)
    with pytest.raises(LoadError, match="gbm_crispri.h5ad is damaged.*sha256 0000"):
        datasets.gbm_crispri()
    with pytest.raises(LoadError, match="other.h5ad is missing"):
        bundled._bundled("other")
