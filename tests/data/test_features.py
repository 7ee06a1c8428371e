"""Features of treatments: read, refused, kept; what may be asked of treatments without cells."""

import numpy as np
import pandas as pd
import pytest
from tiny import fit, tiny_adata, tiny_fcr, tiny_schema

import pyro_fcr as pf
from pyro_fcr.data import Design, open_data
from pyro_fcr.errors import CategoryError, DesignError, LoadError, SchemaError, SlotError

VECTORS = {"A": [1.0, 0.0], "B": [0.0, 2.0], "new": [1.0, 1.0]}


@pytest.fixture
def adata():
    return tiny_adata(per_condition=8, combo=True)


def told(adata, **changes):
    return Design.fit(adata, tiny_schema(treatment_features="known", **changes))


@pytest.mark.parametrize(
    "given",
    [
        VECTORS,
        {**VECTORS, "ctrl": [9.0, 9.0]},
        pd.DataFrame(VECTORS, index=["f", "g"]).T,
        {name: np.asarray(value, "float64") for name, value in reversed(VECTORS.items())},
    ],
    ids=["lists", "control", "frame", "arrays"],
)
def test_uns(adata, given):
    adata.uns["known"] = given
    design = told(adata)
    assert design.treatments == ("A", "B", "new")
    np.testing.assert_array_equal(design.treatment_features, [[1, 0], [0, 2], [1, 1]])
    assert design.treatment_features.dtype == np.float32
    # Groups are those of cells.
    assert design.treatment_levels == ("ctrl", "A", "A+B", "B")


def test_varm_has_a_row_per_gene():
    adata = tiny_adata(per_condition=8)
    adata.var_names = ["A", "B", *adata.var_names[2:]]
    values = np.arange(40.0).reshape(20, 2)
    values[5] = np.nan
    adata.varm["known"] = values
    design = told(adata)
    assert design.n_treatments == 19, "a gene whose features are not finite has none"
    rows = [adata.var_names.get_loc(name) for name in design.treatments]
    np.testing.assert_array_equal(design.treatment_features, values[rows])
    values[0] = np.nan
    adata.varm["known"] = values
    with pytest.raises(SchemaError, match=r"not finite \(varm\['known'\]\).*nan or inf for 'A'"):
        told(adata)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"A": [1.0]}, "1 treatments have no features.*none for 'B'"),
        ({**VECTORS, "B": [1.0]}, r"wrong form.*shapes \(1,\), \(2,\)"),
        ({**VECTORS, "B": [1.0, np.nan]}, "not finite.*nan or inf for 'B'"),
        ({**VECTORS, "new": [np.inf, 1.0]}, "nan or inf for 'new'"),
        ({"A": ["x"], "B": ["y"]}, "no table of numbers"),
        ({}, "wrong form.*an empty dict"),
        (3.0, "wrong form.*got float"),
        (pd.DataFrame([[1.0], [2.0], [3.0]], index=["A", "B", "A"]), "'A' more than once"),
        (pd.DataFrame(index=["A", "B"]), "no table of numbers"),
    ],
    ids=["missing", "ragged", "nan", "inf", "text", "empty", "number", "twice", "no_columns"],
)
def test_refusals(adata, given, match):
    adata.uns["known"] = given
    with pytest.raises(SchemaError, match=match):
        told(adata)


def test_the_key(adata):
    adata.uns["chemistry"] = VECTORS
    with pytest.raises(SchemaError, match="'known', which is in neither.*'chemistry'"):
        told(adata)
    adata.uns["known"], adata.varm["known"] = VECTORS, np.ones((20, 1))
    with pytest.raises(SchemaError, match="which is in both"):
        told(adata)
    with pytest.raises(SchemaError, match="treatment_features without a treatment"):
        pf.Schema(treatment_features="known")


@pytest.mark.parametrize("place", ["uns", "varm"])
def test_files_on_disk_tell_the_same(adata, place, tmp_path):
    adata.var_names = ["A", "B", *adata.var_names[2:]]
    frame = pd.DataFrame(VECTORS, index=["f", "g"]).T
    if place == "uns":
        adata.uns["known"] = frame
    else:
        adata.varm["known"] = np.arange(40.0).reshape(20, 2)
    adata.write_h5ad(tmp_path / "a.h5ad")
    design, stored = told(adata), told(open_data(tmp_path / "a.h5ad"))
    assert stored == design
    np.testing.assert_array_equal(stored.treatment_features, design.treatment_features)


def test_the_dose_unit_of_a_treatment_without_cells(adata):
    adata.uns["known"] = VECTORS
    doses = {"ctrl": "0", "A": "2", "B": "8", "A+B": "2+8"}
    adata.obs["dose"] = adata.obs["drug"].astype(str).map(doses)
    np.testing.assert_allclose(told(adata, dose="dose").dose_unit, [2, 8, 4], rtol=1e-6)


def test_the_design_comes_back(adata):
    adata.uns["known"] = VECTORS
    design = told(adata)
    again = Design.from_dict(design.to_dict())
    assert again == design
    np.testing.assert_array_equal(again.treatment_features, design.treatment_features)
    broken = design.to_dict() | {"treatment_features": [[1.0]]}
    with pytest.raises(LoadError, match="features of shape"):
        Design.from_dict(broken)


READS = {"z_t": pf.priors.TreatmentFeatures(), "z_tx": pf.priors.Gaussian(condition="features")}


def test_a_treatment_that_was_never_seen_is_predicted(adata, tmp_path):
    adata.uns["known"] = VECTORS
    schema = tiny_schema(treatment_features="known")
    fcr = tiny_fcr(adata, schema=schema, priors=READS)
    fit(fcr, max_epochs=3)
    made = {
        name: fcr.counterfactual(adata[:6], do={"treatment": name}, draws=3).X
        for name in ("ctrl", "new", "new+A")
    }
    assert all(np.isfinite(value).all() for value in made.values())
    assert not np.allclose(made["new"], made["ctrl"])
    assert not np.allclose(made["new"], made["new+A"])
    again = pf.load(fcr.save(tmp_path / "m"))
    np.testing.assert_array_equal(again.design.treatment_features, fcr.design.treatment_features)
    np.testing.assert_array_equal(
        again.counterfactual(adata[:6], do={"treatment": "new"}, draws=3).X, made["new"]
    )
    (tmp_path / "m" / "treatment_features.safetensors").unlink()
    with pytest.raises(LoadError, match="treatment_features"):
        pf.load(tmp_path / "m")
    with pytest.raises(CategoryError, match="'newer'"):
        fcr.counterfactual(adata[:6], do={"treatment": "newer"}, draws=1)


def test_a_table_does_not_pretend_to_know(adata):
    adata.uns["known"] = VECTORS
    schema = tiny_schema(treatment_features="known")
    fcr = tiny_fcr(adata, schema=schema, priors={"z_t": READS["z_t"]})
    fit(fcr, max_epochs=1)
    with pytest.raises(DesignError, match="prior of 'z_tx' knows nothing of 'new'.*Features"):
        fcr.counterfactual(adata[:6], do={"treatment": "new"}, draws=1)
    # What it was trained on it can do.
    fcr.counterfactual(adata[:6], do={"treatment": "A"}, draws=1)


def test_an_encoder_that_reads_labels_does_not_pretend_either(adata):
    adata.uns["known"] = VECTORS
    schema = tiny_schema(treatment_features="known")
    guide = pf.guides.Amortised(labels=True, width=8, depth=1)
    fcr = tiny_fcr(adata, schema=schema, priors=READS, guide=guide)
    fit(fcr, max_epochs=1)
    new = adata[:5].copy()
    new.obs["drug"] = "new"
    with pytest.raises(DesignError, match="the encoder knows nothing of 'new'"):
        fcr.latents(new)


def test_features_must_be_there_to_be_read(adata):
    with pytest.raises(SlotError, match=r"Schema\.treatment_features.*got None"):
        tiny_fcr(adata, priors={"z_t": pf.priors.TreatmentFeatures()})
