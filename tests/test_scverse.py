"""What other packages of the field hand over is accepted, and what we write they can read."""

from __future__ import annotations

import anndata as ad
import h5py
import numpy as np
import pytest
from tiny import fit, tiny_adata, tiny_fcr

PLAIN = {"array", "csr_matrix", "csc_matrix", "dataframe", "dict", "categorical", "string",
         "string-array", "numeric-scalar", "anndata"}  # fmt: skip


@pytest.fixture(scope="module")
def fitted():
    fcr = tiny_fcr(tiny_adata())
    fit(fcr)
    return fcr


def strange(path) -> list[str]:
    """Name what a reader of HDF5 without Python could not read."""
    found = []

    def visit(name, item) -> None:
        if item.attrs.get("encoding-type", "dict") not in PLAIN:
            found.append(f"{name}: {item.attrs['encoding-type']}")
        if isinstance(item, h5py.Dataset):
            text = h5py.check_string_dtype(item.dtype) is not None
            if not text and item.dtype.kind not in "fiub":
                found.append(f"{name}: {item.dtype}")

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def test_written_files_hold_plain_types_alone(fitted, tmp_path) -> None:
    adata = tiny_adata()
    fitted.latents(adata, key_added="fcr")
    adata.write_h5ad(tmp_path / "latents.h5ad")
    made = fitted.counterfactual(adata, do={"treatment": "A"}, draws=2)
    made.write_h5ad(tmp_path / "cf.h5ad")
    fitted.counterfactual(adata, do={"treatment": "A"}, draws=2, out=tmp_path / "streamed.h5ad")
    # Whatever anndata makes of the names of any data: with pandas 3 they are nullable strings.
    tiny_adata().write_h5ad(tmp_path / "own.h5ad")
    kinds = {told.split(": ")[1] for told in strange(tmp_path / "own.h5ad")}
    for path in tmp_path.iterdir():
        assert not [t for t in strange(path) if t.split(": ")[1] not in kinds], path.name


def test_data_set_up_for_scvi_tools_are_accepted(fitted) -> None:
    adata = tiny_adata()
    adata.uns |= {"_scvi_uuid": "an-id", "_scvi_manager_uuid": "another"}
    adata.obs["_scvi_batch"] = np.zeros(adata.n_obs, np.int64)
    adata.obs["_scvi_labels"] = np.zeros(adata.n_obs, np.int64)
    before = dict(adata.uns)
    frames = fitted.latents(adata, key_added="fcr")
    assert adata.uns == before
    assert set(adata.obsm) == {f"X_fcr_{name}" for name in frames}


@pytest.mark.slow
def test_scanpy_finds_neighbours_in_the_latents(fitted) -> None:
    sc = pytest.importorskip("scanpy")
    adata = tiny_adata()
    fitted.latents(adata, key_added="fcr")
    sc.pp.neighbors(adata, use_rep="X_fcr_z_x", n_neighbors=5)
    assert adata.obsp["distances"].shape == (adata.n_obs, adata.n_obs)
    # The nearest by scanpy are the nearest by distance in the block.
    z = adata.obsm["X_fcr_z_x"]
    exact = np.linalg.norm(z[0] - z, axis=1)
    row = adata.obsp["distances"][0].toarray().ravel()
    np.testing.assert_allclose(row[row > 0], exact[row > 0], rtol=1e-4)


@pytest.mark.slow
def test_pertpy_measures_distances_of_counterfactuals(fitted) -> None:
    pertpy = pytest.importorskip("pertpy", exc_type=ImportError)
    adata = tiny_adata()
    control = adata[adata.obs["drug"] == "ctrl"].copy()
    made = fitted.counterfactual(control, do={"treatment": "A"}, draws=5)
    control.obs["what"], made.obs["what"] = "control", "counterfactual"
    both = ad.concat([control, made], join="inner", index_unique="-")
    distance = pertpy.tools.Distance("euclidean", layer_key="counts")
    both.layers["counts"] = both.X.copy()
    table = distance.pairwise(both, groupby="what", show_progressbar=False)
    by_hand = np.linalg.norm(control.X.mean(0) - made.X.mean(0))
    assert by_hand > 0
    assert table.loc["control", "counterfactual"] == pytest.approx(by_hand, rel=1e-4)
    # The energy distance in a block, as pertpy's tutorials ask for it.
    frames = fitted.latents(adata, key_added="fcr")
    adata.obs["drug"] = adata.obs["drug"].astype(str)
    energy = pertpy.tools.Distance("edistance", obsm_key="X_fcr_z_t")
    found = energy.onesided_distances(
        adata, groupby="drug", selected_group="ctrl", show_progressbar=False
    )
    assert set(found.index) == {"ctrl", "A", "B"}
    assert np.isfinite(found).all()
    assert frames["z_t"].shape[0] == adata.n_obs
