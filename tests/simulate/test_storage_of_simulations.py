import anndata as ad
import numpy as np
import pytest

from pyro_fcr import simulate
from pyro_fcr.errors import DesignError, SchemaError
from pyro_fcr.simulate import observation


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
@pytest.mark.parametrize("variant", ["batch", "gaussian"])
def test_the_same_cells_on_disk_as_in_memory(suffix, variant, tmp_path, monkeypatch):
    options = {"n_per_condition": 7, "n_genes": 20, "seed": 4}
    monkeypatch.setattr(observation, "CELLS_PER_CHUNK", 100)
    kept = simulate.factorised(variant, **options)
    path = tmp_path / f"cells.{suffix}"
    stored = simulate.factorised(variant, path=path, **options)
    again = ad.read_h5ad(path) if suffix == "h5ad" else ad.read_zarr(path)
    for other in (stored.to_memory(), again):
        assert other.shape == kept.shape
        assert list(other.obs.columns) == list(kept.obs.columns)
        one, two = (x.X if isinstance(x.X, np.ndarray) else x.X.toarray() for x in (other, kept))
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(other.obsm["z_tx"], kept.obsm["z_tx"])
        assert other.uns["simulation"]["rank"]["holds"]
    if stored.isbacked and stored.file.is_open:
        stored.file.close()


def test_never_more_than_a_chunk_of_counts_in_memory(tmp_path, monkeypatch):
    # Chunks are taken one at a time: the next is only drawn once the last is written.
    drawn, written = [], []
    observe, fill = observation.sp.csr_matrix, observation.ad.io.sparse_dataset
    monkeypatch.setattr(observation, "CELLS_PER_CHUNK", 50)
    monkeypatch.setattr(
        observation.sp, "csr_matrix", lambda x: (drawn.append(len(written)), observe(x))[1]
    )
    monkeypatch.setattr(
        observation.ad.io, "sparse_dataset", lambda x: (written.append(1), fill(x))[1]
    )
    adata = simulate.factorised(n_per_condition=5, n_genes=10, path=tmp_path / "a.h5ad")
    adata.file.close()
    assert drawn[:5] == [0, 0, 1, 2, 3]


def test_a_path_that_will_not_do(tmp_path):
    (tmp_path / "there.h5ad").touch()
    for name in ("there.h5ad", "cells.csv"):
        with pytest.raises(SchemaError, match="a new \\*.h5ad file"):
            simulate.factorised(n_per_condition=1, n_genes=5, path=tmp_path / name)


@pytest.mark.parametrize(
    "variant", ["batch", "additive", "fixed_variance", "selection", "correlated", "null"]
)
def test_strength_runs_from_base_to_the_whole_violation(variant):
    def prior(strength):
        adata = simulate.factorised(
            variant, n_per_condition=1, n_genes=5, strength=strength, seed=6
        )
        told = adata.uns["simulation"]
        values = [
            told["prior"][b][k].ravel() for b in ("z_x", "z_t", "z_tx") for k in told["prior"][b]
        ]
        offset = told["mixing"].get("batch_offset", np.zeros(1)).ravel()
        return np.concatenate([*values, offset, [told["correlation"]]])

    base = simulate.factorised(n_per_condition=1, n_genes=5, seed=6).uns["simulation"]["prior"]
    nothing = np.concatenate([base[b][k].ravel() for b in ("z_x", "z_t", "z_tx") for k in base[b]])
    none, half, full = prior(0.0), prior(0.5), prior(1.0)
    assert none[: len(nothing)] == pytest.approx(nothing, abs=1e-12)
    assert none[len(nothing) :] == pytest.approx(0)
    moved = np.abs(half - none).sum(), np.abs(full - none).sum()
    assert 0 < moved[0] < moved[1]


def test_graded_additive_interactions_shrink_linearly_in_natural_parameters():
    def contrasts(strength):
        told = simulate.factorised(
            "V1", n_per_condition=1, n_genes=5, strength=strength, seed=1
        ).uns["simulation"]["prior"]["z_tx"]
        eta = np.concatenate([told["loc"] / told["scale"] ** 2, -0.5 / told["scale"] ** 2], -1)
        return eta - eta[:1] - eta[:, :1] + eta[:1, :1]

    assert contrasts(0.7) == pytest.approx(0.3 * contrasts(0.0), abs=1e-9)


def test_strength_where_there_is_nothing_to_grade():
    for variant, strength in (("base", 0.5), ("null", 1.5)):
        with pytest.raises(DesignError, match="strength"):
            simulate.factorised(variant, strength=strength)
