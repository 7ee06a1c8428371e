from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from tiny import tiny_cells

from pyro_fcr.data import BatchSource, Design, MemorySource, ResidentSource, Schema
from pyro_fcr.errors import FitError

COUNTS = np.arange(1, 61, dtype="float32").reshape(20, 3)
DTYPES = {
    "counts": torch.float32, "library": torch.float32, "treatment": torch.float32,
    "treatment_id": torch.int64, "dose": torch.float32, "covariates": torch.int64,
    "covariate_id": torch.int64, "batch": torch.int64, "index": torch.int64,
}  # fmt: skip


def encode(kind):
    obs = pd.DataFrame(
        {"drug": ["none", "A"] * 10, "line": ["u"] * 10 + ["v"] * 10, "dose": [0, 2.5] * 10},
        index=[f"c{i}" for i in range(20)],
    )
    adata = ad.AnnData(kind(COUNTS), obs=obs)
    schema = Schema(treatment="drug", control="none", covariates="line", dose="dose")
    return Design.fit(adata, schema).encode(adata)


@pytest.fixture(params=[np.array, sparse.csr_matrix], ids=["dense", "sparse"])
def cells(request):
    return encode(request.param)


def test_a_batch_holds_the_chosen_cells_in_order(cells):
    batch = cells.batch([3, 10, 0], n_cells=99)
    for name, dtype in DTYPES.items():
        assert getattr(batch, name).dtype == dtype, name
    np.testing.assert_array_equal(batch.counts, COUNTS[[3, 10, 0]])
    assert batch.library.tolist() == [10 + 11 + 12, 31 + 32 + 33, 1 + 2 + 3]
    assert batch.treatment.tolist() == [[2.5], [0], [0]]
    assert batch.treatment_id.tolist() == [1, 0, 0]
    assert batch.dose.tolist() == [2.5, 0, 0]
    assert batch.covariates.tolist() == [[0], [1], [0]]
    assert batch.covariate_id.tolist() == [0, 1, 0]
    assert batch.index.tolist() == [3, 10, 0]
    assert batch.n_cells == 99


@pytest.mark.parametrize(
    "rows",
    [slice(4, 9, 2), [4, 6, 8], np.isin(np.arange(20), [4, 6, 8]), torch.tensor([4, 6, 8]),
     [-16, -14, -12]],
)  # fmt: skip
def test_rows_are_chosen_by_slice_position_or_mask(cells, rows):
    batch, subset = cells.batch(rows), cells.subset(rows)
    np.testing.assert_array_equal(batch.counts, COUNTS[[4, 6, 8]])
    assert batch.index.tolist() == [4, 6, 8]
    assert batch.n_cells == 20
    assert list(subset.names) == ["c4", "c6", "c8"]
    np.testing.assert_array_equal(subset.batch().counts, COUNTS[[4, 6, 8]])
    assert subset.batch().index.tolist() == [0, 1, 2]
    assert subset.batch().n_cells == len(subset) == 3


def test_a_mask_of_another_length_is_refused(cells):
    with pytest.raises(IndexError, match="20 cells"):
        cells.batch(np.ones(19, bool))


def test_a_batch_is_a_copy(cells):
    cells.batch(slice(0, 4)).counts.zero_()
    np.testing.assert_array_equal(cells.batch().counts, COUNTS)


def test_an_empty_subset(cells):
    empty = cells.subset([])
    assert len(empty) == 0
    assert empty.batch().counts.shape == (0, 3)


def test_obs_gives_the_labels_back(cells):
    obs = cells.subset([3, 10]).obs()
    assert list(obs.index) == ["c3", "c10"]
    assert obs.astype(object).to_dict("list") == {
        "drug": ["A", "none"], "dose": [2.5, 0.0], "line": ["u", "v"],
    }  # fmt: skip


# ---- sources -----------------------------------------------------------------------------


def indices(source, **where):
    return [batch.index.tolist() for batch in source.batches(**where)]


def test_memory_source_is_a_batch_source(cells):
    source = MemorySource(cells, batch_size=6)
    assert isinstance(source, BatchSource)
    assert source.n_cells == 20
    assert all(batch.n_cells == 20 for batch in source.batches(epoch=0))


def test_shuffled_batches_are_even_and_a_function_of_seed_and_epoch(cells):
    source = MemorySource(cells, batch_size=6, seed=1)
    first = indices(source, epoch=0)
    assert [len(rows) for rows in first] == [5, 5, 5, 5]
    assert sorted(sum(first, [])) == list(range(20))
    assert indices(source, epoch=0) == first
    assert indices(MemorySource(cells, batch_size=6, seed=1), epoch=0) == first
    assert indices(source, epoch=1) != first
    assert indices(MemorySource(cells, batch_size=6, seed=2), epoch=0) != first


def test_a_global_seed_is_neither_read_nor_moved(cells):
    source = MemorySource(cells, batch_size=6)
    torch.manual_seed(0)
    first = indices(source, epoch=0)
    before = torch.get_rng_state()
    assert indices(source, epoch=0) == first
    assert torch.equal(torch.get_rng_state(), before)


def test_in_order_the_last_batch_is_short(cells):
    source = MemorySource(cells, batch_size=8, shuffle=False)
    assert indices(source, epoch=3) == [
        list(range(8)), list(range(8, 16)), list(range(16, 20)),
    ]  # fmt: skip


@pytest.mark.parametrize("shuffle", [True, False])
def test_drop_last_leaves_only_whole_batches(cells, shuffle):
    source = MemorySource(cells, batch_size=8, shuffle=shuffle, drop_last=True)
    assert [len(rows) for rows in indices(source, epoch=0)] == [8, 8]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_ranks_get_disjoint_equal_shares(cells, world, shuffle):
    source = MemorySource(cells, batch_size=4, shuffle=shuffle)
    shares = [indices(source, epoch=2, rank=rank, world=world) for rank in range(world)]
    assert len({tuple(len(rows) for rows in share) for share in shares}) == 1
    every = [row for share in shares for rows in share for row in rows]
    assert len(every) == len(set(every)) == 20 - 20 % world


@pytest.mark.parametrize(
    ("options", "where", "match"),
    [
        ({"batch_size": 0}, {}, "unusable batch size"),
        ({"batch_size": 21, "drop_last": True}, {}, "at least 21 cells.*got 20"),
        ({"batch_size": 5}, {"rank": 2, "world": 2}, "a rank from 0 to 1, got 2"),
        ({"batch_size": 5}, {"rank": 0, "world": 21}, "each of 21 processes, got 0"),
    ],
)
def test_unusable_sources_are_refused(cells, options, where, match):
    with pytest.raises(FitError, match=match):
        MemorySource(cells, **options).batches(epoch=0, **where)


def test_a_source_without_cells_is_refused(cells):
    with pytest.raises(FitError, match="no minibatch to train on"):
        MemorySource(cells.subset([]), batch_size=5)


@pytest.mark.parametrize("form", [sparse.csr_matrix, np.asarray])
def test_cells_on_a_device_make_the_same_minibatches(form):
    cells = tiny_cells()
    cells = replace(cells, counts=form(cells.counts))
    options = {"batch_size": 50, "seed": 2}
    held = ResidentSource(cells, device=torch.device("cpu"), **options)
    for where in ({"epoch": 0}, {"epoch": 3, "rank": 1, "world": 2}):
        pairs = zip(
            held.batches(**where), MemorySource(cells, **options).batches(**where), strict=True
        )
        for ours, theirs in pairs:
            for name in ours.__slots__:
                a, b = getattr(ours, name), getattr(theirs, name)
                assert torch.equal(torch.as_tensor(a), torch.as_tensor(b)), name
