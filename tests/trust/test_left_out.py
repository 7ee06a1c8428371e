"""Labels that the data have and the training cells do not: no random start answers for them."""

import pytest
import torch
from tiny import fit, tiny_adata, tiny_cells, tiny_fcr, tiny_schema

import pyro_fcr as pf
from pyro_fcr.decoders import AdditiveDecoder, NetworkDecoder
from pyro_fcr.errors import DesignWarning
from pyro_fcr.nn.maps import condition_map

LEFT_OUT = {"lane": "l1", "type": "w", "drug": "B"}


def split_without(adata, column):
    return pf.splits.hold_out(adata, {column: LEFT_OUT[column]}, valid=0)


def at(cells, **do):
    return cells.design.do(cells.subset([0]), do).batch()


@pytest.fixture(scope="module")
def cells():
    return tiny_cells(tiny_adata(per_condition=8), batch="lane")


@pytest.mark.parametrize("kind", ["table", "embedding", "mlp"])
def test_a_map_forgets_the_batch_that_no_training_cell_has(cells, kind):
    torch.manual_seed(0)
    made = condition_map(kind, cells.design, {"batch"}, torch.ones(3))
    assert made(at(cells, lane="l1")).abs().sum() > 0
    first = made(at(cells, lane="l0"))
    made.zero_unseen(cells.subset(cells.batch_id == 0).batch())
    for module in made.modules():
        if hasattr(module, "zero_unseen"):
            module.zero_unseen(cells.subset(cells.batch_id == 0).batch())
    torch.testing.assert_close(made(at(cells, lane="l0")), first)
    # What is left is what no batch at all would be: an intercept, or a network of zeros.
    nothing = at(cells, lane="l1")
    if kind == "table":
        torch.testing.assert_close(made(nothing)[0], made.intercept * 5.0)
    if kind == "embedding":
        base = made.factors["others"].intercept * 5.0
        torch.testing.assert_close(made(nothing)[0], base @ made.weight + made.bias)
    if kind == "mlp":
        torch.testing.assert_close(
            made(nothing)[0], made.intercept + made.network(torch.zeros(made.code.size))
        )


@pytest.mark.parametrize("decoder", [NetworkDecoder(("type",)), AdditiveDecoder(("type",))])
def test_a_decoder_forgets_them_and_reads_numbers_on(cells, decoder):
    fcr = tiny_fcr(tiny_adata(per_condition=8), schema=tiny_schema(batch="lane"), decoder=decoder)
    made, z = fcr.model.decoder, torch.randn(1, 7)
    known = at(fcr.cells, lane="l0", type="u")
    before = made(z, known)
    rows = (fcr.cells.batch_id == 0) & (fcr.cells.covariates[:, 0] != 2)
    made.zero_unseen(fcr.cells.subset(rows).batch())
    torch.testing.assert_close(made(z, known), before)
    network = getattr(made, "network", made) if isinstance(made, AdditiveDecoder) else made
    bare = torch.cat([z, torch.zeros(1, network.code.size)], 1)
    torch.testing.assert_close(
        made(z, at(fcr.cells, lane="l1", type="w")), network.linear(bare) + network.network(bare)
    )


def test_a_continuous_covariate_is_no_label_that_could_be_missing():
    adata = tiny_adata(per_condition=8)
    adata.obs["age"] = [1.0, 2.0, 3.0] * (len(adata) // 3)
    cells = tiny_cells(adata, continuous=["age"])
    made = condition_map("mlp", cells.design, {"covariates"}, torch.ones(2))
    average = cells.subset(cells.continuous[:, 0] == 0).batch()
    assert made.code.unseen(average).tolist() == [False] * 4


@pytest.mark.parametrize(
    ("column", "reader"),
    [
        ("lane", "the priors and the decoder"),
        ("type", "the priors and the decoder"),
        ("drug", "the prior of 'z_t'"),
    ],
)
def test_who_asks_for_them_is_told(column, reader, tmp_path):
    adata, level = tiny_adata(per_condition=8), LEFT_OUT[column]
    fcr = tiny_fcr(adata, schema=tiny_schema(batch="lane"))
    fit(fcr, split=split_without(adata, column), max_epochs=1)
    assert fcr.settings["unseen"] == {column: [level]}
    fcr.latents(adata)
    told = (
        rf"no training cell had {column} '{level}' \({reader}\): expected labels of training "
        r"cells, got 1 that the split left out; it counts as having no effect of its own"
    )
    other = {"lane": "l0", "type": "u", "drug": "A"}[column]
    some = adata[adata.obs["lane"].eq("l0") & ~adata.obs["type"].eq("w")].copy()
    for model in (fcr, pf.load(fcr.save(tmp_path / "m"))):
        with pytest.warns(DesignWarning, match=told):
            model.counterfactual(some, do={column: level}, draws=2)
        model.counterfactual(some, do={column: other}, draws=2)


def test_nothing_is_told_where_training_had_every_label():
    adata = tiny_adata(per_condition=8)
    fcr = tiny_fcr(adata)
    split = pf.splits.hold_out(adata, {"drug": ["A"], "type": ["u"]}, valid=0)
    fit(fcr, split=split, max_epochs=1)
    assert "unseen" not in fcr.settings
    fcr.counterfactual(adata, do={"drug": "A"}, draws=2)
