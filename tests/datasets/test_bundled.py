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
