"""The gradient-reversal adversary: signs, strata, and what it does to a planted leak."""

import math

import pytest
import torch
from tiny import fit, labelled, levels_design, tiny_adata, tiny_fcr
from torch.nn import functional as F

from pyro_fcr.errors import SlotError
from pyro_fcr.nn import Block
from pyro_fcr.penalties import Adversary, reverse_gradient

BLOCKS = (Block("a", 2), Block("b", 1))


def bound(**options):
    torch.manual_seed(0)
    made = Adversary("a", **{"label": "treatment", "width": 8, "depth": 1, **options})
    made.bind(BLOCKS, levels_design(2, 2))
    return made


def test_the_sign_and_nothing_else_is_reversed():
    x = torch.randn(3, 2, requires_grad=True)
    y = reverse_gradient(x)
    assert torch.equal(x, y)
    weight = torch.randn(3, 2)
    (y * weight).sum().backward()
    assert torch.equal(x.grad, -weight)


def test_the_classifier_descends_and_the_encoder_climbs():
    adversary, batch = bound(), labelled([0, 1, 0, 1], [0, 0, 1, 1])
    z = torch.randn(4, 2, requires_grad=True)
    value = adversary({"a": z}, batch)
    value.backward()
    plain = z.detach().clone().requires_grad_()
    given = torch.ones(4, 1)
    logits = adversary.classifier(torch.cat([plain, given], 1))
    expected = F.cross_entropy(logits, batch.treatment_id)
    own = torch.autograd.grad(expected, [plain, *adversary.classifier.parameters()])
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(z.grad, -own[0])
    for parameter, gradient in zip(adversary.classifier.parameters(), own[1:], strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_cells_of_an_unknown_group_do_not_count():
    adversary, z = bound(), torch.randn(4, 2)
    some = adversary({"a": z}, labelled([0, 1, -1, -1], [0, 0, 1, 1]))
    torch.testing.assert_close(some, adversary({"a": z[:2]}, labelled([0, 1], [0, 0])))
    assert adversary({"a": z}, labelled([-1] * 4, [0] * 4)) == 0


def trained(adversary, z, batch, steps=300):
    search = torch.optim.Adam(adversary.parameters(), lr=0.02)
    for _ in range(steps):
        search.zero_grad()
        value = adversary({"a": z}, batch)
        value.backward()
        search.step()
    return float(value.detach())


def test_at_its_best_it_is_the_entropy_left_in_the_label():
    torch.manual_seed(0)
    label = torch.randint(2, (600,))
    batch = labelled(label, torch.zeros(600, dtype=torch.long))
    silent, telling = torch.randn(600, 2), torch.randn(600, 2)
    telling[:, 0] += 6.0 * label
    assert trained(bound(), silent, batch) == pytest.approx(math.log(2), abs=0.03)
    assert trained(bound(), telling, batch) < 0.1


def test_what_the_stratum_tells_is_not_held_against_the_block():
    """The label follows the stratum, and the block follows the stratum alone."""
    torch.manual_seed(0)
    stratum = torch.randint(2, (800,))
    label = torch.where(torch.rand(800) < 0.9, stratum, 1 - stratum)
    batch = labelled(label, stratum)
    z = torch.randn(800, 2) * 0.3 + stratum[:, None]
    noise = torch.randn(800, 2)
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    within = bound(given="covariates")
    assert trained(within, z, batch) == pytest.approx(entropy, abs=0.04)
    assert trained(bound(given="covariates"), noise, batch) == pytest.approx(entropy, abs=0.04)
    assert trained(bound(), noise, batch) == pytest.approx(math.log(2), abs=0.04)


def test_it_takes_the_label_out_and_leaves_the_rest():
    """Two gains that would rather be 1: the one on what tells the label gives way."""
    torch.manual_seed(0)
    batch = labelled(label := torch.randint(2, (400,)), torch.zeros(400, dtype=torch.long))
    x = torch.stack([2.0 * label - 1, torch.randn(400)], 1)
    gains = {}
    for weight in (0.0, 3.0):
        adversary, gain = bound(), torch.ones(2, requires_grad=True)
        search = torch.optim.Adam([gain, *adversary.parameters()], lr=0.01)
        for _ in range(400):
            z = x * gain + 0.3 * torch.randn(400, 2)
            search.zero_grad()
            ((gain - 1).square().sum() + weight * adversary({"a": z}, batch)).backward()
            search.step()
        gains[weight] = gain.detach()
    assert gains[0.0].tolist() == pytest.approx([1.0, 1.0])
    assert abs(float(gains[3.0][0])) < 0.5
    assert float(gains[3.0][1]) == pytest.approx(1.0, abs=0.15)


def test_it_is_a_term_of_any_system():
    adata = tiny_adata(per_condition=6)
    fcr = tiny_fcr(adata, penalties={"leak": (Adversary("z_x", "treatment"), 2.0)})
    history = fit(fcr, max_epochs=1)
    assert history["leak"].item() == pytest.approx(math.log(3), abs=0.7)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"label": "dose"}, "a penalty reads 'dose'"),
        ({"given": "a"}, "a penalty reads 'a'"),
        ({"label": "batch"}, "'batch' has nothing to tell"),
    ],
)
def test_labels_without_groups_are_refused(options, match):
    with pytest.raises(SlotError, match=match):
        bound(**options)
