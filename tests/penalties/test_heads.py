"""Heads, and the controls they compare with."""

import pytest
import torch
from scipy.stats import chisquare
from tiny import labelled, tiny_cells

from pyro_fcr.nn import Block
from pyro_fcr.penalties import CovariateHead, TreatmentHead, match_controls

BLOCKS = (
    Block("z_x", 2, frozenset()),
    Block("z_t", 2, frozenset()),
    Block("z_tx", 3, frozenset()),
)


def test_matches_are_controls_of_the_same_group():
    torch.manual_seed(0)
    for _ in range(30):
        n = 200
        batch = labelled(torch.randint(0, 4, (n,)).tolist(), torch.randint(-1, 5, (n,)).tolist())
        match = match_controls(batch)
        assert match.dtype == torch.int64
        assert match.shape == (n,)
        has = torch.tensor([
            ((batch.covariate_id == g) & (batch.treatment_id == 0) & (torch.arange(n) != i)).any()
            for i, g in enumerate(batch.covariate_id)
        ])  # fmt: skip
        assert torch.equal(match >= 0, has)
        assert (match != torch.arange(n)).all()
        found = match[has]
        assert (batch.treatment_id[found] == 0).all()
        assert torch.equal(batch.covariate_id[found], batch.covariate_id[has])


@pytest.mark.parametrize("treatment", [[1, 2, 1], [-1, 1, 2]])
def test_no_controls_no_match(treatment):
    assert match_controls(labelled(treatment, [0, 1, 0])).tolist() == [-1, -1, -1]


def test_the_group_without_a_control_gets_none():
    batch = labelled([0, 1, 1, 2], [4, 4, 0, 9])
    assert match_controls(batch).tolist() == [-1, 0, -1, -1]


def test_a_control_is_not_its_own_match():
    batch = labelled([0, 0, 1, 0], [1, 1, 1, 2])
    for _ in range(50):
        match = match_controls(batch).tolist()
        assert match[:2] == [1, 0]
        assert match[2] in (0, 1)
        assert match[3] == -1


def test_every_control_is_as_likely():
    batch = labelled([1, 0, 0, 2, 0, 0], [3, 3, 3, 3, 3, 0])
    picks = torch.stack([match_controls(batch) for _ in range(3000)])
    assert (picks[:, 5] == -1).all()
    for cell, others in {0: [1, 2, 4], 1: [2, 4], 2: [1, 4], 4: [1, 2]}.items():
        counts = torch.bincount(picks[:, cell], minlength=6).tolist()
        assert [i for i, n in enumerate(counts) if n] == others
        assert chisquare([counts[i] for i in others]).pvalue > 1e-3


@pytest.fixture(scope="module")
def cells():
    return tiny_cells()


def draws(n):
    return {block.name: torch.randn(n, block.size) for block in BLOCKS}


def test_covariate_head_reads_its_block_alone(cells):
    head = CovariateHead("z_x")
    head.bind(BLOCKS, cells.design)
    batch, z = cells.batch(slice(0, 9)), draws(9)
    reading = head(z, batch)
    assert reading.distribution.batch_shape == (9,)
    torch.testing.assert_close(
        reading.distribution.log_prob(reading.value),
        head.classifier(z["z_x"]).log_softmax(-1).gather(1, batch.covariate_id[:, None])[:, 0],
    )
    other = head(z | {"z_t": z["z_t"] + 1, "z_tx": z["z_tx"] * 2}, batch)
    torch.testing.assert_close(reading.distribution.logits, other.distribution.logits)
    unknown = batch.replace(covariate_id=torch.full((9,), -1))
    assert not head(z, unknown).mask.any()
    assert head(z, batch).mask.all()


def test_treatment_head_reads_the_change_against_control(cells):
    head = TreatmentHead(("z_t", "z_tx"))
    head.bind(BLOCKS, cells.design)
    # One control of one type, so that the match is known.
    keep = (cells.covariate_id == 0) & (cells.treatment_id > 0)
    control = (cells.covariate_id == 0) & (cells.treatment_id == 0)
    rows = [*control.nonzero()[0][:1], *keep.nonzero()[0][:8]]
    batch, z = cells.batch(rows), draws(9)
    reading = head(z, batch)
    both = torch.cat([z["z_t"], z["z_tx"]], -1)
    expected = head.classifier(both - both[0]).log_softmax(-1)
    torch.testing.assert_close(reading.distribution.logits, expected)
    assert torch.equal(reading.value, batch.treatment_id)
    assert reading.mask.tolist() == [False] + [True] * 8
    # A shift common to all cells, which no treatment explains, changes nothing.
    moved = head(z | {"z_t": z["z_t"] + 5}, batch)
    torch.testing.assert_close(moved.distribution.logits, expected, rtol=1e-4, atol=1e-4)
    assert not head(z, batch.replace(treatment_id=batch.treatment_id + 1)).mask.any()


def test_a_control_with_another_to_compare_with_counts_and_an_unknown_treatment_does_not():
    head = TreatmentHead(("z_t",))
    head.bind(BLOCKS, tiny_cells().design)
    batch = labelled([0, 0, 1, 2, -1, 0], [0, 0, 0, 1, 0, 2])
    reading = head({"z_t": torch.randn(6, 2)}, batch)
    assert reading.mask.tolist() == [True, True, True, False, False, False]
    assert reading.value.tolist() == [0, 0, 1, 2, 0, 0]
