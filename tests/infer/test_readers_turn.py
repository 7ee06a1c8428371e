"""Whoever reads a block that is turned reads on as if nothing had happened."""

import pytest
import torch
from tiny import fit, labelled, levels_design, tiny_adata, tiny_schema

import pyro_fcr as pf
from pyro_fcr.infer.milestones import Milestones
from pyro_fcr.nn import MLP, Block
from pyro_fcr.penalties import (
    Adversary,
    CovariateHead,
    DensityRatioTC,
    PermutationDiscriminator,
    TreatmentHead,
)

BLOCKS = (Block("a", 2, frozenset()), Block("b", 3, frozenset()), Block("c", 2, frozenset()))
READERS = {
    "covariate head": CovariateHead("b", "type"),
    "treatment head": TreatmentHead(("a", "b", "c")),
    "adversary": Adversary("b", "treatment", given="type"),
    "discriminator, left": PermutationDiscriminator("b", "c", given="type"),
    "discriminator, right": PermutationDiscriminator("a", "b", given="type"),
    "discriminator, label": PermutationDiscriminator("b", "treatment", given="type"),
    "density ratio": DensityRatioTC(("c", "b")),
}


def answer(part, z, batch):
    torch.manual_seed(0)
    found = part(z, batch)
    return found.distribution.logits if hasattr(found, "distribution") else found


@pytest.mark.parametrize("part", READERS.values(), ids=READERS.keys())
def test_it_reads_the_turned_block_as_it_read_the_block(part):
    torch.manual_seed(1)
    part.bind(BLOCKS, levels_design(3, 2))
    n = 40
    batch = labelled(torch.arange(n) % 3, torch.arange(n) % 2)
    z = {block.name: torch.randn(n, block.size) for block in BLOCKS}
    before = answer(part, z, batch)
    matrix = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, -1.0], [0.5, 0.0, 1.0]])
    turned = {**z, "b": z["b"] @ matrix.T}
    assert not torch.allclose(answer(part, turned, batch), before, atol=1e-3)
    part.turn("b", torch.linalg.inv(matrix))
    part.turn("elsewhere", torch.zeros(4, 4))
    torch.testing.assert_close(answer(part, turned, batch), before, rtol=1e-4, atol=1e-5)


def test_a_linear_reader_follows_too():
    torch.manual_seed(0)
    network, x = MLP(4, 2, hidden=()), torch.randn(5, 4)
    before, matrix = network(x), torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    network.turn(slice(1, 3), torch.linalg.inv(matrix))
    x = torch.cat([x[:, :1], x[:, 1:3] @ matrix.T, x[:, 3:]], 1)
    torch.testing.assert_close(network(x), before)


def test_a_classifier_answers_as_before_when_the_gauge_is_fixed_last(monkeypatch):
    # Fixed after the last step, there is none left in which it could learn the new axes.
    adata = tiny_adata()
    schema = tiny_schema(treatment=None, control=None, batch="lane")
    model = pf.InVAE(adata, schema, sizes={"z_inv": 3, "z_spur": 2}, hidden=(16,))
    odds, align = [], Milestones.align

    def watched(self, names):
        batch = self.cells.batch()

        def read():
            with torch.no_grad():
                z = {k: q.mean for k, q in self.guide.locals.posteriors(batch).items()}
                return model.heads["type_head"](z, batch).distribution.logits, z["z_inv"]

        (before, z_before), _, (after, z_after) = read(), align(self, names), read()
        odds.append((before, after))
        assert not torch.allclose(z_before, z_after, rtol=1e-2)

    monkeypatch.setattr(Milestones, "align", watched)
    fit(model, max_epochs=20, align_at=1)
    ((before, after),) = odds
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)
