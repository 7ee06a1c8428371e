import json
import warnings
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyro_fcr.data import Design, Schema
from pyro_fcr.errors import (
    CategoryError,
    CountsError,
    DesignError,
    DesignWarning,
    GeneError,
    LoadError,
    SchemaError,
)

SCHEMA = Schema(treatment="drug", control="none", covariates="line")


def make(drug, genes=3, **columns):
    """Make one cell per label, with counts 1, 2, 3, ... so that none is empty."""
    n = len(drug)
    obs = pd.DataFrame({"drug": drug, **columns}, index=[f"c{i}" for i in range(n)])
    counts = np.arange(1, n * genes + 1, dtype="float32").reshape(n, genes)
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{j}" for j in range(genes)]))


def plain(**changes):
    """Make 20 cells: none and A, in lines u and v, five of each."""
    columns = {"line": (["u"] * 5 + ["v"] * 5) * 2}
    return make(["none"] * 10 + ["A"] * 10, **{**columns, **changes})


def quietly(adata, schema, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DesignWarning)
        return Design.fit(adata, schema, **options)


@pytest.fixture
def doses():
    drug = ["none", "A", "B+A", "A+B", "A+none", "A+A", "none", "B"]
    dose = ["9", "0.5", "1.0+0.5", "0.5+1", "0.5+7", "0.25+0.25", None, "2"]
    adata = make(drug, dose=dose)
    return adata, Schema(treatment="drug", control="none", dose="dose")


# ---- treatments --------------------------------------------------------------------------


def test_treatments_become_dose_weighted_rows(doses):
    adata, schema = doses
    design = quietly(adata, schema)
    assert design.treatments == ("A", "B")
    assert design.treatment_levels == ("none", "A @ 0.5", "A+B @ 0.5+1", "B @ 2")
    cells = design.encode(adata)
    assert cells.treatment.tolist() == [
        [0, 0], [0.5, 0], [0.5, 1], [0.5, 1], [0.5, 0], [0.5, 0], [0, 0], [0, 2],
    ]  # fmt: skip
    assert cells.treatment_id.tolist() == [0, 1, 2, 2, 1, 1, 0, 3]
    assert cells.dose.tolist() == [0, 0.5, 1.5, 1.5, 0.5, 0.5, 0, 2]
    np.testing.assert_array_equal(
        design.treatment_rows, np.array([[0, 0], [0.5, 0], [0.5, 1], [0, 2]], "float32")
    )


def test_without_a_dose_column_every_part_has_dose_one():
    adata = make(["none", "A+B", "A+A", "B", "none+B"])
    design = quietly(adata, Schema(treatment="drug", control="none"))
    assert design.treatment_levels == ("none", "A @ 2", "A+B", "B")
    assert design.encode(adata).treatment.tolist() == [[0, 0], [1, 1], [2, 0], [0, 1], [0, 1]]


def test_separator_none_never_splits():
    adata = make(["none", "A+B", "A"])
    schema = Schema(treatment="drug", control="none", separator=None)
    assert quietly(adata, schema).treatments == ("A", "A+B")


def test_control_label_may_contain_the_separator():
    adata = make(["DMSO+PBS", "A"])
    design = quietly(adata, Schema(treatment="drug", control="DMSO+PBS"))
    assert design.treatments == ("A",)


def test_a_dose_that_went_through_float32_is_the_same_dose():
    adata = make(["none", "A"], dose=np.array([0, 0.1]))
    schema = Schema(treatment="drug", control="none", dose="dose")
    design = quietly(adata, schema)
    adata.obs["dose"] = adata.obs["dose"].astype("float32")
    assert design.encode(adata).treatment_id.tolist() == [0, 1]


def test_many_continuous_doses_do_not_warn():
    n = 40
    adata = make(["none"] * n + ["A"] * n, dose=np.r_[np.zeros(n), np.linspace(0.1, 3, n)])
    design = Design.fit(adata, Schema(treatment="drug", control="none", dose="dose"))
    assert design.n_treatment_levels == 1 + n


def test_no_treatment_and_no_covariates():
    adata = make(["x"] * 4)
    design = quietly(adata, Schema())
    batch = design.encode(adata).batch()
    assert batch.treatment.shape == (4, 0)
    assert batch.covariates.shape == (4, 0)
    for field in ("treatment_id", "covariate_id", "batch", "dose"):
        assert getattr(batch, field).tolist() == [0, 0, 0, 0]
    assert (design.n_treatment_levels, design.n_covariate_levels, design.n_batches) == (1, 1, 1)


@pytest.mark.parametrize(
    ("drug", "dose", "match"),
    [
        ("A+B", 1.0, "'A\\+B'.*expected 2 numbers joined by '\\+', got 1.0"),
        ("A+B", "1+2+3", "expected 2 numbers"),
        ("A", "10 uM", "expected 1 number, got '10 uM'; write the dose as plain numbers"),
        ("A", 0.0, "expected positive finite numbers that float32 can hold, got 0.0"),
        ("A", -1.0, "expected positive finite numbers"),
        ("A", np.inf, "expected positive finite numbers"),
        ("A", None, "expected 1 number, got None"),
    ],
)
def test_unusable_doses_are_refused(drug, dose, match):
    adata = make(["none", drug])
    adata.obs["dose"] = pd.Series(["0", dose], index=adata.obs_names, dtype=object)
    with pytest.raises(SchemaError, match=match):
        Design.fit(adata, Schema(treatment="drug", control="none", dose="dose"))


@pytest.mark.parametrize("label", ["A+", "+A", "A++B", "+"])
def test_an_empty_part_is_refused(label):
    with pytest.raises(SchemaError, match=r"has an empty part.*separator=None"):
        Design.fit(make(["none", label]), Schema(treatment="drug", control="none"))


def test_the_unit_of_a_dose_is_its_geometric_mean():
    dose = [0, 10, 1000, "10+4", 4]
    adata = make(["none", "A", "A", "A+B", "B"], dose=[str(d) for d in dose])
    design = quietly(adata, Schema(treatment="drug", control="none", dose="dose"))
    # A is given at 10, 10 and 1000 in three groups, B at 4 in two.
    np.testing.assert_allclose(design.dose_unit, [1e5 ** (1 / 3), 4], rtol=1e-6)
    assert design.dose_unit.dtype == np.float32
    # Without doses, a part that is named twice is no dose.
    twice = make(["none", "A", "A+A", "B"])
    assert quietly(twice, Schema(treatment="drug", control="none")).dose_unit.tolist() == [1, 1]
    assert quietly(make(["x"]), Schema()).dose_unit.shape == (0,)


# ---- covariates --------------------------------------------------------------------------


def test_joint_covariates_are_the_observed_combinations():
    adata = make(["none", "A"] * 15, line=["v", "u", "u"] * 10, donor=[2, 2, 1] * 10)
    schema = Schema(treatment="drug", control="none", covariates=["line", "donor"])
    design = Design.fit(adata, schema)
    assert design.covariates == {"line": ("u", "v"), "donor": ("1", "2")}
    assert design.covariate_levels == (("u", "1"), ("u", "2"), ("v", "2"))
    assert design.covariate_groups == ("u | 1", "u | 2", "v | 2")
    assert design.n_levels == {"line": 2, "donor": 2}
    cells = design.encode(adata)
    assert cells.covariates[:3].tolist() == [[1, 1], [0, 1], [0, 0]]
    assert cells.covariate_id[:3].tolist() == [2, 1, 0]
    adata.obs["line"], adata.obs["donor"] = "v", 1
    assert set(design.encode(adata).covariate_id) == {-1}


def test_conditions_are_counted():
    conditions = Design.fit(plain(), SCHEMA).conditions
    assert conditions.to_dict("list") == {
        "drug": ["none", "none", "A", "A"], "line": ["u", "v", "u", "v"], "n_cells": [5] * 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    "convert",
    [
        lambda s: s.astype("category"),
        lambda s: pd.Categorical(s, categories=["v", "u", "never"]),
        lambda s: s.astype("string"),
        lambda s: s.map({"u": True, "v": False}),
        lambda s: s.map({"u": 1, "v": 0}).astype("Int64"),
        lambda s: s.map({"u": "ü", "v": "β"}),
    ],
)
def test_any_dtype_of_label_gives_two_levels(convert):
    adata = plain()
    adata.obs["line"] = convert(adata.obs["line"])
    before = adata.obs["line"].copy()
    design = Design.fit(adata, SCHEMA)
    texts = [str(value) for value in before]
    assert design.covariates["line"] == tuple(sorted(set(texts)))
    codes = design.encode(adata).covariates[:, 0]
    assert [design.covariates["line"][code] for code in codes] == texts
    pd.testing.assert_series_equal(adata.obs["line"], before)


def test_batches_have_codes_in_sorted_order():
    adata = plain(lane=["2", "1"] * 10)
    schema = Schema(treatment="drug", control="none", covariates="line", batch="lane")
    design = Design.fit(adata, schema)
    assert design.batches == ("1", "2")
    assert design.encode(adata).batch_id[:3].tolist() == [1, 0, 1]


# ---- how much it can identify ------------------------------------------------------------


@pytest.mark.parametrize(
    ("treated", "lines", "largest"), [(1, 2, 0), (2, 2, 1), (3, 4, 4), (9, 3, 9), (3, 1, 0)]
)
def test_largest_interaction_size(treated, lines, largest):
    names = ["none"] + [f"t{i}" for i in range(treated)]
    drug = np.repeat(names, lines).tolist()
    line = [f"x{i}" for i in range(lines)] * len(names)
    design = quietly(make(drug, line=line), SCHEMA)
    assert design.largest_interaction_size == largest
    design.check_interaction_size(largest)
    hint = f"use {largest} or fewer" if largest else "do not interpret z_tx"
    with pytest.warns(DesignWarning, match=hint):
        design.check_interaction_size(largest + 1)


def test_contrasts_of_an_incomplete_grid():
    # Four groups, three lines, 9 of 12 conditions. Connected, so the additive design has rank
    # 4 + 3 - 1 = 6, which leaves 3 contrasts of the 6 that the full grid would give.
    seen = [("none", "uvw"), ("A", "uvw"), ("B", "uv"), ("C", "w")]
    pairs = [(drug, line) for drug, lines in seen for line in lines]
    design = quietly(make([d for d, _ in pairs], line=[x for _, x in pairs]), SCHEMA)
    assert (design.n_contrasts(), design.largest_interaction_size) == (3, 1)
    design.check_interaction_size(1)
    told = "at least 4 interaction contrasts, got 3 from the 9 of 12 conditions"
    with pytest.warns(DesignWarning, match=f"{told} that were observed; use 1"):
        design.check_interaction_size(2)
    # Group 3 shares no line with the others: a piece of its own.
    assert design.n_contrasts([(0, 0), (0, 1), (1, 0), (3, 2)]) == 0
    assert design.n_contrasts([(0, 0), (0, 1), (1, 0), (1, 1), (1, 1), (-1, 0)]) == 1


@given(cells=st.sets(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1))
def test_contrasts_are_what_an_additive_design_leaves(cells):
    names = ["none", *"ABCD"]
    grid = [(drug, f"x{x}") for drug in names for x in range(4)]
    design = quietly(make([d for d, _ in grid], line=[x for _, x in grid]), SCHEMA)
    rows = np.array([[*np.eye(5)[t], *np.eye(4)[x]] for t, x in cells])
    assert design.n_contrasts(cells) == len(cells) - np.linalg.matrix_rank(rows)


def test_continuous_doses_have_the_contrasts_of_their_labels():
    # Every dose is met in one line only, but A is met in both.
    drug, dose = ["none"] * 2 + ["A"] * 6, [0.0] * 2 + list(np.linspace(0.1, 3, 6))
    adata = make(drug, line=["u", "v"] * 4, dose=dose)
    schema = Schema(treatment="drug", control="none", covariates="line", dose="dose")
    assert quietly(adata, schema).n_contrasts() == 1


def test_require_names_what_a_system_lacks():
    design = quietly(make(["none", "A"]), Schema(treatment="drug", control="none"))
    design.require("treatment", system="FCR")
    with pytest.raises(SchemaError, match=r"FCR needs covariates \(Schema.covariates\)"):
        design.require("treatment", "covariates", system="FCR")


# ---- do ----------------------------------------------------------------------------------


def test_do_sets_treatment_dose_and_covariate(doses):
    adata, _ = doses
    adata.obs["line"] = ["u", "v"] * 4
    schema = Schema(treatment="drug", control="none", dose="dose", covariates="line")
    design = quietly(adata, schema)
    cells = design.encode(adata)
    changed = design.do(cells, {"treatment": "B+A", "dose": "1+0.5", "line": "u"})
    assert changed.treatment.tolist() == [[0.5, 1]] * 8
    assert set(changed.treatment_id) == {2}
    assert changed.covariates.ravel().tolist() == [0] * 8
    assert changed.obs()["drug"].tolist() == ["A+B"] * 8
    # The original is as it was, and the counts are shared.
    assert cells.treatment_id.tolist() == [0, 1, 2, 2, 1, 1, 0, 3]
    assert changed.counts is cells.counts


def test_do_takes_the_column_name_and_unseen_doses_and_combinations(doses):
    adata, schema = doses
    design = quietly(adata, schema)
    cells = design.encode(adata)
    unseen = design.do(cells, {"drug": "A", "dose": 3})
    assert unseen.treatment.tolist() == [[3, 0]] * 8
    assert set(unseen.treatment_id) == {-1}


def test_do_control_gives_zeros(doses):
    adata, schema = doses
    design = quietly(adata, schema)
    cells = design.do(design.encode(adata), {"treatment": "none"})
    assert not cells.treatment.any()
    assert not cells.treatment_id.any()
    assert not cells.dose.any()


def test_do_dose_alone_leaves_control_cells_alone():
    adata = make(["none", "A", "B"], dose=[0.0, 1.0, 2.0])
    design = quietly(adata, Schema(treatment="drug", control="none", dose="dose"))
    cells = design.do(design.encode(adata), {"dose": 2.0})
    assert cells.treatment.tolist() == [[0, 0], [2, 0], [0, 2]]
    assert cells.treatment_id.tolist() == [0, -1, 2]


def test_do_without_a_dose_takes_the_only_one_that_was_seen():
    adata = make(["none", "A", "B", "B"], dose=[0, 5.0, 1.0, 2.0])
    design = quietly(adata, Schema(treatment="drug", control="none", dose="dose"))
    cells = design.encode(adata)
    assert design.do(cells, {"treatment": "A"}).treatment.tolist() == [[5, 0]] * 4
    with pytest.raises(DesignError, match=r"'B' without a dose.*at 2 doses \('1', '2'\)"):
        design.do(cells, {"treatment": "B"})


@pytest.mark.parametrize("dose", [None, "dose"])
def test_do_with_a_setting_gives_the_cells_of_a_group(doses, dose):
    adata, schema = doses
    design = quietly(adata, replace(schema, dose=dose))
    cells = design.encode(adata)
    for group in range(design.n_treatment_levels):
        after = design.do(cells, design.setting(group))
        assert set(after.treatment_id) == {group}


def test_do_on_an_unseen_joint_covariate():
    adata = make(["none", "A"] * 10, line=["u", "v"] * 10, donor=["p", "q"] * 10)
    schema = Schema(treatment="drug", control="none", covariates=["line", "donor"])
    design = quietly(adata, schema)
    cells = design.do(design.encode(adata), {"line": "u"})
    assert cells.covariate_id.tolist() == [0, -1] * 10


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"treatmnt": "A"}, CategoryError, "unknown name 'treatmnt'.*did you mean 'treatment'"),
        ({"treatment": "nome"}, CategoryError, "one of 'none', 'A'.*did you mean 'none'"),
        ({"treatment": "A+C"}, CategoryError, "unknown treatment 'C'"),
        ({"line": "U"}, CategoryError, "unknown covariate 'U'.*one of 'u', 'v'.*mean 'u'"),
        ({"treatment": ["A"]}, DesignError, "not one value.*got list"),
        ({"treatment": "A", "drug": "A"}, DesignError, "set twice"),
        ({"treatment": "A", "dose": 1}, CategoryError, "unknown name 'dose'"),
        ({"batch": "1"}, CategoryError, "unknown name 'batch'"),
    ],
)
def test_do_refuses_what_it_does_not_know(changes, error, match):
    adata = plain()
    design = Design.fit(adata, SCHEMA)
    with pytest.raises(error, match=match):
        design.do(design.encode(adata), changes)


def test_do_on_one_of_two_unknown_covariates_leaves_their_combination_unknown():
    adata = plain(donor=["p", "q"] * 10)
    schema = Schema(treatment="drug", control="none", covariates=["line", "donor"])
    design = quietly(adata, schema)
    del adata.obs["donor"], adata.obs["line"]
    cells = design.encode(adata, labels="optional")
    half = design.do(cells, {"line": "u"})
    assert set(half.covariate_id) == {-1}
    assert set(design.do(half, {"donor": "p"}).covariate_id) == {0}


def test_do_sets_the_batch():
    adata = plain(lane=["2", "1"] * 10)
    schema = Schema(treatment="drug", control="none", covariates="line", batch="lane")
    design = Design.fit(adata, schema)
    assert set(design.do(design.encode(adata), {"batch": "2"}).batch_id) == {1}


def test_causes_resolve_names_as_do_does():
    adata = plain(dose=[1.0] * 20)
    common = {"treatment": "drug", "control": "none"}
    design = quietly(adata, Schema(**common, covariates="line", dose="dose", batch="line"))
    assert design.causes({"drug": "A"}) == design.causes({"dose": 1}) == {"treatment"}
    both = {"covariates", "batch", "line"}
    assert design.causes({"line": "u"}) == design.causes({"batch": "u"}) == both
    assert design.causes({}) == set()
    with pytest.raises(CategoryError, match="unknown name 'lane'"):
        design.causes({"lane": "u"})
    # Covariates of the names that do() has for other things are covariates.
    adata = plain(batch=["p", "q"] * 10, dose=["p", "q"] * 10, lane=["1", "2"] * 10)
    schema = Schema(**common, covariates=["batch", "dose"], batch="lane")
    design = quietly(adata, schema)
    assert design.causes({"batch": "p", "dose": "q"}) == {"covariates", "batch", "dose"}
    assert design.causes({"lane": "1", "treatment": "A"}) == {"treatment", "batch", "lane"}


# ---- new data ----------------------------------------------------------------------------


def test_genes_are_found_by_name_and_extra_ones_ignored():
    adata = plain()
    design = Design.fit(adata, SCHEMA)
    other = ad.concat([adata[:, ["g2", "g0"]], plain()[:, ["g1"]]], axis=1, merge="first")
    other = ad.concat([other, ad.AnnData(np.full((20, 1), 9.0, "float32"), obs=adata.obs,
                                         var=pd.DataFrame(index=["extra"]))], axis=1,
                      merge="first")  # fmt: skip
    assert list(other.var_names) == ["g2", "g0", "g1", "extra"]
    cells = design.encode(other)
    np.testing.assert_array_equal(cells.counts, adata.X)
    # The size factor is the total over the model's genes, without the extra one.
    np.testing.assert_array_equal(cells.library, adata.X.sum(1))


def test_missing_genes_are_named():
    design = Design.fit(plain(genes=9), SCHEMA)
    with pytest.raises(GeneError, match=r"7 of the model's 9 genes are missing.*'g2', 'g3', 'g4',"
                                        r" 'g5', 'g6' and 2 more"):  # fmt: skip
        design.encode(plain(genes=2))


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("drug", "a", "unknown treatment 'a'.*one of 'none', 'A'.*did you mean 'A'"),
        ("line", "w9", "unknown covariate 'w9'.*one of 'u', 'v'"),
    ],
)
def test_an_unseen_category_is_refused(name, value, match):
    adata = plain()
    design = Design.fit(adata, SCHEMA)
    adata.obs[name] = value
    with pytest.raises(CategoryError, match=match):
        design.encode(adata)


def test_cells_without_labels_can_be_encoded_on_request():
    adata = plain(lane=["2", "1"] * 10)
    schema = Schema(treatment="drug", control="none", covariates="line", batch="lane")
    design = Design.fit(adata, schema)
    bare = ad.AnnData(adata.X, obs=adata.obs[[]], var=adata.var)
    with pytest.raises(SchemaError, match="no treatment column 'drug'.*there are none"):
        design.encode(bare)
    cells = design.encode(bare, labels="optional")
    batch = cells.batch()
    assert set(batch.treatment_id.tolist()) == {-1}
    assert set(batch.covariate_id.tolist()) == {-1}
    assert not batch.treatment.any()
    assert not batch.covariates.any()
    assert not batch.batch.any()
    assert list(cells.obs().columns) == []
    known = design.do(cells, {"treatment": "A", "line": "v"})
    assert set(known.treatment_id) == {1}
    assert set(known.covariate_id) == {1}
    assert list(known.obs().columns) == ["drug", "line"]


def test_optional_labels_still_refuse_what_is_there_and_wrong():
    adata = plain()
    design = Design.fit(adata, SCHEMA)
    del adata.obs["drug"]
    adata.obs["line"] = "w"
    with pytest.raises(CategoryError, match="unknown covariate 'w'"):
        design.encode(adata, labels="optional")
    with pytest.raises(SchemaError, match="labels="):
        design.encode(adata, labels="some")


# ---- size factors ------------------------------------------------------------------------


def test_size_factor_column():
    adata = plain(depth=np.arange(1, 21) / 2)
    schema = Schema(treatment="drug", control="none", covariates="line", size_factor="depth")
    design = Design.fit(adata, schema)
    # Totals 6, 15, ..., 177 average 91.5, the factors average 5.25.
    expected = np.arange(1, 21) / 2 * (91.5 / 5.25)
    np.testing.assert_allclose(design.encode(adata).library, expected, rtol=1e-6)
    # The unit is training's, whatever cells are encoded.
    np.testing.assert_allclose(design.encode(adata[:3]).library, expected[:3], rtol=1e-6)
    again = Design.from_dict(json.loads(json.dumps(design.to_dict())))
    np.testing.assert_array_equal(again.encode(adata).library, design.encode(adata).library)


def test_size_factors_stay_as_they_are_where_there_are_no_molecules():
    adata = plain(depth=np.arange(1, 21) / 2)
    schema = Schema(treatment="drug", control="none", covariates="line", size_factor="depth")
    cells = Design.fit(adata, schema, require_counts=False).encode(adata)
    np.testing.assert_array_equal(cells.library, np.arange(1, 21, dtype="float32") / 2)


def test_fractional_counts_have_their_totals_as_library_on_request():
    adata = plain()
    adata.X = adata.X + 0.25
    design = Design.fit(adata, SCHEMA, require_counts=False, library="totals")
    np.testing.assert_array_equal(design.encode(adata).library, adata.X.sum(1))
    adata.X[3] = 0
    with pytest.raises(CountsError, match="an empty cell.*none in 'c3'"):
        design.encode(adata)
    adata.X[4, 1] = -2
    with pytest.raises(CountsError, match=r"negative values.*got -2; .*likelihood"):
        Design.fit(adata, SCHEMA, require_counts=False, library="totals")
    with pytest.raises(DesignError, match="library=.*'totals' or 'ones', got 'total'"):
        Design.fit(adata, SCHEMA, library="total")


@pytest.mark.parametrize(("require_counts", "library"), [(True, "totals"), (False, "ones")])
def test_a_design_saved_before_the_library_had_a_unit_is_read_as_it_was(require_counts, library):
    adata = plain(depth=np.arange(1, 21) / 2)
    schema = Schema(treatment="drug", control="none", covariates="line", size_factor="depth")
    values = Design.fit(adata, schema, require_counts=require_counts).to_dict()
    del values["library"], values["size_factor_unit"]
    design = Design.from_dict(values)
    assert design.library == library
    np.testing.assert_array_equal(
        design.encode(adata).library, np.arange(1, 21, dtype="float32") / 2
    )


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf, "x", None])
def test_bad_size_factors_are_refused(bad):
    adata = plain()
    adata.obs["depth"] = pd.Series([bad] + [1.0] * 19, index=adata.obs_names, dtype=object)
    schema = Schema(treatment="drug", control="none", covariates="line", size_factor="depth")
    with pytest.raises(SchemaError, match=r"unusable size factors.*cell 'c0' \(1 such cells\)"):
        Design.fit(adata, schema)


def test_intensities_have_library_one_and_may_be_negative():
    adata = plain()
    adata.X = adata.X - 20.5
    cells = Design.fit(adata, SCHEMA, require_counts=False).encode(adata)
    np.testing.assert_array_equal(cells.counts, adata.X)
    assert set(cells.library) == {1.0}


# ---- checks before training --------------------------------------------------------------


def _value(value):
    def change(adata):
        adata.X[1, 2] = value

    return change


def _set(name, value, cell=None):
    def change(adata):
        if cell is None:
            adata.obs[name] = value
        else:
            adata.obs[name] = adata.obs[name].astype(object)
            adata.obs.loc[cell, name] = value

    return change


def _empty(adata):
    adata.X[[3, 7]] = 0


def _huge(adata):
    adata.X = adata.X.astype("int64")
    adata.X[1, 2] = 2**31 + 1


def _names(adata):
    adata.obs_names = ["c0", *adata.obs_names[:-1]]


def _genes(adata):
    adata.var_names = ["g0", "g0", "g1"]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (_value(np.nan), CountsError, r"NaN or infinite.*got nan for cell 'c1', gene 'g2'"),
        (_value(np.inf), CountsError, r"NaN or infinite.*got inf for cell 'c1', gene 'g2'"),
        (_value(-1), CountsError, "negative values.*got -1.0 for cell 'c1'.*Normal likelihood"),
        (_value(1.5), CountsError, "not whole numbers.*got 1.5.*no layers.*Normal likelihood"),
        (_huge, CountsError, r"beyond 2\*\*31.*got 2147483649 for cell 'c1', gene 'g2'"),
        (_empty, CountsError, "2 empty cells.*none in 'c3', 'c7'"),
        (_names, SchemaError, "cell names repeat.*'c0' more than once"),
        (_genes, GeneError, "gene names repeat.*'g0' more than once"),
        (_set("drug", "A"), SchemaError, "no control cells labelled 'none'.*one of 'A'"),
        (_set("drug", "None"), SchemaError, "did you mean 'None'"),
        (_set("drug", "none"), DesignError, "the treatment is constant.*'none' in every cell"),
        (_set("drug", np.nan, "c2"), SchemaError, r"missing values in the treatment.*1 of 20.*c2"),
        (_set("line", None, "c2"), SchemaError, "missing values in the covariate column 'line'"),
        (_set("line", " ", "c2"), SchemaError, "missing values in the covariate column 'line'"),
        (lambda a: a.obs.__delitem__("line"), SchemaError, "no covariate column"),
    ],
)
def test_bad_data_are_refused_before_training(change, error, match):
    adata = plain()
    change(adata)
    with pytest.raises(error, match=match):
        Design.fit(adata, SCHEMA)


def test_a_misspelt_column_or_layer_gets_the_nearest_name():
    adata = plain()
    adata.layers["counts"] = adata.X
    with pytest.raises(SchemaError, match="no covariate column 'Lines'.*did you mean 'line'"):
        Design.fit(adata, Schema(covariates="Lines"))
    with pytest.raises(SchemaError, match="no layer 'count'.*did you mean 'counts'"):
        Design.fit(adata, Schema(counts="count"))


def test_normalised_values_point_to_the_layers():
    adata = plain()
    adata.layers["raw"] = adata.X.copy()
    adata.X = np.log1p(adata.X)
    with pytest.raises(CountsError, match="the layers are 'raw'"):
        Design.fit(adata, SCHEMA)
    schema = Schema(treatment="drug", control="none", covariates="line", counts="raw")
    np.testing.assert_array_equal(
        Design.fit(adata, schema).encode(adata).counts, adata.layers["raw"]
    )


def test_no_matrix_no_cells_no_genes():
    obs = plain().obs
    with pytest.raises(CountsError, match="no matrix.*got None"):
        Design.fit(ad.AnnData(obs=obs, var=pd.DataFrame(index=["g"])), SCHEMA)
    with pytest.raises(SchemaError, match="no cells"):
        Design.fit(plain()[:0], SCHEMA)
    with pytest.raises(GeneError, match="no genes"):
        Design.fit(plain()[:, :0], SCHEMA)


def test_weak_designs_warn():
    with pytest.warns(DesignWarning, match="covariate 'line' is constant"):
        Design.fit(plain(line=["u"] * 20), SCHEMA)
    with pytest.warns(
        DesignWarning, match="2 of 4 conditions have fewer than 5.*4 in the smallest, 'A', 'v'"
    ):
        Design.fit(plain()[[*range(9), *range(10, 19)]], SCHEMA)
    silent = plain()
    silent.X[:, 1] = 0
    with pytest.warns(DesignWarning, match="a gene has no count.*got 'g1'"):
        assert Design.fit(silent, SCHEMA).genes == ("g0", "g1", "g2")


def test_a_sound_design_does_not_warn():
    Design.fit(plain(), SCHEMA)


# ---- keeping it --------------------------------------------------------------------------


def test_round_trip_through_json(doses):
    adata, _ = doses
    adata.obs["line"] = ["ü", "v"] * 4
    schema = Schema(treatment="drug", control="none", dose="dose", covariates="line", batch="line")
    design = quietly(adata, schema)
    again = Design.from_dict(json.loads(json.dumps(design.to_dict(), sort_keys=True)))
    assert again == design
    np.testing.assert_array_equal(again.encode(adata).treatment, design.encode(adata).treatment)


def test_a_damaged_design_is_refused():
    values = Design.fit(plain(), SCHEMA).to_dict()
    del values["genes"]
    with pytest.raises(LoadError, match="KeyError: 'genes'"):
        Design.from_dict(values)


# ---- properties --------------------------------------------------------------------------

PARTS = st.lists(
    st.tuples(st.sampled_from(["A", "B", "c é"]), st.sampled_from([0.25, 0.5, 1.0, 3.0])),
    min_size=1,
    max_size=4,
)


@given(treatments=st.lists(PARTS, min_size=1, max_size=6), seed=st.integers(0, 99))
def test_rows_are_sums_of_parts_and_the_order_of_parts_means_nothing(treatments, seed):
    def join(parts):
        return "+".join(p for p, _ in parts), "+".join(str(d) for _, d in parts)

    rng = np.random.default_rng(seed)
    shuffled = [[parts[i] for i in rng.permutation(len(parts))] for parts in treatments]
    pairs = [("none", "0"), *map(join, treatments), *map(join, shuffled)]
    adata = make([label for label, _ in pairs], dose=[dose for _, dose in pairs])
    design = quietly(adata, Schema(treatment="drug", control="none", dose="dose"))
    cells = design.encode(adata)
    for i, parts in enumerate(treatments, start=1):
        expected = [sum(d for p, d in parts if p == name) for name in design.treatments]
        assert cells.treatment[i].tolist() == expected
    n = len(treatments)
    assert cells.treatment_id[1 : n + 1].tolist() == cells.treatment_id[n + 1 :].tolist()
    distinct = {tuple(row) for row in cells.treatment.tolist()}
    assert design.n_treatment_levels == len(distinct)
    np.testing.assert_array_equal(design.treatment_rows[cells.treatment_id], cells.treatment)
    # The labels that obs() gives back are read as the same treatments.
    again = ad.AnnData(adata.X, obs=cells.obs(), var=adata.var)
    np.testing.assert_array_equal(design.encode(again).treatment_id, cells.treatment_id)


def test_new_treatments_leave_the_units_of_known_doses_alone():
    schema = Schema(treatment="drug", control="none", dose="dose", separator="+")
    drug = ["none"] * 10 + ["A"] * 10 + ["B"] * 10
    adata = make(drug, dose=["0"] * 10 + ["1"] * 5 + ["4"] * 5 + ["2"] * 10)
    design = Design.fit(adata, schema)
    np.testing.assert_allclose(design.dose_unit, [2.0, 2.0], rtol=1e-6)
    later = make(["A"] * 5 + ["A+C"] * 5 + ["C"] * 5, dose=["64"] * 5 + ["16+3"] * 5 + ["12"] * 5)
    wider = design.extended(later)
    # A dose of A means what it meant to the weights; C's unit is the mean of 3 and 12.
    np.testing.assert_allclose(wider.dose_unit, [2.0, 2.0, 6.0], rtol=1e-6)
    again = Design.from_dict(json.loads(json.dumps(wider.to_dict())))
    np.testing.assert_array_equal(again.dose_unit, wider.dose_unit)
    assert again == wider
