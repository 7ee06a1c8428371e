"""Conditional HSIC: nothing where there is nothing, plenty where a shift was planted."""

import numpy as np
import pytest
import torch
from tiny import labelled as batch_of
from tiny import levels_design, tiny_cells

from pyro_fcr.errors import SlotError
from pyro_fcr.nn import Block
from pyro_fcr.penalties import ConditionalHSIC, hsic

BLOCKS = (Block("z", 3, frozenset()),)


def penalty(n_label=2, n_stratum=3, size=3):
    made = ConditionalHSIC("z", "treatment", given="covariates")
    made.bind((Block("z", size, frozenset()),), levels_design(n_label, n_stratum))
    return made


def balanced(n=50, n_label=2, n_stratum=3):
    label = torch.arange(n_label).repeat_interleave(n).repeat(n_stratum)
    return batch_of(label, torch.arange(n_stratum).repeat_interleave(n * n_label))


def test_close_to_zero_without_dependence():
    batch, made = balanced(), penalty()
    values = torch.stack([made({"z": torch.randn(300, 3)}, batch) for _ in range(100)])
    planted = torch.randn(300, 3) + batch.treatment_id[:, None]
    assert (values >= 0).all()
    assert float(values.mean()) < 0.05 * float(made({"z": planted}, batch))


@pytest.mark.parametrize(("n", "n_label"), [(50, 2), (8, 2), (20, 4)])
def test_unbiased_under_independence(n, n_label):
    batch, made = balanced(n, n_label), penalty(n_label)
    label, stratum, draws = batch.treatment_id, batch.covariate_id, 400
    values = [made._criterion(torch.randn(len(batch), 3), label, stratum) for _ in range(draws)]
    parts = torch.stack(values).numpy()
    # In units of the criterion's own spread; whitening by labels leaves a little in tiny strata.
    assert (np.abs(parts.mean(0) / parts.std(0)) < 0.25 + 4 / np.sqrt(draws)).all()


@pytest.mark.parametrize("shift", [1.0, 1e-3])
def test_a_shift_is_seen_however_small_beside_the_other_directions(shift):
    # z moves by the shift along one direction in which it hardly varies.
    batch, made = balanced(), penalty()
    z = torch.randn(300, 3)
    z[:, 0] *= shift / 2
    null = float(made({"z": z}, batch))
    z[:, 0] += shift * batch.treatment_id
    assert float(made({"z": z}, batch)) > 20 * max(null, 0.01)


def test_a_shift_hidden_between_correlated_directions_is_seen():
    # The two coordinates agree to 5 %: only their difference tells the label.
    batch, made = balanced(100), penalty()
    base = torch.randn(600, 1)
    z = torch.cat([base, base + 0.3 * torch.randn(600, 1), torch.randn(600, 1)], 1)
    null = float(made({"z": z}, batch))
    z[:, 1] += 0.3 * batch.treatment_id
    assert float(made({"z": z}, batch)) > 10 * max(null, 0.01)


def test_a_change_of_spread_is_seen_by_the_gaussian_kernels():
    batch, made = balanced(200), penalty()
    z = torch.randn(1200, 3)
    null = float(made({"z": z}, batch))
    z = z * (1 + 2 * batch.treatment_id[:, None])
    assert float(made({"z": z}, batch)) > 10 * max(null, 0.01)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_invariant_to_scale_and_offset(scale):
    batch, made = balanced(), penalty()
    z = torch.randn(300, 3, dtype=torch.float64) + 0.5 * batch.treatment_id[:, None]
    per_dimension = torch.tensor([1.0, scale, 1 / scale], dtype=torch.float64)
    torch.testing.assert_close(
        made({"z": z * scale + 7}, batch), made({"z": z}, batch), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(
        made({"z": z * per_dimension}, batch), made({"z": z}, batch), rtol=1e-4, atol=1e-6
    )


def test_dependence_that_the_stratum_explains_is_not_counted():
    rng = np.random.default_rng(0)
    stratum = np.repeat([0, 1, 2], 200)
    label = (rng.random(600) < np.array([0.1, 0.5, 0.9])[stratum]).astype(int)
    batch = batch_of(label, stratum)
    z = torch.tensor(rng.normal(size=(600, 3)) + 4 * stratum[:, None], dtype=torch.float32)
    conditional = float(penalty()({"z": z}, batch))
    marginal = float(penalty(n_stratum=1)({"z": z}, batch_of(label, stratum * 0)))
    assert conditional < 0.02 * marginal


def test_opposite_shifts_in_two_strata_add_up():
    # Marginally nothing moves; within each stratum everything does.
    batch = balanced(100, n_stratum=2)
    z = torch.randn(400, 3)
    z[:, 0] += (2.0 * batch.treatment_id - 1) * (2.0 * batch.covariate_id - 1)
    conditional = float(penalty(n_stratum=2)({"z": z}, batch))
    marginal = batch_of(batch.treatment_id, batch.covariate_id * 0)
    assert conditional > 20 * max(0.01, float(penalty(n_stratum=1)({"z": z}, marginal)))


def test_the_linear_part_by_hand():
    # One stratum, two labels of four cells, one dimension: w = z / s with s the pooled standard
    # deviation within label (the ridge does nothing to a 1 × 1 correlation of one), w̃ centred;
    # the label's kernel is +1 within a label and -1 across, hence -1/7 in the mean over pairs.
    # (1/B)(1/n) Σ_{i≠j} (l_ij + 1/7) w̃_i w̃_j.
    z = np.array([0.0, 1, 2, 3, 4, 4, 6, 8])
    label = np.repeat([0, 1], 4)
    residual = z - np.repeat([1.5, 5.5], 4)
    w = z / np.sqrt((residual**2).sum() / (8 - 2))
    w = w - w.mean()
    sign = np.where(label == 0, 1, -1)
    kernel = (np.outer(sign, sign) + 1 / 7) * np.outer(w, w)
    expected = (kernel.sum() - np.trace(kernel)) / 8 / 8
    made = penalty(2, 1, size=1)
    values = torch.tensor(z)[:, None]
    linear, _ = made._criterion(values, torch.tensor(label), torch.tensor(label * 0))
    assert float(linear) == pytest.approx(expected, rel=1e-6)


def test_following_the_gradient_removes_the_dependence():
    batch, made = balanced(), penalty()
    z = (torch.randn(300, 3) + batch.treatment_id[:, None]).requires_grad_()
    start = made({"z": z}, batch).item()
    optimiser = torch.optim.Adam([z], lr=0.02)
    for _ in range(100):
        loss = made({"z": z}, batch)
        optimiser.zero_grad()
        loss.backward()
        assert torch.isfinite(z.grad).all()
        optimiser.step()
    assert made({"z": z}, batch).item() < 0.02 * start


@pytest.mark.parametrize(
    "case", ["one label", "singletons", "two cells", "constant block", "groups of one"]
)
def test_degenerate_batches_are_finite(case):
    made, n = penalty(3, 3), 30
    label, stratum = torch.arange(n) % 3, torch.arange(n) // 10
    z = torch.randn(n, 3)
    if case == "one label":
        label = label * 0
    elif case == "singletons":
        label, stratum, z = label[:3], torch.arange(3), z[:3]
    elif case == "two cells":
        label, stratum, z = label[:2], stratum[:2], z[:2]
    elif case == "groups of one":
        # No spread within groups to whiten by: the distances are all there is, and huge.
        label, stratum, z = label[:9], torch.arange(9) // 3, 100 * z[:9]
    else:
        z = torch.ones(n, 3)
    z.requires_grad_()
    value = made({"z": z}, batch_of(label, stratum))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(z.grad).all()
    if case != "two cells":
        assert value.item() == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    ("block", "label", "given"),
    [("q", "treatment", "covariates"), ("z", "z", "covariates"), ("z", "treatment", "dose")],
)
def test_unknown_variables_are_refused(block, label, given):
    with pytest.raises(SlotError, match="a penalty reads"):
        ConditionalHSIC(block, label, given=given).bind(BLOCKS, tiny_cells().design)


def test_it_reads_means():
    assert ConditionalHSIC.reads == "mean"
    assert hsic.RIDGE < 0.1


def test_the_written_out_gradient_is_the_gradient():
    from pyro_fcr.penalties.hsic import _PairSums

    values = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    pairs = torch.randn(7, 7, dtype=torch.float64)
    pairs = (pairs + pairs.T).fill_diagonal_(0.0)
    pairs[:3, 3:] = pairs[3:, :3] = 0.0
    runs = [slice(0, 3), slice(3, 7)]

    def sums(values):
        return _PairSums.apply(values, lambda run: pairs[run, run].contiguous(), runs)

    assert torch.autograd.gradcheck(sums, values)
    distances = torch.cdist(values, values).square()
    kernels = sum(torch.exp(-distances / (w * 3)) for w in (4, 2, 1)) / 3
    expected = torch.stack([(pairs * (values @ values.T)).sum(), (pairs * kernels).sum()])
    torch.testing.assert_close(sums(values), expected)


def test_runs_are_whole_strata():
    sizes = torch.tensor([100.0, 0.0, 50.0, 200.0, 3.0, 0.0])
    assert hsic._runs(sizes) == [slice(0, 150), slice(150, 350), slice(350, 353)]
    assert hsic._runs(torch.tensor([128.0, 0.0])) == [slice(0, 128)]


def test_conditions_that_no_cell_of_the_batch_has_cost_no_products():
    from torch.utils.flop_counter import FlopCounterMode

    batch, z = balanced(20), torch.randn(120, 3)
    values, products = [], []
    for n in (4, 60):
        with FlopCounterMode(display=False) as counter:
            values.append(penalty(n, n)({"z": z}, batch))
        products.append(counter.get_total_flops())
    assert products[0] == products[1] > 0
    torch.testing.assert_close(values[0], values[1])


def test_every_group_costs_a_degree_of_freedom_also_one_of_a_single_cell(monkeypatch):
    told, whiten = [], hsic._whiten
    monkeypatch.setattr(
        hsic, "_whiten", lambda *given: (told.append(int(given[2])), whiten(*given))[1]
    )
    # Stratum 0: labels of three cells and of one; stratum 1: of four and of one.
    label, stratum = torch.tensor([0, 0, 0, 1, 0, 0, 0, 0, 1]), torch.tensor([0] * 4 + [1] * 5)
    penalty(2, 2)({"z": torch.randn(9, 3)}, batch_of(label, stratum))
    assert told == [9 - 4]
