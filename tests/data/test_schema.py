import json

import pytest

from pyro_fcr.data import Schema
from pyro_fcr.errors import SchemaError


def test_every_field_is_optional():
    schema = Schema()
    assert (schema.treatment, schema.control, schema.covariates, schema.counts) == (
        None, None, (), None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "kept"),
    [("line", ("line",)), (["a", "b"], ("a", "b")), ((), ()), (None, ())],
)
def test_covariates_take_one_name_or_several(given, kept):
    assert Schema(covariates=given).covariates == kept


def test_control_becomes_a_string():
    assert Schema(treatment="t", control=0).control == "0"


def test_round_trip_through_json():
    schema = Schema("t", "c", ["x", "y"], "raw", "d", "b", "s", "|")
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"treatment": "t"}, r"without its control \(Schema.control\)"),
        ({"control": "c"}, "a control without a treatment column"),
        ({"dose": "d"}, "a dose without a treatment column"),
        ({"covariates": ["x", "x"]}, "named twice.*'x' more than once"),
        ({"treatment": "t", "control": "c", "covariates": "t"}, "named twice"),
        ({"covariates": [3]}, r"not a name \(Schema.covariates\).*got 3"),
        ({"counts": ""}, r"not a name \(Schema.counts\)"),
        ({"separator": ""}, r"not a name \(Schema.separator\)"),
    ],
)
def test_contradictions_are_refused(fields, match):
    with pytest.raises(SchemaError, match=match):
        Schema(**fields)


def test_unknown_field_is_refused_on_loading():
    with pytest.raises(SchemaError, match="unknown field.*'colour'"):
        Schema.from_dict({"colour": "red"})
