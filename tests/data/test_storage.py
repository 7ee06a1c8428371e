"""However the counts are stored, the same ones arrive, and the AnnData stays as it was."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from pyro_fcr.data import Design, Schema, StoredCounts, count_matrix
from pyro_fcr.errors import CountsError

SCHEMA = Schema(treatment="drug", control="none", covariates="line")
N, G = 40, 7
COUNTS = np.random.default_rng(0).poisson(0.5, (N, G))
COUNTS[:, 2] += 1


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    # Eleven cells at a time, so that forty make four blocks, the last one short.
    monkeypatch.setattr(count_matrix, "VALUES_PER_BLOCK", 11 * G)


def wrap(counts):
    obs = pd.DataFrame(
        {"drug": ["none", "A"] * (N // 2), "line": ["u", "u", "v", "v"] * (N // 4)},
        index=[f"c{i}" for i in range(N)],
    )
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{j}" for j in range(G)]))


def dense(cells):
    cells = cells.loaded()
    assert cells.counts.dtype == np.float32
    return cells.counts.toarray() if sparse.issparse(cells.counts) else cells.counts


FORMS = {
    "float32": COUNTS.astype("float32"),
    "float64": COUNTS.astype("float64"),
    "float16": COUNTS.astype("float16"),
    "int64": COUNTS,
    "uint8": COUNTS.astype("uint8"),
    "fortran": np.asfortranarray(COUNTS.astype("float32")),
    "csr": sparse.csr_matrix(COUNTS.astype("float32")),
    "csr_int": sparse.csr_matrix(COUNTS),
    "csc": sparse.csc_matrix(COUNTS.astype("float32")),
    "csr_array": sparse.csr_array(COUNTS.astype("float32")),
    "csc_array": sparse.csc_array(COUNTS.astype("float32")),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("genes", [slice(None), ["g5", "g2", "g0"]])
def test_forms_in_memory(form, genes):
    adata = wrap(FORMS[form].copy())
    design = Design.fit(wrap(COUNTS.astype("float32"))[:, genes], SCHEMA)
    cells = design.encode(adata)
    columns = [int(gene[1:]) for gene in design.genes]
    np.testing.assert_array_equal(dense(cells), COUNTS[:, columns])
    np.testing.assert_array_equal(cells.library, COUNTS[:, columns].sum(1))
    assert sparse.issparse(cells.counts) == sparse.issparse(FORMS[form])


@pytest.mark.parametrize("form", FORMS)
def test_views(form):
    rows = np.arange(N)[::-1][:30]
    view = wrap(FORMS[form].copy())[rows, ["g6", "g2"]]
    cells = Design.fit(view, SCHEMA).encode(view)
    np.testing.assert_array_equal(dense(cells), COUNTS[rows][:, [6, 2]])
    assert view.is_view


@pytest.mark.parametrize("form", ["float32", "int64", "csr", "csc"])
def test_backed_files_and_their_views(form, tmp_path):
    wrap(FORMS[form]).write_h5ad(tmp_path / "a.h5ad")
    adata = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    try:
        design = Design.fit(adata, SCHEMA)
        np.testing.assert_array_equal(dense(design.encode(adata)), COUNTS)
        assert adata.isbacked
        rows = np.arange(5, 35)
        np.testing.assert_array_equal(dense(design.encode(adata[rows])), COUNTS[rows])
    finally:
        adata.file.close()


def test_backed_files_are_read_a_block_at_a_time(tmp_path, monkeypatch):
    wrap(FORMS["float32"]).write_h5ad(tmp_path / "a.h5ad")
    adata = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    read, whole = [], StoredCounts.read

    def watch(self, rows):
        read.append(rows.stop - rows.start)
        return whole(self, rows)

    monkeypatch.setattr(StoredCounts, "read", watch)
    try:
        Design.fit(adata, SCHEMA)
        assert read == [11, 11, 11, 7]
        # What is learnt is applied without reading again.
        Design.fit_encode(adata, SCHEMA)
        assert read == 2 * [11, 11, 11, 7]
    finally:
        adata.file.close()


@pytest.mark.parametrize("form", FORMS)
def test_layers(form):
    adata = wrap(np.full((N, G), -1.5, "float32"))
    adata.layers["raw"] = FORMS[form].copy()
    schema = Schema(treatment="drug", control="none", covariates="line", counts="raw")
    np.testing.assert_array_equal(dense(Design.fit(adata, schema).encode(adata)), COUNTS)


def test_read_only_and_strided_arrays():
    wide = np.zeros((N, 2 * G), "float32")
    wide[:, ::2] = COUNTS
    strided = wide[:, ::2]
    strided.flags.writeable = False
    adata = wrap(strided)
    cells = Design.fit(adata, SCHEMA).encode(adata)
    np.testing.assert_array_equal(dense(cells), COUNTS)
    cells.batch([0, 1]).counts.add_(1)
    np.testing.assert_array_equal(dense(cells), COUNTS)


def test_dask_arrays():
    array = pytest.importorskip("dask.array")
    adata = wrap(array.from_array(COUNTS.astype("float32"), chunks=(9, G)))
    np.testing.assert_array_equal(dense(Design.fit(adata, SCHEMA).encode(adata)), COUNTS)


def test_entries_listed_twice_are_summed_and_left_as_they_are():
    # Row 0 holds 0.5 twice in one place: one molecule, not two halves.
    data = np.r_[np.float32([0.5, 0.5]), np.ones(N - 1, "float32")]
    indices = np.r_[[2, 2], np.full(N - 1, 2)]
    indptr = np.r_[0, np.arange(2, N + 2)]
    matrix = sparse.csr_matrix((data, indices, indptr), shape=(N, G))
    adata = wrap(matrix)
    with pytest.warns(UserWarning, match="6 genes have no count"):
        cells = Design.fit(adata, SCHEMA).encode(adata)
    assert dense(cells)[:, 2].tolist() == [1.0] * N
    assert adata.X.nnz == N + 1


def test_a_stored_zero_is_not_kept():
    matrix = sparse.csr_matrix(COUNTS.astype("float32"))
    matrix.data[matrix.indices == 4] = 0
    adata = wrap(matrix)
    with pytest.warns(UserWarning, match="'g4'"):
        cells = Design.fit(adata, SCHEMA).encode(adata)
    assert cells.counts.nnz == np.delete(COUNTS, 4, axis=1).astype(bool).sum()
    assert adata.X.nnz == COUNTS.astype(bool).sum()


def test_a_stored_zero_is_no_count():
    matrix = sparse.csr_matrix(COUNTS.astype("float32"))
    matrix.data[matrix.indptr[3] : matrix.indptr[4]] = 0
    with pytest.raises(CountsError, match="an empty cell.*'c3'"):
        Design.fit(wrap(matrix), SCHEMA)


@pytest.mark.parametrize("form", ["float64", "csr", "csc"])
def test_a_bad_value_is_located_in_later_blocks(form):
    counts = FORMS[form].copy().astype("float64")
    counts = counts.tolil() if sparse.issparse(counts) else counts
    counts[25, 4] = 0.25
    counts = counts.asformat(form) if sparse.issparse(counts) else counts
    with pytest.raises(CountsError, match="got 0.25 for cell 'c25', gene 'g4'"):
        Design.fit(wrap(counts), SCHEMA)
    # Seen through reordered genes, the name is still the right one.
    design = Design.fit(wrap(FORMS["float32"])[:, ["g4", "g2"]], SCHEMA)
    with pytest.raises(CountsError, match="got 0.25 for cell 'c25', gene 'g4'"):
        design.encode(wrap(counts))


def test_text_is_not_counts():
    adata = wrap(COUNTS.astype("float32"))
    adata.layers["raw"] = COUNTS.astype(complex)
    with pytest.raises(CountsError, match="not real numbers.*got complex128"):
        Design.fit(adata, Schema(counts="raw"))


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_written_into_the_data_nor_shared_with_it(form):
    adata = wrap(FORMS[form].copy())
    before = adata.copy()
    cells = Design.fit(adata, SCHEMA).encode(adata)
    values = cells.counts.data if sparse.issparse(cells.counts) else cells.counts
    values += 1
    for name in ("obs", "var"):
        pd.testing.assert_frame_equal(getattr(adata, name), getattr(before, name))
    assert (adata.X != before.X).sum() == 0
    assert adata.X.dtype == before.X.dtype
    assert list(adata.uns) == list(adata.obsm) == list(filter(None, adata.layers)) == []
