"""Counts on disk: the same numbers as in memory, and streams that keep the source's contract."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from tiny import fit, tiny_adata, tiny_fcr, tiny_schema

import pyro_fcr as pf
from pyro_fcr.data import BatchSource, Design, StoredCounts, StreamSource, open_data, open_source
from pyro_fcr.data import sources as module
from pyro_fcr.errors import FitError, GeneError, LoadError, SchemaError

KINDS = ["h5ad", "h5ad dense", "zarr"]


def write(adata, folder, kind, name="a"):
    adata = adata.copy()
    if "dense" not in kind:
        adata.X = sparse.csr_matrix(adata.X)
    path = folder / f"{name}.{kind.split()[0]}"
    if kind == "zarr":
        pytest.importorskip("zarr")
        # anndata announces new defaults of its writer.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            adata.write_zarr(path)
    else:
        adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def adata():
    return tiny_adata(per_condition=40)


@pytest.fixture(params=KINDS)
def stored(request, adata, tmp_path):
    path = write(adata, tmp_path, request.param)
    return Design.fit_encode(open_data(path), tiny_schema())[1]


def as_array(values):
    return values.toarray() if sparse.issparse(values) else values


def test_rows_are_those_in_memory(stored, adata):
    counts = stored.counts
    assert isinstance(counts, StoredCounts)
    assert counts.shape == adata.shape
    rng = np.random.default_rng(0)
    mask = rng.random(adata.n_obs) < 0.3
    for rows in (slice(None), slice(10, 200), slice(5, 300, 7), mask, rng.permutation(360)[:50],
                 np.array([3, 3, 1]), np.array([359]), np.array([], int)):  # fmt: skip
        found = counts[rows]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(as_array(found), adata.X[rows])
    some = counts.subset(mask).genes(np.array([4, 0]))
    np.testing.assert_array_equal(as_array(some[3:9]), adata.X[mask][3:9][:, [4, 0]])


def test_cells_are_those_in_memory(stored, adata):
    _, cells = Design.fit_encode(adata, tiny_schema())
    assert stored.design == cells.design
    assert stored.is_stored
    for rows in (slice(7, 40), np.array([300, 2, 77])):
        ours, theirs = stored.batch(rows), cells.batch(rows)
        for name in ours.__slots__:
            a, b = getattr(ours, name), getattr(theirs, name)
            assert torch.equal(torch.as_tensor(a), torch.as_tensor(b)), name
    loaded = stored.subset(np.arange(20)).loaded()
    assert not loaded.is_stored
    np.testing.assert_array_equal(as_array(loaded.counts), adata.X[:20])


def test_several_files_are_one_data_set(adata, tmp_path):
    order = np.random.default_rng(1).permutation(adata.n_vars)
    paths = [
        write(adata[:100], tmp_path, "h5ad", "a"),
        write(adata[100:150, order], tmp_path, "h5ad dense", "b"),
        write(adata[150:], tmp_path, "h5ad", "c"),
    ]
    design, cells = Design.fit_encode(open_data(paths), tiny_schema())
    assert list(cells.names) == list(adata.obs_names)
    assert design == Design.fit(adata, tiny_schema())
    rows = np.random.default_rng(2).permutation(360)[:200]
    np.testing.assert_array_equal(as_array(cells.counts[rows]), adata.X[rows])
    np.testing.assert_array_equal(as_array(cells.counts[120:140]), adata.X[120:140])


def test_layers_of_files_are_read(adata, tmp_path):
    normalised = adata.copy()
    normalised.layers["raw"] = sparse.csr_matrix(adata.X)
    normalised.X = adata.X / 3
    normalised.write_h5ad(tmp_path / "a.h5ad")
    _, cells = Design.fit_encode(open_data(tmp_path / "a.h5ad"), tiny_schema(counts="raw"))
    assert cells.is_stored
    np.testing.assert_array_equal(as_array(cells.counts[:]), adata.X)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda adata, folder: folder / "none.h5ad", LoadError, "no such file"),
        (lambda adata, folder: [], SchemaError, "no files"),
        (
            lambda adata, folder: [
                write(adata[:90], folder, "h5ad", "a"),
                write(adata[90:, :5], folder, "h5ad", "b"),
            ],
            GeneError,
            "files of different genes",
        ),
        (
            lambda adata, folder: [write(adata, folder, "h5ad", n) for n in "ab"],
            SchemaError,
            "cell names repeat",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(adata, tmp_path, make, error, said):
    with pytest.raises(error, match=said):
        Design.fit_encode(open_data(make(adata, tmp_path)), tiny_schema())


def test_damaged_and_columnwise_files_are_refused(adata, tmp_path):
    (tmp_path / "a.h5ad").write_bytes(b"damaged")
    with pytest.raises(LoadError, match="cannot be read"):
        open_data(tmp_path / "a.h5ad")
    columns = adata.copy()
    columns.X = sparse.csc_matrix(adata.X)
    columns.write_h5ad(tmp_path / "b.h5ad")
    with pytest.raises(LoadError, match="cannot be read by cells"):
        Design.fit(open_data(tmp_path / "b.h5ad"), tiny_schema())


# ---- streams -------------------------------------------------------------------------------


@pytest.fixture
def _small(monkeypatch):
    # Blocks of 8 cells, windows of 64: five and a half windows of 360 cells.
    monkeypatch.setattr(module, "BLOCK", 8)
    monkeypatch.setattr(module, "WINDOW_VALUES", 64 * 20)


def indices(source, **where):
    return [batch.index.tolist() for batch in source.batches(**where)]


@pytest.mark.usefixtures("_small")
def test_a_stream_keeps_the_contract(stored, adata):
    source = open_source(stored, batch_size=16, seed=3)
    assert isinstance(source, StreamSource)
    assert isinstance(source, BatchSource)
    first = indices(source, epoch=0)
    assert first == indices(StreamSource(stored, batch_size=16, seed=3), epoch=0)
    assert first != indices(source, epoch=1)
    assert first != indices(StreamSource(stored, batch_size=16, seed=4), epoch=0)
    assert sorted(i for batch in first for i in batch) == list(range(360))
    assert {len(batch) for batch in first} <= {15, 16}
    for batch in source.batches(epoch=2):
        np.testing.assert_array_equal(batch.counts.numpy(), adata.X[batch.index.numpy()])
        assert batch.n_cells == 360


@pytest.mark.usefixtures("_small")
def test_a_stream_mixes_far_cells(stored):
    # A minibatch of the file's own order would span 16 cells; blocks of 8 from all over do not.
    batches = indices(StreamSource(stored, batch_size=16), epoch=0)
    assert np.mean([np.ptp(batch) for batch in batches]) > 200
    neighbours = [np.mean(np.diff(np.sort(batch)) == 1) for batch in batches]
    assert np.mean(neighbours) < 0.4


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_an_epoch(stored, world):
    source = StreamSource(stored, batch_size=16, seed=1)
    shares = [indices(source, epoch=0, rank=r, world=world) for r in range(world)]
    assert len({len(share) for share in shares}) == 1
    flat = [{i for batch in share for i in batch} for share in shares]
    assert [len(share) for share in flat] == [360 // world] * world
    assert len(set.union(*flat)) == 360 // world * world


@pytest.mark.usefixtures("_small")
def test_without_shuffling_cells_come_in_order(stored):
    batches = indices(StreamSource(stored, batch_size=50, shuffle=False), epoch=5)
    assert [i for batch in batches for i in batch] == list(range(360))
    assert [len(batch) for batch in batches] == [50] * 7 + [10]
    whole = indices(StreamSource(stored, batch_size=50, drop_last=True), epoch=5)
    assert [len(batch) for batch in whole] == [50] * 7


@pytest.mark.usefixtures("_small")
def test_a_stream_can_be_left_half_way(stored):
    stream = StreamSource(stored, batch_size=16).batches(epoch=0)
    next(stream)
    stream.close()
    with pytest.raises(FitError, match="no minibatch to train on"):
        StreamSource(stored, batch_size=500, drop_last=True)


# ---- a model on files ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("_small")
def test_a_model_of_files_learns_and_answers(adata, tmp_path):
    path = write(adata, tmp_path, "h5ad")
    split = pf.splits.random(adata, test=0.2, seed=0)
    whole, filed = tiny_fcr(adata), tiny_fcr(str(path))
    for name, value in whole._objective.state_dict().items():
        torch.testing.assert_close(filed._objective.state_dict()[name], value)
    a = fit(whole, split=split, max_epochs=20)
    b = fit(filed, split=split, max_epochs=20)
    assert filed.cells.is_stored
    # Another order of cells, the same objective on the same cells.
    assert b["valid.loss"].iloc[-1] == pytest.approx(a["valid.loss"].iloc[-1], rel=0.04)
    again = tiny_fcr(str(path))
    fit(again, split=split, max_epochs=20)
    for name, value in filed._objective.state_dict().items():
        assert torch.equal(again._objective.state_dict()[name], value)
    pd.testing.assert_frame_equal(filed.latents()["z_x"], filed.latents(adata)["z_x"])
    pd.testing.assert_frame_equal(filed.latents(path)["z_x"], filed.latents(adata)["z_x"])
    table, in_memory = filed.evaluate(split=split), filed.evaluate(adata, split)
    pd.testing.assert_frame_equal(table, in_memory)
