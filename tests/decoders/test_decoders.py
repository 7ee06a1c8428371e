"""Decoders: what they read, what they add, and that a turn of the latents is absorbed."""

import numpy as np
import pytest
import torch
from tiny import fit, tiny_adata, tiny_cells, tiny_fcr, tiny_schema
from torch import nn

import pyro_fcr as pf
from pyro_fcr.decoders import AdditiveDecoder, NetworkDecoder
from pyro_fcr.errors import DesignError, LoadError, SlotError
from pyro_fcr.nn import Block, LabelCode

BLOCKS = (Block("a", 2), Block("b", 1))


def bound(decoder, cells, n_out=10, *, with_batch=False, seed=0):
    torch.manual_seed(seed)
    decoder.bind(BLOCKS, cells.design, torch.zeros(n_out), hidden=(8,), with_batch=with_batch)
    return decoder


def test_label_codes_by_hand():
    cells = tiny_cells(tiny_adata(combo=True), batch="lane")
    code = LabelCode(cells.design, ["treatment", "covariates", "batch"])
    labels = cells.obs()
    rows = code(cells.batch()).numpy()
    assert code.size == rows.shape[1] == 2 + 3 + 2
    for row, (_, cell) in zip(rows, labels.iterrows(), strict=True):
        parts = str(cell["drug"]).split("+")
        expected = [float(t in parts) for t in ("A", "B")]
        expected += [float(cell["type"] == x) for x in "uvw"]
        expected += [float(cell["lane"] == x) for x in cells.design.batches]
        assert row.tolist() == expected


def test_labels_the_schema_does_not_name_are_refused():
    cells = tiny_cells()
    for names in (["batch"], ["dose"]):
        with pytest.raises(SlotError, match=f"no label '{names[0]}' to read"):
            LabelCode(cells.design, names)


def test_the_network_is_linear_plus_network_and_starts_at_the_mean_profile():
    decoder = NetworkDecoder()
    start = torch.randn(4)
    decoder.bind(BLOCKS, tiny_cells().design, start, hidden=(8,), with_batch=False)
    z, batch = torch.randn(5, 3), tiny_cells().batch(slice(0, 5))
    linear = z @ decoder.linear.weight.T + start
    torch.testing.assert_close(decoder(z, batch), linear + decoder.network(z))


@pytest.mark.parametrize(
    ("parents", "with_batch", "reads"),
    [("treatment", False, {"treatment"}), ("treatment", True, {"treatment", "batch"}),
     (("covariates",), True, {"covariates", "batch"}),
     (("treatment", "covariates"), False, {"treatment", "covariates"})],
)  # fmt: skip
@pytest.mark.parametrize("kind", [NetworkDecoder, AdditiveDecoder])
def test_a_decoder_reads_the_labels_it_says_and_no_others(kind, parents, with_batch, reads):
    cells = tiny_cells(batch="lane")
    decoder = bound(kind(parents), cells, with_batch=with_batch)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter)
    assert decoder.reads == reads
    batch, z = cells.batch(slice(0, 6)), torch.randn(4, 6, 3)
    others = {
        "treatment": batch.replace(treatment=1 - batch.treatment),
        "covariates": batch.replace(covariates=(batch.covariates + 1) % 3),
        "batch": batch.replace(batch=1 - batch.batch),
    }
    assert decoder(z, batch).shape == (4, 6, 10)
    changed = {
        k
        for k, other in others.items()
        if not torch.allclose(decoder(z, batch), decoder(z, other))
    }
    assert changed == reads


def test_a_network_may_read_no_label_and_an_addition_must_read_one():
    cells = tiny_cells(batch="lane")
    assert bound(NetworkDecoder(), cells).reads == set()
    assert bound(NetworkDecoder(), cells, with_batch=True).reads == {"batch"}
    with pytest.raises(SlotError, match="no label whose effect is added"):
        bound(AdditiveDecoder(()), cells)


def test_effects_add_scale_with_dose_and_leave_controls_alone():
    cells = tiny_cells(tiny_adata(combo=True))
    decoder = bound(AdditiveDecoder("treatment"), cells)
    nn.init.normal_(decoder.table.weight)
    names = np.asarray(cells.obs()["drug"].astype(str))
    batch, z = cells.batch(), torch.randn(3)
    shift = decoder.shift(batch)
    of = {name: shift[np.flatnonzero(names == name)[0]] for name in ("ctrl", "A", "B", "A+B")}
    assert of["ctrl"].tolist() == [0, 0, 0]
    torch.testing.assert_close(of["A+B"], of["A"] + of["B"])
    double = decoder.shift(batch.replace(treatment=2 * batch.treatment))
    torch.testing.assert_close(double, 2 * shift)
    # What is decoded for the combination is what the network makes of the sum.
    row = torch.from_numpy(np.flatnonzero(names == "A+B")[:1])
    summed = decoder.network(z + of["A"] + of["B"], batch.rows(row))
    torch.testing.assert_close(decoder(z.expand(1, -1), batch.rows(row))[0], summed)


@pytest.mark.parametrize("kind", [NetworkDecoder, AdditiveDecoder])
def test_a_turn_of_the_latents_is_absorbed(kind):
    cells = tiny_cells()
    decoder = bound(kind(("treatment", "covariates")), cells).double()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter)
    batch = cells.batch(slice(0, 7))
    matrix, z = torch.randn(2, 2).double(), torch.randn(7, 3).double()
    before = decoder(z, batch)
    decoder.turn(slice(0, 2), torch.linalg.inv(matrix))
    if kind is AdditiveDecoder:
        # The latents that enter are those without the effects, which are turned beside them.
        assert not torch.allclose(decoder(z, batch), before)
    turned = torch.cat([z[:, :2] @ matrix.T, z[:, 2:]], 1)
    torch.testing.assert_close(decoder(turned, batch), before)


def test_a_decoder_of_ones_own_is_checked_and_must_be_given_again(tmp_path):
    class Mine(pf.Decoder):
        def __init__(self, n_out=20):
            super().__init__()
            self.map = nn.Linear(7, n_out)

        def forward(self, z, batch):
            return self.map(z)

    adata = tiny_adata(per_condition=6)
    fcr = tiny_fcr(adata, decoder=Mine())
    fit(fcr, max_epochs=2)
    with pytest.raises(LoadError, match=r"a Mine of the user's own.*decoder="):
        pf.load(fcr.save(tmp_path / "m"))
    again = pf.load(tmp_path / "m", decoder=Mine())
    np.testing.assert_array_equal(again.reconstruct(adata).X, fcr.reconstruct(adata).X)
    with pytest.raises(SlotError, match=r"decoder's output does not fit.*\(2, 20\)"):
        tiny_fcr(adata, decoder=Mine(19))
    with pytest.raises(SlotError, match="no decoder"):
        tiny_fcr(adata, decoder=nn.Linear(7, 20))


@pytest.mark.parametrize("kind", [NetworkDecoder, AdditiveDecoder])
def test_an_intervention_reaches_the_decoder(kind, tmp_path):
    """With latents that no label moves, all that do() changes it changes through the decoder."""
    adata = tiny_adata(per_condition=6)
    standard = {name: pf.priors.Standard() for name in ("z_x", "z_t", "z_tx")}
    fcr = tiny_fcr(adata, decoder=kind("treatment"), priors=standard)
    fit(fcr, max_epochs=3)
    cells = fcr.encode(adata)
    batch = fcr.design.do(cells, {"treatment": "A"}).batch()
    with torch.no_grad():
        z = {b.name: torch.zeros(len(batch), b.size) for b in fcr.declaration.blocks}
        expected = fcr.model.observation(z, batch).mean
        factual = fcr.model.observation(z, cells.batch()).mean
    changed = (~torch.isclose(expected, factual)).any(1).numpy()
    assert (changed == (adata.obs["drug"] != "A").to_numpy()).all()
    found = fcr.counterfactual(adata, do={"treatment": "A"}, draws=2)
    assert list(found.obs["drug"].unique()) == ["A"]
    again = pf.load(fcr.save(tmp_path / "m"))
    np.testing.assert_array_equal(
        again.counterfactual(adata, do={"treatment": "A"}, draws=2).X, found.X
    )


def test_labels_the_decoder_reads_must_be_there():
    adata = tiny_adata(per_condition=6)
    fcr = tiny_fcr(adata, decoder=NetworkDecoder("covariates"))
    fit(fcr, max_epochs=1)
    bare = adata.copy()
    del bare.obs["type"]
    assert fcr.latents(bare)["z_x"].shape == (54, 3)
    with pytest.raises(DesignError, match="read a label that the cells do not have"):
        fcr.counterfactual(bare, do={"treatment": "A"}, draws=1)


def test_the_batch_enters_where_asked():
    adata = tiny_adata(per_condition=6)
    fcr = tiny_fcr(adata, schema=tiny_schema(batch="lane"), decoder=AdditiveDecoder())
    assert fcr.model.decoder.reads == {"treatment", "covariates", "batch"}
    without = tiny_fcr(adata, schema=tiny_schema(batch="lane"), decoder=AdditiveDecoder(),
                       batch_in_decoder=False)  # fmt: skip
    assert without.model.decoder.reads == {"treatment", "covariates"}
