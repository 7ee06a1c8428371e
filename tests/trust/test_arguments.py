"""Arguments of a wrong kind or out of their range: one line each, before anything is done."""

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from tiny import fit, tiny_adata, tiny_fcr, tiny_schema

import pyro_fcr as pf
from pyro_fcr.errors import ArgumentError, FCRError, SchemaError, SlotError, WriteError

ODD = [None, "8", 2.5, True, -1, float("nan"), 2**64]


@pytest.fixture(scope="module")
def adata():
    return tiny_adata(per_condition=6, n_genes=8)


@pytest.fixture(scope="module")
def model(adata):
    made = tiny_fcr(adata, guide=pf.guides.Amortised(width=8, depth=1), hidden=(8,))
    fit(made, max_epochs=1)
    return made


def told(call, kind=ArgumentError):
    with pytest.raises(FCRError) as caught:
        call()
    assert isinstance(caught.value, kind)
    assert re.fullmatch(r"[^\n]+ \(.+\): expected .+, got .+; .+\.", str(caught.value))
    return str(caught.value)


MADE = {
    "no data": (lambda a: pf.FCR(None, tiny_schema()), r"\(adata\).*an AnnData.*None"),
    "a table": (lambda a: pf.FCR(a.obs, tiny_schema()), r"\(adata\).*a DataFrame"),
    "an array": (lambda a: pf.FCR(a.X, tiny_schema()), r"\(adata\).*a ndarray"),
    "no schema": (lambda a: pf.FCR(a, None), r"\(schema=\).*a pyro_fcr.Schema.*None"),
    "a dict as schema": (lambda a: pf.FCR(a, {"treatment": "drug"}), r"\(schema=\)"),
    "sizes by position": (lambda a: tiny_fcr(a, sizes=8), r"\(sizes=\).*by name, got 8"),
    "no such block": (
        lambda a: tiny_fcr(a, sizes={"zx": 3}),
        r"\(sizes=\): expected blocks of \['z_x', 'z_t', 'z_tx'\], got 'zx'; did you mean 'z_x'",
    ),
    "a hidden layer of nothing": (lambda a: tiny_fcr(a, hidden=(8, 0)), r"\(hidden=\).*got 0"),
    "terms as a list": (lambda a: tiny_fcr(a, penalties=["x"]), r"\(penalties=\).*by name"),
    "a weight as text": (
        lambda a: tiny_fcr(a, penalties={"z_t_vs_type": "big"}), r"penalties=.*got 'big'",
    ),
    "a weight below zero": (
        lambda a: tiny_fcr(a, penalties={"z_t_vs_type": -1}), r"penalties=.*at least 0, got -1",
    ),
    "a guide by name": (lambda a: tiny_fcr(a, guide="amortised"), r"\(guide=\).*'amortised'"),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_what_a_model_is_made_of(adata, name):
    call, match = MADE[name]
    assert re.search(match, told(lambda: call(adata)))


@pytest.mark.parametrize("size", [*ODD, 0])
def test_sizes_are_whole_numbers(adata, size):
    assert f"got {size!r}" in told(lambda: tiny_fcr(adata, sizes={"z_x": size}))


@pytest.mark.parametrize(
    "given", [(1,), (pf.penalties.ConditionalHSIC, 1.0), (pf.penalties.ConditionalHSIC, 1, 2)]
)
def test_a_term_of_ones_own_is_a_part_and_a_weight(adata, given):
    assert "(penalty, weight)" in told(
        lambda: tiny_fcr(adata, penalties={"own": given}), SlotError
    )


def test_one_width_is_one_layer(adata):
    assert tiny_fcr(adata, hidden=16)._recipe.hidden == (16,)


FITTED = {
    "max_epochs": ["3", 1.5, -2],
    "learning_rate": [-1, float("nan"), "fast"],
    "kl_warmup": [2, -0.1],
    "penalty_warmup": [1.5],
    "head_start": [0],
    "weight_decay": [-1, float("inf")],
    "seed": ["x", None, -1, 2**70, 1.5],
    "threads": ["many", 1.5],
    "validate_every": [0, 1.5],
    "split": ["random"],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, some in FITTED.items() for v in some])
def test_what_a_fit_is_told(adata, model, name, value):
    before = {k: v.clone() for k, v in model._objective.state_dict().items()}
    said = told(lambda: fit(model, **{name: value}))
    assert f"{name}=" in said
    assert f"got {value!r}" in said
    assert all((before[k] == v).all() for k, v in model._objective.state_dict().items())
    assert len(model.latents(adata)["z_x"]) == len(adata)


@pytest.mark.parametrize("device", ["gpu", "cuda:77", 3.5])
def test_a_device_that_is_not_there(model, device):
    assert "(device=): expected 'auto', 'cpu'" in told(lambda: fit(model, device=device))


def test_resuming_needs_a_checkpoint(model):
    assert "resume=True, checkpoint=" in told(lambda: fit(model, resume=True))


ASKED = {
    "nothing to set": (lambda m: m.counterfactual(do={}), r"\(do=\).*reconstruct\(\)"),
    "a label alone": (lambda m: m.counterfactual(do="A"), r"\(do=\).*by name, got 'A'"),
    "no do": (lambda m: m.counterfactual(do=None), r"\(do=\)"),
    "a library of nothing": (
        lambda m: m.counterfactual(do={"treatment": "A"}, library=0), r"\(library=\).*got 0",
    ),
    "a library below nothing": (
        lambda m: m.counterfactual(do={"treatment": "A"}, library=-5), r"\(library=\).*got -5",
    ),
    "a library that is no number": (
        lambda m: m.counterfactual(do={"treatment": "A"}, library=float("nan")), "got nan",
    ),
    "a seed as text": (lambda m: m.reconstruct(draws=2, seed="a"), r"\(seed=\).*got 'a'"),
    "load nothing": (lambda m: pf.load(None), r"\(load\).*got None"),
    "hold out a name": (
        lambda m: pf.splits.hold_out(tiny_adata(), "drug"), r"\(hold_out\).*by name, got 'drug'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
def test_what_is_asked_of_a_model(model, name):
    call, match = ASKED[name]
    assert re.search(match, told(lambda: call(model)))


@pytest.mark.parametrize("draws", [0, -1, 2.5, "many", None])
@pytest.mark.parametrize(
    "verb", ["posterior", "posterior_predictive", "reconstruct", "counterfactual"]
)
def test_draws_are_a_whole_number(model, verb, draws):
    more = {"do": {"treatment": "A"}} if verb == "counterfactual" else {}
    assert "(draws=)" in told(lambda: getattr(model, verb)(draws=draws, **more))


def test_a_file_in_the_place_of_a_folder_and_the_reverse(model, tmp_path):
    (tmp_path / "file").write_text("mine")
    told(lambda: model.save(tmp_path / "file"), WriteError)
    told(lambda: model.save(tmp_path / "file" / "below"), WriteError)
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "c.safetensors").mkdir()
    told(lambda: fit(model, checkpoint=tmp_path / "c.safetensors"), WriteError)
    told(lambda: model.save(tmp_path / ("n" * 300)), WriteError)


def test_a_column_of_lists_holds_no_labels(adata):
    odd = ad.AnnData(adata.X, obs=adata.obs.copy(), var=adata.var)
    odd.obs["type"] = pd.Series([[1]] * len(odd), index=odd.obs_names)
    assert "holds no labels (adata.obs)" in told(lambda: tiny_fcr(odd), SchemaError)


def test_numpys_numbers_are_numbers(adata):
    made = tiny_fcr(adata, sizes={"z_x": np.int64(3)}, hidden=(np.int32(8),))
    fit(made, max_epochs=np.int64(1), seed=np.uint8(3), learning_rate=np.float32(1e-3))
    assert made.latents()["z_x"].shape[1] == 3
