"""Results on disk are those in memory, and a file is there only when it is whole."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from tiny import fit, tiny_adata, tiny_fcr

from pyro_fcr.errors import DesignError
from pyro_fcr.io import cells_file


@pytest.fixture(scope="module")
def fitted():
    fcr = tiny_fcr(tiny_adata())
    fit(fcr)
    return fcr


def read(path):
    if path.suffix == ".h5ad":
        return ad.read_h5ad(path)
    pytest.importorskip("zarr")
    return ad.read_zarr(path)


@pytest.mark.parametrize("kind", [".h5ad", ".zarr"])
def test_latents_and_counterfactuals_stream_to_disk(fitted, tmp_path, kind, monkeypatch):
    if kind == ".zarr":
        pytest.importorskip("zarr")
    monkeypatch.setattr("pyro_fcr.fitted.CHUNK", 50)
    path = fitted.latents(out=tmp_path / f"z{kind}")
    found, expected = read(path), fitted.latents()
    assert list(found.obs_names) == list(fitted.cells.names)
    for name, frame in expected.items():
        np.testing.assert_allclose(found.obsm[f"X_{name}"], frame.to_numpy(), rtol=1e-6)

    monkeypatch.setattr("pyro_fcr.analysis.expression.DRAWN_VALUES", 50 * 3 * 20)
    options = {"do": {"treatment": "A"}, "draws": 3, "seed": 4}
    for _ in range(2):  # the second replaces the first
        path = fitted.counterfactual(out=str(tmp_path / f"cf{kind}"), **options)
    found, expected = read(path), fitted.counterfactual(**options)
    np.testing.assert_array_equal(found.X, expected.X)
    for name in ("sd", "q05", "q95"):
        np.testing.assert_array_equal(found.layers[name], expected.layers[name])
    pd.testing.assert_frame_equal(
        found.obs.astype(str), expected.obs.astype(str), check_index_type=False
    )
    assert list(found.var_names) == list(expected.var_names)
    assert found.uns["counterfactual"]["do"] == {"treatment": "A"}
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"cf{kind}", f"z{kind}"]


def test_what_breaks_off_leaves_no_file(tmp_path):
    obs = pd.DataFrame(index=list("abc"))
    with pytest.raises(ZeroDivisionError), cells_file(tmp_path / "a.h5ad", obs, shapes={"X": 2}):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    with pytest.raises(DesignError, match="unknown kind of file"), cells_file(
        tmp_path / "a.csv", obs, shapes={}
    ):  # fmt: skip
        pass
