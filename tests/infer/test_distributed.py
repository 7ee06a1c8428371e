"""Two gloo processes train as one: equal weights, the whole gradient, common decisions."""

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import fit, tiny_adata, tiny_fcr
from torch import distributed, multiprocessing, nn

import pyro_fcr as pf
from pyro_fcr.infer import Ranks, Trainer, processes

pytestmark = pytest.mark.ddp
TIMEOUT = 600
"""Seconds after which a process gives up on another by itself."""

TERMS = {"z_x_vs_z_tx": 1.0, "treatment_head": 0.5}


def start(function, folder, *arguments, world=2):
    """Run a function in several processes; one that dies takes the others along."""
    multiprocessing.spawn(_joined, (function, str(folder), arguments, world), nprocs=world)


def _joined(rank, function, folder, arguments, world):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/{function.__name__}.meet", rank=rank,
        world_size=world, timeout=timedelta(seconds=TIMEOUT),
    )  # fmt: skip
    try:
        function(rank, Path(folder), *arguments)
    finally:
        distributed.destroy_process_group()


def exchange(rank, folder):
    with processes(torch.device("cpu")) as ranks:
        assert (ranks.rank, ranks.world, ranks.first) == (rank, 2, rank == 0)
        a, b = torch.full((2, 3), float(rank)), torch.tensor(3.0 * rank, dtype=torch.float64)
        ranks.average([a, b])
        assert torch.equal(a, torch.full((2, 3), 0.5))
        assert b.item() == 1.5
        assert ranks.agree({"loss": rank}) == {"loss": 0}
        assert ranks.gather(rank) == [0, 1]
        torch.manual_seed(rank)
        layer = nn.Linear(3, 2)
        ranks.copy_first(layer)
        torch.manual_seed(0)
        assert torch.equal(layer.weight, nn.Linear(3, 2).weight)
        assert ranks.seed(5) != Ranks().seed(5) or rank == 0
    assert distributed.is_initialized()


def test_processes_exchange(tmp_path):
    start(exchange, tmp_path)


class Halves:
    """One batch: all its cells, or this process's half of them."""

    n_cells = 60

    def __init__(self, cells):
        self.cells = cells

    def batches(self, *, epoch, rank=0, world=1):
        yield self.cells.batch(np.arange(self.n_cells)[rank::world], n_cells=len(self.cells))


class Deterministic(pf.Guide):
    """Point masses, so that a gradient depends on no draw."""

    def bind(self, blocks, design, likelihood, genes):
        self.blocks = tuple(blocks)
        self.features = likelihood.features
        self.maps = nn.ModuleList(nn.Linear(design.n_genes, block.size) for block in blocks)

    def forward(self, batch):
        import pyro
        import pyro.distributions as dist

        with pyro.plate("cells", batch.n_cells, subsample=batch.index):
            for block, layer in zip(self.blocks, self.maps, strict=True):
                loc = layer(self.features(batch))
                pyro.sample(block.name, dist.Normal(loc, 1e-7).to_event(1))


def one_step(folder=None, rank=0):
    from pyro_fcr.infer import Plan

    fcr = tiny_fcr(tiny_adata(), guide=Deterministic(), penalties=dict.fromkeys(OFF, 0.0))
    with processes(torch.device("cpu")) as ranks:
        trainer = Trainer(fcr._objective, Plan(1), ranks=ranks)
        trainer.fit(Halves(fcr.cells), progress=False)
    weights = {k: v.clone() for k, v in fcr._objective.state_dict().items()}
    grads = {k: p.grad.clone() for k, p in fcr._objective.named_parameters() if p.grad is not None}
    return weights, grads, float(trainer.history["loss"].iloc[-1])


OFF = ("z_x_vs_treatment", "z_t_vs_type")


def step_of_two(rank, folder):
    torch.save(one_step(), folder / f"step{rank}.pt")


@pytest.mark.slow
def test_two_halves_make_the_step_of_the_whole(tmp_path):
    start(step_of_two, tmp_path)
    weights, grads, loss = one_step()
    for rank in range(2):
        theirs = torch.load(tmp_path / f"step{rank}.pt")
        assert theirs[2] == pytest.approx(loss, rel=1e-5)
        for name, grad in grads.items():
            torch.testing.assert_close(theirs[1][name], grad, rtol=1e-3, atol=1e-3)
    first, second = (torch.load(tmp_path / f"step{rank}.pt")[0] for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in weights)


def train(rank, folder, name, options, broken_at):
    adata = tiny_adata()
    fcr = tiny_fcr(adata, penalties=TERMS)
    if broken_at is not None:
        step = Trainer.step

        def stepping(self, batch):
            if self.step_count == broken_at and rank == 1:
                os._exit(9)
            return step(self, batch)

        Trainer.step = stepping
    split = pf.splits.random(adata, test=0.2, valid=0.2, seed=0)
    fit(fcr, split=split, checkpoint=folder / "run.safetensors", seed=1, **options)
    torch.save((fcr._objective.state_dict(), fcr.history), folder / f"{name}{rank}.pt")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def read(folder, name):
    return [torch.load(folder / f"{name}{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_the_run_resumes(tmp_path):
    options = {"max_epochs": 6}
    start(train, tmp_path, "whole", options, None)
    (first, history), (second, other) = read(tmp_path, "whole")
    assert same(first, second)
    pd.testing.assert_frame_equal(history.drop(columns="seconds"), other.drop(columns="seconds"))
    assert {"valid.loss", "accuracy.z_x_vs_z_tx"} <= set(history)

    for path in (tmp_path / "run.safetensors", tmp_path / "train.meet"):
        path.unlink(missing_ok=True)
    began = time.monotonic()
    with pytest.raises(Exception, match=r"terminated with exit code 9|closed|reset"):
        start(train, tmp_path, "broken", options, 9)
    assert time.monotonic() - began < TIMEOUT / 2
    assert not list(tmp_path.glob("broken*.pt"))

    (tmp_path / "train.meet").unlink(missing_ok=True)
    start(train, tmp_path, "resumed", {**options, "resume": True}, None)
    for weights, table in read(tmp_path, "resumed"):
        assert same(weights, first)
        pd.testing.assert_frame_equal(
            table.drop(columns="seconds"), history.drop(columns="seconds")
        )


@pytest.mark.slow
def test_stopping_early_is_agreed(tmp_path, monkeypatch):
    start(stopping, tmp_path)
    (first, history), (second, other) = read(tmp_path, "stopped")
    assert len(history) == len(other) < 40
    assert same(first, second)


def stopping(rank, folder):
    from pyro_fcr.infer import Settled

    Settled.__init__.__kwdefaults__.update(patience=2, tolerance=10.0)
    train(rank, folder, "stopped", {"max_epochs": 40, "early_stopping": True, "align_at": 2}, None)


@pytest.mark.slow
def test_torchrun_on_the_command_line(tmp_path):
    tiny_adata().write_h5ad(tmp_path / "a.h5ad")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "pyro_fcr", "fit", str(tmp_path / "a.h5ad"), "--treatment", "drug",
        "--control", "ctrl", "--covariate", "type", "--max-epochs", "2", "--batch-size", "64",
        "--device", "cpu", "--stream", "--resume", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(pf.__file__).parents[1])
    }  # fmt: skip
    done = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        said, complaint = done.communicate(timeout=300)
    finally:
        if done.poll() is None:
            done.send_signal(signal.SIGTERM)
    assert done.returncode == 0, complaint
    assert said.split() == [str(tmp_path / "run")], "the first process alone speaks"
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    # 216 cells, 108 a process, 32 of them a step.
    assert history["step"].tolist() == [4, 8]
    assert pf.load(tmp_path / "run").latents(tmp_path / "a.h5ad")["z_x"].shape == (216, 8)
