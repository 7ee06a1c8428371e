"""annbatch reads a stream's minibatches, where it is installed (Python 3.12)."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from pyro_fcr.data import BatchSource, Design, Schema, StreamSource, open_data, open_source
from pyro_fcr.data import sources as module

pytest.importorskip("annbatch")
zarr = pytest.importorskip("zarr")
# Of packages newer than those the suite is pinned to.
pytestmark = pytest.mark.filterwarnings("ignore")

N, G = 360, 20


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 8)
    monkeypatch.setattr(module, "WINDOW_VALUES", 64 * G)


@pytest.fixture
def counts():
    return np.random.default_rng(0).poisson(0.5, (N, G)).astype(np.float32) + np.eye(N, G, k=0)


def store(counts, folder, cells_per_chunk):
    """Write a Zarr store whose chunks hold so many cells."""
    obs = pd.DataFrame({"drug": ["none", "A"] * (N // 2)}, index=[f"c{i}" for i in range(N)])
    adata = ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs)
    adata.var_names = [f"g{j}" for j in range(G)]
    size = adata.X.nnz * cells_per_chunk // N

    def small(write, group, key, element, dataset_kwargs, **_):
        arrays = isinstance(element, sparse.csr_matrix)
        write(group, key, element, dataset_kwargs={"chunks": (size,)} if arrays else {})

    ad.experimental.write_dispatched(zarr.open_group(str(folder / "a.zarr"), mode="w"), "/",
                                     adata, small)  # fmt: skip
    data = open_data(folder / "a.zarr")
    return Design.fit(data, Schema(treatment="drug", control="none")).encode(data)


@pytest.mark.parametrize("options", [{}, {"drop_last": True}, {"shuffle": False}])
@pytest.mark.parametrize("where", [{"epoch": 0}, {"epoch": 1, "rank": 1, "world": 3}])
def test_the_minibatches_are_a_streams(counts, tmp_path, options, where):
    cells = store(counts, tmp_path, 4).subset(np.arange(N)[::-1][: N - 60])
    source = open_source(cells, batch_size=16, seed=3, **options)
    assert type(source).__name__ == "AnnbatchSource"
    assert isinstance(source, BatchSource)
    plain = StreamSource(cells, batch_size=16, seed=3, **options)
    for ours, theirs in zip(source.batches(**where), plain.batches(**where), strict=True):
        assert ours.index.tolist() == theirs.index.tolist()
        np.testing.assert_array_equal(ours.counts, theirs.counts)
        names = [int(cells.names[i][1:]) for i in ours.index.tolist()]
        np.testing.assert_array_equal(ours.counts, counts[names])


def test_large_chunks_are_left_to_the_stream(counts, tmp_path):
    assert type(open_source(store(counts, tmp_path, 100), batch_size=16)) is StreamSource


def test_a_stream_can_be_left_half_way(counts, tmp_path):
    stream = open_source(store(counts, tmp_path, 4), batch_size=16).batches(epoch=0)
    next(stream)
    stream.close()
