import hashlib
import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyro_fcr.data import Design, Schema, Split, splits
from pyro_fcr.errors import CategoryError, DesignError, LoadError, SchemaError


def make(n=40, **columns):
    """Make n cells: four conditions of drug and line in equal parts."""
    base = {"drug": np.resize(["none", "A"], n), "line": np.resize(["u", "u", "v", "v"], n)}
    obs = pd.DataFrame({**base, **columns}, index=[f"c{i}" for i in range(n)])
    return ad.AnnData(np.ones((n, 2), "float32"), obs=obs)


@given(
    n=st.integers(5, 60), test=st.floats(0.2, 0.6), valid=st.floats(0, 0.2), seed=st.integers(0, 9)
)
def test_random_parts_have_their_sizes_and_ignore_the_order_of_cells(n, test, valid, seed):
    adata = make(n)
    split = splits.random(adata, test=test, valid=valid, seed=seed)
    counts = split.counts()
    assert counts["test"] == np.floor(n * test + 1e-9)
    assert abs(counts["valid"] - n * valid) <= 1
    assert sum(counts.values()) == n
    other = adata[np.random.default_rng(0).permutation(n)]
    again = splits.random(other, test=test, valid=valid, seed=seed)
    assert again.hash == split.hash
    masks = [split.mask(other, part) for part in splits.PARTS]
    assert (np.sum(masks, axis=0) == 1).all()
    assert set(other.obs_names[masks[2]]) == set(adata.obs_names[split.mask(adata, "test")])


def test_random_depends_on_the_seed():
    adata = make()
    assert splits.random(adata, seed=0).hash != splits.random(adata, seed=1).hash


def test_stratified_parts_keep_every_condition_in_proportion():
    adata = make(400, rare=["x"] * 20 + ["y"] * 380)
    split = splits.random(adata, test=0.2, valid=0.1, stratify=["rare", "drug"])
    for _, group in adata.obs.groupby(["rare", "drug"]):
        parts = pd.Series(split.parts, index=split.names)[group.index].value_counts()
        assert abs(parts["test"] - 0.2 * len(group)) <= 1
        assert abs(parts["valid"] - 0.1 * len(group)) <= 2


def test_hold_out_a_combination_keeps_its_parts_in_training():
    adata = make()
    split = splits.hold_out(adata, {"line": ["u"], "drug": "A"}, valid=0.1)
    test = split.mask(adata, "test")
    both = (adata.obs["line"] == "u") & (adata.obs["drug"] == "A")
    np.testing.assert_array_equal(test, both)
    assert split.counts() == {"train": 27, "valid": 3, "test": 10}
    train = adata.obs[split.mask(adata, "train")]
    assert set(train["line"]) == {"u", "v"}
    assert set(train["drug"]) == {"none", "A"}


def test_hold_out_one_column_is_an_unseen_level():
    adata = make(plate=np.resize([1, 2, 3, 4], 40))
    split = splits.hold_out(adata, {"plate": [2, 4]}, valid=0)
    np.testing.assert_array_equal(split.mask(adata, "test"), adata.obs["plate"].isin([2, 4]))
    assert split.counts() == {"train": 20, "valid": 0, "test": 20}


def test_cells_without_a_value_are_not_held_out():
    adata = make(8, plate=[1.0, np.nan] * 4)
    split = splits.hold_out(adata, {"plate": 1.0}, valid=0)
    assert split.mask(adata, "test").tolist() == [True, False] * 4


def test_column_reads_the_parts_that_are_written_there():
    adata = make(4, split=["train", "test", "valid", "train"])
    split = splits.column(adata, "split")
    assert split.parts == ("train", "test", "valid", "train")


def test_mask_works_on_some_of_the_cells_and_on_encoded_ones():
    adata = make(4, split=["train", "test", "valid", "train"])
    split = splits.column(adata, "split")
    assert split.mask(adata[[3, 1]], "train").tolist() == [True, False]
    schema = Schema(treatment="drug", control="none")
    with pytest.warns(UserWarning, match="fewer than 5 cells"):
        cells = Design.fit(adata, schema).encode(adata)
    assert split.mask(cells, "test").tolist() == [False, True, False, False]


def test_hash_is_a_sha256_over_sorted_names_and_parts():
    split = Split(("b", "a"), ("test", "train"))
    assert split.hash == hashlib.sha256(b'["a", "train"]\n["b", "test"]\n').hexdigest()
    assert split.hash != Split(("b", "a"), ("train", "test")).hash
    assert split.describe() == f"split: train 1, valid 0, test 1; sha256 {split.hash[:12]}"


def test_round_trip_and_tampering():
    split = splits.hold_out(make(), {"line": "u"})
    values = json.loads(json.dumps(split.to_dict()))
    assert Split.from_dict(values) == split
    values["parts"][0] = "valid" if values["parts"][0] != "valid" else "train"
    with pytest.raises(LoadError, match="changed after it was saved"):
        Split.from_dict(values)
    with pytest.raises(LoadError, match="KeyError: 'names'"):
        Split.from_dict({})


@pytest.mark.parametrize(
    ("do", "error", "match"),
    [
        (lambda a: splits.random(a, test=1.0), DesignError, r"not a fraction \(test\)"),
        (lambda a: splits.random(a, valid=-0.1), DesignError, r"not a fraction \(valid\)"),
        (lambda a: splits.random(a, test=0), DesignError, "an empty test part"),
        (lambda a: splits.random(a, test=0.5, valid=0.6), DesignError, "an empty train part"),
        (lambda a: splits.random(a, stratify="lin"), SchemaError, "did you mean 'line'"),
        (lambda a: splits.hold_out(a, {}), DesignError, "nothing to hold out"),
        (lambda a: splits.hold_out(a, {"lines": "u"}), SchemaError, "did you mean 'line'"),
        (lambda a: splits.hold_out(a, {"line": "U"}), CategoryError, "did you mean 'u'"),
        (lambda a: splits.hold_out(a, {"line": []}), DesignError, "an empty test part"),
        (lambda a: splits.hold_out(a, {"line": ["u", "v"]}), DesignError, "an empty train part"),
        (lambda a: splits.hold_out(a[a.obs["drug"].eq("A") != a.obs["line"].eq("u")],
                                   {"line": "u", "drug": "A"}), DesignError, "an empty test"),
        (lambda a: splits.column(a, "drug"), CategoryError, "unknown part.*got 'A'"),
        (lambda a: splits.column(a, "part"), SchemaError, "no split column 'part'"),
        (lambda a: splits.random(a).mask(a, "tst"), CategoryError, "did you mean 'test'"),
        (lambda a: splits.random(a[:20]).mask(a, "test"), DesignError,
         "20 cells are not in the split.*'c20'"),
        (lambda a: Split(("a", "a"), ("train", "test")), DesignError, r"2 names \(1 distinct\)"),
        (lambda a: Split(("a", "b"), ("train",)), DesignError, "1 parts"),
    ],
)  # fmt: skip
def test_bad_splits_are_refused(do, error, match):
    with pytest.raises(error, match=match):
        do(make())


def test_repeated_cell_names_are_refused():
    adata = make(4)
    adata.obs_names = ["a", "a", "b", "c"]
    with pytest.raises(SchemaError, match="cell names repeat"):
        splits.random(adata)
