"""A recorded step: its buffers, its fall-back, and on a CUDA device that it is the same step."""

import logging
from contextlib import contextmanager

import pytest
import torch
from tiny import fit, tiny_adata, tiny_cells, tiny_fcr

import pyro_fcr as pf
from pyro_fcr.data import MemorySource
from pyro_fcr.infer import Plan, Trainer
from pyro_fcr.infer.captured import SHAPES, WARM_UP, CapturedStep

TERMS = {"z_x_vs_z_tx": 1.0, "z_t_vs_z_tx": 0.5, "covariate_head": 0.5, "treatment_head": 0.5}


def tape(function):
    """Stand in for a CUDA graph: keep the function and its buffers, run it when replayed."""
    result = {}
    return lambda: result.update(function()), result


def batches(n=8, size=10):
    cells = tiny_cells()
    return [cells.batch(slice(size * i, size * (i + 1))) for i in range(n)]


def test_a_replay_reads_what_was_loaded():
    addresses = set()

    def advance(batch, values):
        addresses.add((batch.counts.data_ptr(), values["rate"].data_ptr()))
        return {"sum": batch.counts.sum() * values["rate"]}

    step = CapturedStep(advance, record=tape)
    given = batches(9)
    for i, batch in enumerate(given):
        if i == WARM_UP:
            addresses.clear()
        kept = batch.counts.clone()
        found = step(batch, {"rate": 0.5 * i})["sum"]
        torch.testing.assert_close(found, kept.sum() * 0.5 * i)
        assert torch.equal(batch.counts, kept), "a user's batch is not written to"
    assert len(addresses) == 1, "all replays read one set of buffers"


def test_each_size_has_its_recording_up_to_a_few():
    made = []

    def record(function):
        made.append(function)
        return tape(function)

    step = CapturedStep(lambda batch, values: {"n": torch.tensor(len(batch))}, record=record)
    cells = tiny_cells()
    for size in range(1, SHAPES + 3):
        for _ in range(WARM_UP + 2):
            assert step(cells.batch(slice(size)), {})["n"] == size
    assert len(made) == SHAPES


def test_what_cannot_be_recorded_runs_as_it_is_and_says_so_once(caplog):
    def refuse(function):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    aside = []

    @contextmanager
    def noted():
        aside.append(1)
        yield

    def advance(batch, values):
        return {"n": torch.tensor(float(len(batch))) * values["rate"]}

    step = CapturedStep(advance, record=refuse, aside=noted)
    with caplog.at_level(logging.WARNING):
        for batch in batches():
            assert step(batch, {"rate": 2.0})["n"] == 20
    said = [r.getMessage() for r in caplog.records]
    expected = (
        "cannot be recorded and runs as it is: operation not permitted when stream is captur"
    )
    assert len(said) == 1
    assert expected in said[0]
    assert len(aside) == 8


def run(how):
    fcr = tiny_fcr(tiny_adata(), penalties=TERMS)
    trainer = Trainer(fcr._objective, Plan(20, kl_warmup=0.5), seed=3)
    assert trainer.captured is None, "never on a CPU"
    if how is not None:
        trainer.captured = CapturedStep(trainer._advance, record=how)
    history = trainer.fit(MemorySource(fcr.cells, batch_size=50, seed=1), progress=False)
    return fcr._objective.state_dict(), history


def test_a_training_run_through_the_buffers_is_the_same_run():
    # 216 cells in fives of 43 and 44: two recordings, in an order that changes.
    (plain, expected), (replayed, found) = run(None), run(tape)
    for name, value in plain.items():
        torch.testing.assert_close(replayed[name], value, rtol=1e-4, atol=1e-4)
    columns = [c for c in expected if c != "seconds"]
    torch.testing.assert_close(
        torch.tensor(found[columns].to_numpy()),
        torch.tensor(expected[columns].to_numpy()),
        rtol=1e-3, atol=1e-3,
    )  # fmt: skip


@pytest.mark.gpu
def test_on_cuda_the_replayed_run_is_the_eager_run():
    histories = []
    for captured in (True, False):
        fcr = tiny_fcr(tiny_adata(), penalties=TERMS)
        trainer = Trainer(fcr._objective, Plan(40), seed=3, device=torch.device("cuda"))
        if not captured:
            trainer.captured = None
        source = MemorySource(fcr.cells, batch_size=54, seed=1)
        histories.append(trainer.fit(source, progress=False))
        if captured:
            assert trainer.captured._recorded
            assert not trainer.captured.refused
    a, b = (history["loss"].iloc[-3:].mean() for history in histories)
    assert a == pytest.approx(b, rel=0.02)


@pytest.mark.gpu
def test_on_cuda_random_numbers_advance_between_replays():
    fcr = tiny_fcr(tiny_adata())
    trainer = Trainer(fcr._objective, Plan(10**6, learning_rate=0.0), device=torch.device("cuda"))
    batch = fcr.cells.batch(slice(64)).to("cuda")
    losses = [float(trainer.step(batch)["loss"]) for _ in range(12)]
    assert len(set(losses[WARM_UP + 1 :])) == len(losses) - WARM_UP - 1


@pytest.mark.gpu
def test_on_cuda_a_part_that_asks_the_device_falls_back(caplog):
    class Asks(pf.Penalty):
        def forward(self, z, batch):
            return z["z_x"].square().mean() * (1.0 if z["z_x"].sum().item() > 0 else 0.5)

    fcr = tiny_fcr(tiny_adata(), penalties={"own": (Asks(), 1.0)})
    with caplog.at_level(logging.WARNING):
        history = fit(fcr, max_epochs=4, device="cuda")
    assert "cannot be recorded" in caplog.text
    assert history["loss"].notna().all()
