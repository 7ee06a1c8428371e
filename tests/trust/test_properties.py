"""What holds for any schema, split, design, model on disk and intervention, not for examples."""

from __future__ import annotations

import json
import math
import warnings
from functools import cache

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny import fit, tiny_adata, tiny_fcr, tiny_schema

import pyro_fcr as pf
from pyro_fcr.data import Design
from pyro_fcr.errors import DesignError, DesignWarning, FCRError, SchemaError

TEXT = st.text(min_size=1, max_size=6)
LABELS = st.sampled_from(["a", "b", "c", "β", "x y", "1", "None", "nan"])
QUICK = settings(max_examples=60, deadline=None)
FEW = settings(max_examples=12, deadline=None)


def cells(n: int, **columns) -> ad.AnnData:
    obs = pd.DataFrame(columns, index=[f"cell{i}" for i in range(n)])
    counts = np.random.default_rng(n).poisson(4.0, (n, 3)) + 1.0
    return ad.AnnData(counts.astype("float32"), obs=obs)


def one_line(refused: FCRError) -> None:
    assert len(str(refused).splitlines()) == 1


# ---- schemas -----------------------------------------------------------------------------------


@QUICK
@given(
    treatment=st.none() | TEXT,
    control=st.none() | TEXT,
    covariates=st.lists(TEXT, max_size=3),
    batch=st.none() | TEXT,
    continuous=st.lists(TEXT, max_size=2),
    separator=st.none() | TEXT,
)
def test_a_schema_is_refused_or_comes_back_from_json(**drawn) -> None:
    try:
        schema = pf.Schema(**drawn)
    except SchemaError as refused:
        one_line(refused)
        return
    assert pf.Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema
    roles = [schema.treatment, *schema.covariates, *schema.continuous]
    named = [name for name in roles if name is not None]
    assert len(set(named)) == len(named)
    assert (schema.treatment is None) == (schema.control is None)


@QUICK
@given(
    value=st.integers() | st.floats() | st.booleans() | st.lists(st.integers(), min_size=1),
    field=st.sampled_from(["treatment", "covariates", "counts", "dose", "batch", "separator"]),
)
def test_what_is_no_name_is_refused(value, field) -> None:
    with pytest.raises(SchemaError):
        pf.Schema(**{"treatment": "t", "control": "c", field: value})


# ---- splits ------------------------------------------------------------------------------------


@QUICK
@given(
    labels=st.lists(LABELS, min_size=12, max_size=60),
    test=st.floats(0.1, 0.6),
    valid=st.floats(0.0, 0.3),
    seed=st.integers(0, 2**32 - 1),
    order=st.randoms(use_true_random=False),
    stratify=st.booleans(),
)
def test_a_random_split_is_a_partition_by_name_and_seed(
    labels, test, valid, seed, order, stratify
) -> None:
    adata = cells(len(labels), kind=labels)
    options = {"test": test, "valid": valid, "seed": seed}
    options |= {"stratify": "kind"} if stratify else {}
    split = pf.splits.random(adata, **options)
    masks = [split.mask(adata, part) for part in ("train", "valid", "test")]
    assert (np.sum(masks, axis=0) == 1).all()
    # The same cells in another order get the same parts, and another number other ones.
    shuffled = list(range(len(labels)))
    order.shuffle(shuffled)
    again = pf.splits.random(adata[shuffled].copy(), **options)
    assert again.hash == split.hash
    for part, mask in zip(("train", "valid", "test"), masks, strict=True):
        np.testing.assert_array_equal(again.mask(adata, part), mask)
    # Each stratum by itself has its share, to within one cell of the running count.
    assert abs(masks[2].sum() - test * len(labels)) < 1
    if stratify:
        for label in set(labels):
            of_it = np.array([given == label for given in labels])
            assert abs(masks[2][of_it].sum() - test * of_it.sum()) < 2
    assert pf.Split.from_dict(json.loads(json.dumps(split.to_dict()))).hash == split.hash


@QUICK
@given(
    first=st.lists(LABELS, min_size=8, max_size=40),
    second=st.data(),
    seed=st.integers(0, 1000),
)
def test_held_out_cells_are_exactly_those_that_match(first, second, seed) -> None:
    other = second.draw(st.lists(LABELS, min_size=len(first), max_size=len(first)))
    adata = cells(len(first), one=first, two=other)
    wanted = {"one": [first[0]], "two": [other[0]]}
    try:
        split = pf.splits.hold_out(adata, wanted, seed=seed)
    except DesignError:
        assert all(a == first[0] and b == other[0] for a, b in zip(first, other, strict=True))
        return
    matches = [a == first[0] and b == other[0] for a, b in zip(first, other, strict=True)]
    np.testing.assert_array_equal(split.mask(adata, "test"), matches)


# ---- designs -----------------------------------------------------------------------------------


@st.composite
def experiments(draw) -> ad.AnnData:
    n = draw(st.integers(6, 30))
    drugs = draw(st.lists(st.sampled_from(["none", "A", "B", "A+B", "β"]), min_size=n, max_size=n))
    kinds = draw(st.lists(LABELS, min_size=n, max_size=n))
    lanes = draw(st.lists(st.sampled_from(["l1", "l2"]), min_size=n, max_size=n))
    amounts = draw(st.lists(st.floats(1e-3, 1e3), min_size=n, max_size=n))
    drugs[0], drugs[1] = "none", "A"
    doses = ["+".join(f"{a:g}" for _ in d.split("+")) for d, a in zip(drugs, amounts, strict=True)]
    return cells(n, drug=drugs, kind=kinds, lane=lanes, dose=doses)


SCHEMA = pf.Schema(
    treatment="drug", control="none", covariates=["kind"], dose="dose", batch="lane"
)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DesignWarning)
        yield


@QUICK
@given(adata=experiments())
def test_a_design_comes_back_from_json_and_encodes_alike(adata) -> None:
    design = Design.fit(adata, SCHEMA)
    again = Design.from_dict(json.loads(json.dumps(design.to_dict())))
    assert again == design
    one, two = design.encode(adata), again.encode(adata)
    np.testing.assert_array_equal(one.treatment, two.treatment)
    np.testing.assert_array_equal(one.covariate_id, two.covariate_id)
    assert design.conditions["n_cells"].sum() == adata.n_obs


@QUICK
@given(adata=experiments(), order=st.randoms(use_true_random=False))
def test_codes_depend_on_no_order(adata, order) -> None:
    design = Design.fit(adata, SCHEMA)
    shuffled = list(range(adata.n_obs))
    order.shuffle(shuffled)
    other = adata[shuffled].copy()
    for name in ("drug", "kind", "lane"):
        levels = sorted(set(other.obs[name]))
        order.shuffle(levels)
        other.obs[name] = pd.Categorical(other.obs[name], categories=[*levels, "unused"])
    assert Design.fit(other, SCHEMA) == design
    np.testing.assert_array_equal(
        design.encode(other).treatment, design.encode(adata).treatment[shuffled]
    )


@QUICK
@given(adata=experiments())
def test_labels_written_out_encode_to_themselves(adata) -> None:
    design = Design.fit(adata, SCHEMA)
    encoded = design.encode(adata)
    told = encoded.obs()
    again = design.encode(ad.AnnData(adata.X, obs=told, var=adata.var))
    np.testing.assert_allclose(again.treatment, encoded.treatment, rtol=1e-5)
    for name in ("covariate_id", "batch_id"):
        np.testing.assert_array_equal(getattr(again, name), getattr(encoded, name))


@QUICK
@given(adata=experiments(), pick=st.data())
def test_doing_what_is_the_case_changes_nothing(adata, pick) -> None:
    design = Design.fit(adata, SCHEMA)
    encoded = design.encode(adata)
    row = pick.draw(st.integers(0, adata.n_obs - 1))
    one = encoded.subset([row])
    label, dose = design.label(one.treatment[0])
    do = {"treatment": label, "kind": str(adata.obs["kind"].iloc[row]),
          "lane": str(adata.obs["lane"].iloc[row])}  # fmt: skip
    done = design.do(one, do | ({} if label == "none" else {"dose": dose}))
    np.testing.assert_allclose(done.treatment, one.treatment, rtol=1e-5)
    np.testing.assert_array_equal(done.covariate_id, one.covariate_id)
    np.testing.assert_array_equal(done.batch_id, one.batch_id)
    # An intervention is idempotent, and the data it was asked of stay as they were.
    twice = design.do(done, do | ({} if label == "none" else {"dose": dose}))
    np.testing.assert_array_equal(twice.treatment, done.treatment)


REQUESTS = st.dictionaries(
    st.sampled_from(["treatment", "drug", "dose", "kind", "lane", "batch", "moon", ""]),
    LABELS | st.sampled_from(["A", "B", "none", "A+B", "A+none", "+", ""]) | st.floats()
    | st.integers() | st.none() | st.booleans(),
    max_size=4,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(do=REQUESTS)
def test_any_request_is_refused_in_one_line_or_answered(do) -> None:
    design, encoded = example()
    try:
        done = design.do(encoded, do)
    except FCRError as refused:
        one_line(refused)
        return
    assert np.isfinite(done.treatment).all()
    assert (done.treatment >= 0).all()
    assert ((done.treatment > 0).any(axis=1) == (done.treatment_id != 0)).all()
    np.testing.assert_array_equal(done.names, encoded.names)


@cache
def example():
    drugs = ["none", "A", "B", "A+B"] * 5
    doses = ["1+2" if "+" in drug else "1" for drug in drugs]
    kinds = [label for label in ("a", "b", "β", "1") for _ in range(5)]
    adata = cells(20, drug=drugs, kind=kinds, lane=["l1", "l2"] * 10, dose=doses)
    design = Design.fit(adata, SCHEMA)
    return design, design.encode(adata)


# ---- models ------------------------------------------------------------------------------------


@cache
def fitted():
    adata = tiny_adata(per_condition=6, n_genes=10)
    model = tiny_fcr(adata, hidden=(8,))
    fit(model, max_epochs=2)
    return adata, model


@FEW
@given(rows=st.lists(st.integers(0, 53), min_size=1, max_size=20, unique=True))
def test_an_intervention_on_nothing_is_the_reconstruction(rows) -> None:
    # Each cell given its own condition keeps its own posterior, so it is its reconstruction.
    adata, model = fitted()
    own = adata[rows].copy()
    first = own.obs["drug"].iloc[0]
    own = own[(own.obs["drug"] == first).to_numpy()].copy()
    same = model.counterfactual(own, do={"treatment": str(first)}, draws=4, seed=3)
    again = model.counterfactual(own, do={"treatment": str(first)}, draws=4, seed=3)
    np.testing.assert_array_equal(same.X, again.X)
    assert (np.asarray(same.X) >= 0).all()
    # Expected counts share a cell's molecules among its genes.
    np.testing.assert_allclose(np.asarray(same.X).sum(1), own.X.sum(1), rtol=1e-3)
    assert set(same.obs["drug"]) == {first}


@FEW
@given(
    sizes=st.fixed_dictionaries({n: st.integers(1, 4) for n in ("z_x", "z_t", "z_tx")}),
    hidden=st.lists(st.integers(1, 9), max_size=2),
    likelihood=st.sampled_from(["nb", "zinb", "poisson", "normal"]),
    labels=st.booleans(),
    batch=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_saved_model_answers_bit_for_bit(
    sizes, hidden, likelihood, labels, batch, seed, tmp_path_factory
) -> None:
    adata = tiny_adata(per_condition=5, n_genes=8)
    model = tiny_fcr(
        adata,
        sizes=sizes,
        hidden=tuple(hidden),
        likelihood=likelihood,
        guide=pf.guides.Amortised(labels=labels, width=6, depth=1),
        schema=tiny_schema(**({"batch": "lane"} if batch else {})),
    )
    fit(model, max_epochs=1, seed=seed)
    again = pf.load(model.save(tmp_path_factory.mktemp("m") / "model"))
    one, two = model._objective.state_dict(), again._objective.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert again.design == model.design
    for name, frame in model.latents(adata).items():
        pd.testing.assert_frame_equal(again.latents(adata)[name], frame, check_exact=True)
    do = {"treatment": "A"}
    asked = [m.counterfactual(adata[:6].copy(), do=do, draws=2, seed=seed) for m in (model, again)]
    np.testing.assert_array_equal(asked[0].X, asked[1].X)


@FEW
@given(order=st.permutations(range(54)))
def test_latents_follow_their_cells(order) -> None:
    adata, model = fitted()
    whole = model.latents(adata)
    for name, frame in model.latents(adata[list(order)].copy()).items():
        np.testing.assert_allclose(frame, whole[name].iloc[list(order)], rtol=1e-5, atol=1e-6)


@QUICK
@given(scale=st.floats(1e-30, 1e30), number=st.integers(1, 5))
def test_doses_that_float32_holds_are_kept_to_six_digits(scale, number) -> None:
    assume(1e-37 < scale * number < 1e38)
    adata = cells(12, drug=["none", "A"] * 6, dose=[0.0, scale * number] * 6)
    design = Design.fit(adata, pf.Schema(treatment="drug", control="none", dose="dose"))
    assert math.isclose(design.treatment_keys[1][0][1], scale * number, rel_tol=1e-5)
    assert np.isfinite(design.dose_unit).all()
