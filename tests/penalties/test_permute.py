"""Permutations within groups, and the groups of several labels together."""

from collections import Counter

import pytest
import torch
from scipy.stats import chisquare
from tiny import labelled

from pyro_fcr.penalties import permute_within
from pyro_fcr.penalties.base import Label


@pytest.mark.parametrize(
    "groups",
    [[0] * 50, [3, 1, 3, 3, 1, 7], [-1, 0, -1, 2], [5], [], list(range(9))],
    ids=["one", "mixed", "unknown", "single", "none", "all singles"],
)
def test_it_is_a_permutation_within_groups(groups):
    groups = torch.tensor(groups, dtype=torch.int64)
    for _ in range(20):
        permutation = permute_within(groups)
        assert sorted(permutation.tolist()) == list(range(len(groups)))
        assert torch.equal(groups[permutation], groups)


def test_groups_of_one_stay():
    groups = torch.tensor([0, 1, 0, 2, 0])
    for _ in range(20):
        assert permute_within(groups)[[1, 3]].tolist() == [1, 3]


def test_every_permutation_is_as_likely():
    # Groups {0, 2, 4} and {1, 3}: 3! × 2! = 12 outcomes.
    groups = torch.tensor([8, 2, 8, 2, 8])
    counts = Counter(tuple(permute_within(groups).tolist()) for _ in range(6000))
    assert len(counts) == 12
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_groups_of_several_labels_by_hand():
    # Two levels by three: the first label changes slowest, and what either does not know is -1.
    joint = Label("both", 6, parts=(Label("a", 2, column=0), Label("b", 3, column=1)))
    pairs = [[0, 0], [0, 2], [1, 0], [1, 2], [-1, 1], [1, -1]]
    batch = labelled([0] * 6, [0] * 6).replace(covariates=torch.tensor(pairs))
    assert joint.of(batch).tolist() == [0, 2, 3, 5, -1, -1]
    rows = joint.one_hot(batch)
    assert rows.sum(1).tolist() == [1, 1, 1, 1, 0, 0]
    assert rows[:4].argmax(1).tolist() == [0, 2, 3, 5]
