"""Schedules by hand."""

import pytest

from pyro_fcr.errors import FitError
from pyro_fcr.infer import Plan, Settled


def test_one_cycle_rises_linearly_and_falls_along_a_cosine():
    plan = Plan(100, learning_rate=2.0, rise=0.1)
    assert plan.rate(0) == pytest.approx(0.2)
    assert plan.rate(4) == pytest.approx(1.0)
    assert plan.rate(9) == plan.rate(10) == pytest.approx(2.0)
    assert plan.rate(55) == pytest.approx(1.0)
    assert plan.rate(99) < 0.002
    assert all(plan.rate(s + 1) < plan.rate(s) for s in range(10, 99))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_have_positive_rates(steps):
    plan = Plan(steps)
    assert all(plan.rate(s) > 0 for s in range(steps))


def test_warm_ups_are_fractions_of_the_steps():
    plan = Plan(200, kl_warmup=0.1, penalty_warmup=0.5)
    assert [plan.kl_weight(s) for s in (0, 9, 19, 199)] == pytest.approx([0.05, 0.5, 1, 1])
    assert [plan.ramp(s) for s in (0, 49, 99, 199)] == pytest.approx([0.01, 0.5, 1, 1])
    none = Plan(200, kl_warmup=0.0, penalty_warmup=0.0)
    assert none.kl_weight(0) == none.ramp(0) == 1.0


def test_no_steps_are_refused():
    with pytest.raises(FitError, match=r"nothing to train \(fit\): expected at least one step"):
        Plan(0)


def test_settled_waits_for_every_quantity():
    settled = Settled(patience=2, tolerance=0.1)
    a = [10.0, 5.0, 5.0, 5.1, 5.0, 5.0]
    b = [1.0, 1.0, 1.0, 1.0, 2.0, 2.0]
    seen = [settled.update({"kl.a": x, "kl.b": y}) for x, y in zip(a, b, strict=True)]
    # Rows 1 to 3 are the first three in which neither moved by a tenth.
    assert seen == [False, False, False, True, True, True]


def test_settled_on_a_slow_drift_of_one_block():
    settled = Settled(patience=3, tolerance=0.05)
    assert not any(settled.update({"kl.a": 4.0, "kl.b": 1.0 + 0.1 * i}) for i in range(10))


def test_a_collapsed_block_counts_as_settled():
    settled = Settled(patience=1, tolerance=0.1)
    settled.update({"kl.a": 1e-5})
    assert settled.update({"kl.a": 3e-5})


def test_a_head_start_ends_after_a_tenth_of_the_steps():
    plan = Plan(200, head_start=5.0)
    assert [plan.price(s) for s in (0, 5, 10, 20, 199)] == pytest.approx([5, 4, 3, 1, 1])
    assert {Plan(200, head_start=1.0).price(s) for s in range(200)} == {1.0}
