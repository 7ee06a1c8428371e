"""Speed and memory on a CPU, as ratios measured in one run.

    python benchmarks/speed.py step      # FCR beside scvi-tools and plain torch, interleaved
    python benchmarks/speed.py epochs    # both as a user calls them: fit and train
    python benchmarks/speed.py growth    # in cells per step, genes, latents, conditions
    python benchmarks/speed.py bound     # against measured rates of products, copies, functions
    python benchmarks/speed.py quality   # from a cold start to the factors of F-cond
    python benchmarks/speed.py stream    # from disk: rate and peak memory
    python benchmarks/speed.py data      # sources of minibatches alone
    python benchmarks/speed.py ranks     # one process beside two, held-out loss
    python benchmarks/speed.py picture   # draws what the CSV files hold

Every comparison alternates its candidates within one process and takes medians of ratios, since
other work may share the machine; times are CPU seconds of the process with one thread, and wall
seconds beside them. scvi-tools is optional (`pip install 'pyro-fcr[bench]'`): without it its rows
are left out. Data: independent negative-binomial-like counts, 10 % of them non-zero.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pyro
import torch
from _common import RESULTS, table
from plain import PlainTrainer, check
from scipy import sparse

import pyro_fcr as pf
from pyro_fcr.benchmark.config import read_config
from pyro_fcr.benchmark.problem import load
from pyro_fcr.benchmark.tasks import TASKS
from pyro_fcr.data import StreamSource, open_source
from pyro_fcr.infer import Plan, Trainer
from pyro_fcr.nonzeros import nonzeros

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FULL = {"z_x_vs_z_tx": 1.0, "z_t_vs_z_tx": 1.0, "covariate_head": 1.0, "treatment_head": 1.0}
SCHEMA = pf.Schema(treatment="treatment", control="control", covariates="covariate")
RELEASED = {"one decode": 1400, "thirty decodes": 105}
"""Cells per CPU second of the released FCR at 2,000 genes, its crashes mended; not run here."""


def simulate(
    n_cells: int, n_genes: int, *, density: float = 0.1, groups: int = 7, seed: int = 0
) -> ad.AnnData:
    """Return counts of which a given share is not zero."""
    rng = np.random.default_rng(seed)
    profile = rng.lognormal(0, 1.5, n_genes)
    low, high = 1e-6, 1e6
    for _ in range(60):
        middle = np.sqrt(low * high)
        below = -np.expm1(-profile * middle).mean() < density
        low, high = (middle, high) if below else (low, middle)
    depth = rng.lognormal(0, 0.3, (n_cells, 1))
    pieces = []
    for start in range(0, n_cells, 5000):
        counts = rng.poisson(profile * low * depth[start : start + 5000]).astype(np.float32)
        counts[:, 0] += 1
        pieces.append(sparse.csr_matrix(counts))
    treatments = ["control", *(f"t{i}" for i in range(1, groups))]
    obs = pd.DataFrame(
        {
            "treatment": rng.choice(treatments, n_cells),
            "covariate": rng.choice([f"x{i}" for i in range(groups - 1)], n_cells),
        },
        index=[f"cell{i}" for i in range(n_cells)],
    )
    var = pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)])
    return ad.AnnData(sparse.vstack(pieces, format="csr"), obs=obs, var=var)


def unchecked() -> Any:
    """Switch validation off, as `fit` does."""
    return pyro.settings.context(
        validate_distributions_pyro=False, validate_distributions_torch=False,
        validate_poutine=False, validate_infer=False,
    )  # fmt: skip


def fcr_stepper(model: pf.FCR, batches: Sequence[Any]) -> Callable[[int], None]:
    """Return the package's own training step on the i-th batch."""
    trainer = Trainer(model._objective, Plan(10**6))
    model._objective.train()
    return lambda i: trainer.step(batches[i % len(batches)]) and None


def scvi_stepper(batches: Sequence[Any], n_latent: int) -> Callable[[int], None]:
    """Return a step of scvi-tools' VAE at the same widths, without Lightning around it."""
    from scvi import REGISTRY_KEYS
    from scvi.module import VAE

    n_genes = batches[0].counts.shape[1]
    module = VAE(
        n_genes, n_batch=1, n_hidden=128, n_layers=2, n_latent=n_latent, gene_likelihood="nb"
    )
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3, eps=0.01, weight_decay=1e-6)
    module.train()

    def step(i: int) -> None:
        batch = batches[i % len(batches)]
        zeros = torch.zeros(len(batch), 1)
        tensors = {REGISTRY_KEYS.X_KEY: batch.counts, REGISTRY_KEYS.BATCH_KEY: zeros,
                   REGISTRY_KEYS.LABELS_KEY: zeros}  # fmt: skip
        _, _, losses = module(tensors, loss_kwargs={"kl_weight": 1.0})
        optimiser.zero_grad()
        losses.loss.backward()
        optimiser.step()

    return step


def alternate(
    steppers: dict[str, Callable[[int], None]], *, rounds: int, steps: int
) -> pd.DataFrame:
    """Time the candidates in turn; one row per candidate and round, in ms per step."""
    rows = []
    with unchecked():
        for step in steppers.values():
            for i in range(3):
                step(i)
        for turn in range(rounds):
            names = list(steppers)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                wall, cpu = time.perf_counter(), time.process_time()
                for i in range(steps):
                    steppers[name](i)
                rows.append({
                    "name": name, "round": turn,
                    "wall_ms": (time.perf_counter() - wall) / steps * 1e3,
                    "cpu_ms": (time.process_time() - cpu) / steps * 1e3,
                })  # fmt: skip
    return pd.DataFrame(rows)


def quiet_model(adata: ad.AnnData, **options: Any) -> pf.FCR:
    """Return an untrained model."""
    return pf.FCR(adata, SCHEMA, **options)


def step(given: argparse.Namespace) -> pd.DataFrame:
    """FCR's step beside scvi-tools' and plain torch's."""
    adata = simulate(6000, 2000)
    rows = []
    full = quiet_model(adata, penalties=FULL)
    batches = list(open_source(full.cells, batch_size=512, drop_last=True).batches(epoch=0))
    print(f"plain torch against the objective: {check(full, batches[0]):.1e} relative")
    latent = sum(block.size for block in full.declaration.blocks)
    for threads in given.threads:
        torch.set_num_threads(threads)
        plain = PlainTrainer(full)
        default = quiet_model(adata)
        bare = PlainTrainer(default)
        steppers = {
            "FCR, discriminators and heads": fcr_stepper(full, batches),
            "the same in plain torch": lambda i, p=plain: p.step(batches[i % len(batches)]),
            "FCR, default terms": fcr_stepper(default, batches),
            "default terms in plain torch": lambda i, p=bare: p.step(batches[i % len(batches)]),
        }
        try:
            steppers["scvi-tools SCVI"] = scvi_stepper(batches, latent)
        except ImportError:
            print("scvi-tools is not installed: its row is left out", file=sys.stderr)
        times = alternate(steppers, rounds=given.rounds, steps=given.steps)
        wide = {k: times.pivot(index="round", columns="name", values=k) for k in
                ("cpu_ms", "wall_ms")}  # fmt: skip
        for name in steppers:
            row: dict[str, Any] = {"threads": threads, "step": name}
            for clock, frame in wide.items():
                row[clock] = round(median(frame[name]), 1)
            row["cells per CPU s"] = round(512 / row["cpu_ms"] * 1e3)
            row["cells per s"] = round(512 / row["wall_ms"] * 1e3)
            against = {"FCR": "scvi-tools SCVI", "the": "the same in plain torch"}
            own = wide["cpu_ms"][name]
            if (other := against["FCR"]) in steppers and name.startswith("FCR"):
                row["times SCVI (CPU)"] = round(median(wide["cpu_ms"][other] / own), 2)
                row["times SCVI (wall)"] = round(
                    median(wide["wall_ms"][other] / wide["wall_ms"][name]), 2
                )
            pair = {"FCR, discriminators and heads": "the same in plain torch",
                    "FCR, default terms": "default terms in plain torch"}.get(name)  # fmt: skip
            if pair:
                row["of plain torch (CPU)"] = round(median(own / wide["cpu_ms"][pair]), 3)
            rows.append(row)
    return pd.DataFrame(rows)


def epochs(given: argparse.Namespace) -> pd.DataFrame:
    """Cells per CPU second of `fit` and of scvi-tools' `train`, loading and loop included."""
    import logging
    import warnings

    import scvi

    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    adata = simulate(12_000, 2000)
    scvi.model.SCVI.setup_anndata(adata)
    model = quiet_model(adata, penalties=FULL)
    latent = sum(block.size for block in model.declaration.blocks)
    other = scvi.model.SCVI(adata, n_hidden=128, n_layers=2, n_latent=latent, gene_likelihood="nb")
    rows = []
    for turn in range(given.rounds):
        seconds = []
        for run in (
            lambda: model.fit(max_epochs=2, progress=False, device="cpu"),
            lambda: other.train(
                max_epochs=2, batch_size=512, accelerator="cpu", train_size=1.0, logger=False,
                enable_progress_bar=False, enable_model_summary=False,
            ),
        ):  # fmt: skip
            start = time.process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run()
            seconds.append(time.process_time() - start)
        ours, theirs = (round(2 * len(model.cells) / s) for s in seconds)
        rows.append({"round": turn, "FCR.fit": ours, "SCVI.train": theirs,
                     "ratio": round(ours / theirs, 2)})  # fmt: skip
    return pd.DataFrame(rows)


def growth(given: argparse.Namespace) -> pd.DataFrame:
    """How a step grows, one thread: each row changes one size of batch 512 × 2,000 genes."""
    rows = []

    def measure(what: str, value: int, model: pf.FCR, size: int) -> None:
        cells = open_source(model.cells, batch_size=size, drop_last=True)
        batches = [batch for batch, _ in zip(cells.batches(epoch=0), range(4), strict=False)]
        times = alternate({"x": fcr_stepper(model, batches)}, rounds=given.rounds, steps=8)
        cpu = median(times["cpu_ms"])
        rows.append({"changes": what, "to": value, "cpu_ms": round(cpu, 1),
                     "cells per CPU s": round(size / cpu * 1e3)})  # fmt: skip

    torch.set_num_threads(1)
    base = simulate(8192, 2000)
    for size in (128, 512, 2048, 4096):
        measure("cells per step", size, quiet_model(base, penalties=FULL), size)
    for genes in (500, 2000, 8000):
        adata = base if genes == 2000 else simulate(2500, genes)
        measure("genes", genes, quiet_model(adata, penalties=FULL), 512)
    for scale in (1, 2, 4):
        sizes = {"z_x": 8 * scale, "z_t": 4 * scale, "z_tx": 4 * scale}
        measure("latents", 16 * scale, quiet_model(base, penalties=FULL, sizes=sizes), 512)
    for groups in (3, 7, 21):
        adata = simulate(8192, 2000, groups=groups)
        measure("conditions", groups * (groups - 1), quiet_model(adata, penalties=FULL), 512)
    for cells in (10_000, 40_000, 160_000):
        model = quiet_model(simulate(cells, 500))
        start = time.process_time()
        model.fit(max_epochs=1, progress=False, device="cpu", align_at=2)
        seconds = time.process_time() - start
        rows.append({
            "changes": "cells, one epoch of 500 genes", "to": cells,
            "cpu_ms": round(seconds * 1e3), "cells per CPU s": round(cells / seconds),
        })  # fmt: skip
    return pd.DataFrame(rows)


def bound(given: argparse.Namespace) -> pd.DataFrame:
    """The step's counted matrix products and traffic against what this machine does, measured."""
    torch.set_num_threads(1)
    adata = simulate(3000, 2000)
    model = quiet_model(adata, penalties=FULL)
    batches = list(open_source(model.cells, batch_size=512, drop_last=True).batches(epoch=0))
    x, w = torch.randn(512, 2000), torch.randn(384, 2000)
    big, copy = torch.randn(2**24), torch.empty(2**24)
    share, out = torch.rand(512, 2000), torch.empty(512, 2000)
    stepper = fcr_stepper(model, batches)
    from torch.utils.flop_counter import FlopCounterMode

    with unchecked(), FlopCounterMode(display=False) as counter:
        stepper(0)
    # The counter sees products alone. The encoders' first layers multiply and add at the
    # non-zeros, for the values and for the weights' gradient.
    found = sum(len(nonzeros(batch.counts).value) for batch in batches) / len(batches)
    outputs = model.guide.locals.encoders.first_weight_gk.shape[1]
    flops = counter.get_total_flops() + 4 * found * outputs
    # Whatever the order of work: counts read; logits written and read; their gradient written, and
    # read by two products; weights and two moments read and written, gradients likewise.
    weights = sum(p.numel() for p in model._objective.parameters())
    traffic = 4 * (512 * 2000 * 6 + weights * 8)

    def products(i: int) -> None:
        torch.mm(x, w.T)

    def copies(i: int) -> None:
        copy.copy_(big)

    def functions(i: int) -> None:
        torch.exp(share, out=out)
        torch.log1p(share, out=out)

    times = alternate(
        {"step": stepper, "matmul": products, "copy": copies, "functions": functions},
        rounds=given.rounds, steps=10,
    )  # fmt: skip
    cpu = times.groupby("name")["cpu_ms"].median()
    matmul_rate = 2 * 512 * 2000 * 384 / cpu["matmul"] * 1e3
    copy_rate = 2 * 4 * 2**24 / cpu["copy"] * 1e3
    least = flops / matmul_rate * 1e3 + traffic / copy_rate * 1e3 + cpu["functions"]
    return pd.DataFrame([{
        "step, CPU ms": round(cpu["step"], 1),
        "matmul GFLOP/s": round(matmul_rate / 1e9, 1),
        "copy GB/s": round(copy_rate / 1e9, 1),
        "GFLOP a step": round(flops / 1e9, 2),
        "MB a step, at least": round(traffic / 1e6),
        "an exp and a log1p a count, ms": round(cpu["functions"], 1),
        "bound, ms": round(least, 1),
        "share of the bound": round(least / cpu["step"], 2),
    }])  # fmt: skip


# ---- time to quality -------------------------------------------------------------------------

COLD = """
import os, sys, anndata as ad, pyro_fcr as pf
path, out, threads, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
adata = ad.read_h5ad(path)
schema = pf.Schema(treatment="treatment", control="control", covariates="covariate")
model = pf.FCR(adata, schema, sizes={"z_x": 3, "z_t": 3, "z_tx": 4})
model.fit(split=pf.splits.column(adata, "split"), seed=seed, threads=threads, device="cpu",
          progress=False)
model.save(out)
"""


def quality(given: argparse.Namespace) -> pd.DataFrame:
    """Time from a cold start to a fit of F-cond at default settings, and what it recovers.

    The clock runs from the start of the interpreter to the model on disk, whole fit, on as many
    cores as threads; the judgement (``pyro-fcr benchmark recovery``'s) stands outside.
    """
    config = read_config("recovery")
    rows = []
    for seed in given.seeds:
        spec = next(job.spec for job in config.jobs() if job.spec["seed"] == seed)
        problem = load(spec["data"], seed)
        task = TASKS[config.task](**spec["options"])
        best = next(r for r in task.references(problem, seed=seed) if r["method"] == "ceiling")
        adata = problem.adata.copy()
        adata.obs["split"] = np.where(problem.mask("train"), "train", "test")
        for threads in given.threads:
            with tempfile.TemporaryDirectory() as folder:
                path, out = Path(folder) / "a.h5ad", Path(folder) / "model"
                adata.write_h5ad(path)
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                start = time.perf_counter()
                subprocess.run(
                    [sys.executable, "-c", COLD, path, out, str(threads), str(seed)], check=True
                )
                wall = time.perf_counter() - start
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                # Without the certificate, which would read the training cells.
                model = SimpleNamespace(latents=pf.load(out).latents)
            found = task.judge(problem, model, seed=seed)[0]
            shares = {k: found[k] / best[k] for k in config.table["shares"]}
            recovered = min(shares[k] for k in shares if k.startswith("R2"))
            must = recovered >= 0.85 and shares["MCC z_tx"] >= 0.8 and found["leakage"] <= 0.1
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            rows.append({
                "seed": seed, "threads": threads, "wall s": round(wall, 1), "CPU s": round(cpu, 1),
                **{k: round(v, 3) for k, v in shares.items()},
                "leakage": round(float(found["leakage"]), 3), "A2-A4 at must": bool(must),
            })  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
    return pd.DataFrame(rows)


# ---- from disk -------------------------------------------------------------------------------


def write_cells(path: Path, n_cells: int, n_genes: int = 2000) -> None:
    """Write cells in pieces; a 50,000-cell pattern repeats, its conditions do not."""
    pattern = simulate(min(n_cells, 50_000), n_genes)
    rng = np.random.default_rng(1)
    obs = pd.DataFrame(
        {
            "treatment": rng.choice(["control", *(f"t{i}" for i in range(1, 7))], n_cells),
            "covariate": rng.choice([f"x{i}" for i in range(6)], n_cells),
        },
        index=[f"cell{i}" for i in range(n_cells)],
    )
    ad.AnnData(pattern[:10].X, obs=obs[:10], var=pattern.var).write_h5ad(path)
    x = pattern.X
    with h5py.File(path, "a") as file:
        del file["obs"], file["X"]
        ad.io.write_elem(file, "obs", obs)
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0",
                            "shape": np.array([n_cells, n_genes])})  # fmt: skip
        stored = {
            name: group.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(2**16,))
            for name, dtype in (("data", "f4"), ("indices", "i4"))
        }
        pointers = [np.zeros(1, np.int64)]
        for start in range(0, n_cells, x.shape[0]):
            piece = x[: min(x.shape[0], n_cells - start)]
            at = stored["data"].shape[0]
            for name, values in (("data", piece.data), ("indices", piece.indices)):
                stored[name].resize((at + len(values),))
                stored[name][at:] = values
            pointers.append(piece.indptr[1:].astype(np.int64) + at)
        group["indptr"] = np.concatenate(pointers)


def streamed(path: str, steps: int, in_memory: bool) -> dict[str, Any]:
    """Open, learn the design, train some steps; say how long and how much memory it took."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    model = quiet_model(ad.read_h5ad(path) if in_memory else path)
    opened = time.perf_counter() - start
    source = open_source(model.cells, batch_size=512, drop_last=True)
    trainer = Trainer(model._objective, Plan(10**6))
    model._objective.train()
    taken, epoch = 0, 0
    with unchecked():
        wall, cpu = time.perf_counter(), time.process_time()
        while taken < steps:
            for batch in source.batches(epoch=epoch):
                trainer.step(batch)
                taken += 1
                if taken == steps:
                    break
            epoch += 1
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "cells": len(model.cells),
        "counts": "in memory" if in_memory else "on disk",
        "open_s": round(opened, 1),
        "cells per s": round(512 * steps / wall),
        "cells per CPU s": round(512 * steps / cpu),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def stream(given: argparse.Namespace) -> pd.DataFrame:
    """Rate and peak memory from disk, each in a process of its own."""
    rows = []
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for n_cells in given.cells:
            write_cells(Path(folder) / f"{n_cells}.h5ad", n_cells)
        jobs = [(n, mode) for n in given.cells for mode in ("disk", "memory")]
        jobs = [(n, mode) for n, mode in jobs if mode == "disk" or n <= 200_000]
        for turn in range(given.rounds):
            for n_cells, mode in jobs[:: -1 if turn % 2 else 1]:
                command = [sys.executable, __file__, "streamed", f"{folder}/{n_cells}.h5ad",
                           str(given.steps), mode]  # fmt: skip
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                rows.append({"round": turn, **json.loads(done.stdout.splitlines()[-1])})
                print(rows[-1], file=sys.stderr, flush=True)
    return pd.DataFrame(rows)


def data(given: argparse.Namespace) -> pd.DataFrame:
    """Minibatches alone: cells per second from each kind of source."""
    rows = []
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        adata = simulate(50_000, 2000)
        write_cells(Path(folder) / "a.h5ad", 50_000)
        kinds: dict[str, Any] = {"in memory": adata, "h5ad": f"{folder}/a.h5ad"}
        try:
            adata.write_zarr(f"{folder}/a.zarr")
            kinds["zarr"] = f"{folder}/a.zarr"
        except ImportError:
            print("zarr is not installed: its row is left out", file=sys.stderr)
        try:
            import annbatch
            import zarr

            annbatch.write_sharded(zarr.open_group(f"{folder}/b.zarr", mode="w"), adata)
            kinds["zarr in chunks of 64 cells"] = f"{folder}/b.zarr"
        except ImportError:
            print("annbatch is not installed: its rows are left out", file=sys.stderr)
        sources = {
            name: open_source(quiet_model(kind).cells, batch_size=512, drop_last=True)
            for name, kind in kinds.items()
        }
        if chunked := sources.get("zarr in chunks of 64 cells"):
            plain = StreamSource(chunked.cells, batch_size=512, drop_last=True)
            sources["the same, without annbatch"] = plain
        for turn in range(given.rounds):
            for name, source in sources.items():
                wall, cpu = time.perf_counter(), time.process_time()
                n = sum(len(batch) for batch in source.batches(epoch=turn))
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                rows.append({"round": turn, "source": name, "cells per s": round(n / wall),
                             "cells per CPU s": round(n / cpu)})  # fmt: skip
    return pd.DataFrame(rows)


# ---- several processes -----------------------------------------------------------------------

RANKS = """
import sys, json, os, torch, pyro_fcr as pf
torch.set_num_threads(1)
seed, out = int(sys.argv[1]), sys.argv[2]
adata = pf.simulate.factorised(n_per_condition=100, n_genes=150, seed=seed)
schema = pf.Schema(treatment="treatment", control="control", covariates="covariate")
split = pf.splits.random(adata, test=0.1, valid=0.2, seed=seed)
model = pf.FCR(adata, schema)
history = model.fit(split=split, max_epochs=60, batch_size=512, seed=seed, device="cpu",
                    progress=False, validate_every=60)
if os.environ.get("RANK", "0") == "0":
    row = {"valid_loss": history["valid.loss"].iloc[-1], "seconds": history["seconds"].sum()}
    open(out, "w").write(json.dumps(row))
"""


def ranks(given: argparse.Namespace) -> pd.DataFrame:
    """The held-out loss after the same budget, with one process and with two."""
    rows = []
    environment = os.environ | {"PYTHONPATH": str(Path(pf.__file__).parents[1])}
    with tempfile.TemporaryDirectory() as folder:
        script, out = Path(folder) / "job.py", Path(folder) / "out.json"
        script.write_text(RANKS)
        two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        for seed in given.seeds:
            for world, how in ((1, []), (2, two)):
                command = [sys.executable, *how, str(script), str(seed), str(out)]
                subprocess.run(command, env=environment, check=True, capture_output=True)
                rows.append({"seed": seed, "processes": world, **json.loads(out.read_text())})
                print(rows[-1], file=sys.stderr, flush=True)
    return pd.DataFrame(rows)


def picture() -> None:
    """Draw the step and its growth from the CSV files."""
    from matplotlib.figure import Figure

    steps = pd.read_csv(RESULTS / "speed_step.csv").query("threads == 1").iloc[::-1]
    grown = pd.read_csv(RESULTS / "speed_growth.csv")
    figure = Figure(figsize=(10.5, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.barh(steps["step"], steps["cells per CPU s"], color="0.6")
    left.set_xlabel("cells per CPU second, 512 × 2,000 genes")
    for name, part in grown.groupby("changes", sort=False):
        right.loglog(part["to"] / part["to"].iloc[0], part["cpu_ms"] / part["cpu_ms"].iloc[0],
                     marker="o", label=name)  # fmt: skip
    right.plot([1, 32], [1, 32], color="0.7", lw=1, zorder=0)
    right.set_xlabel("size, relative")
    right.set_ylabel("CPU time, relative")
    right.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.savefig(RESULTS / "speed.png", dpi=130)


def main() -> None:
    """Run one of the measurements, print its table, keep it as a CSV file."""
    if sys.argv[1:2] == ["streamed"]:
        path, steps, mode = sys.argv[2:]
        print(json.dumps(streamed(path, int(steps), mode == "memory")))
        return
    if sys.argv[1:2] == ["picture"]:
        picture()
        return
    kinds = {f.__name__: f for f in (step, epochs, growth, bound, quality, stream, data, ranks)}
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("what", nargs="*", default=[*kinds], metavar="|".join(kinds))
    made.add_argument("--rounds", type=int, default=5, help="turns of every comparison")
    made.add_argument("--steps", type=int, default=20, help="steps per turn")
    made.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    made.add_argument("--cells", type=int, nargs="+", default=[50_000, 1_000_000])
    made.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    made.add_argument("--folder", default=None, help="where to write the files to stream from")
    given = made.parse_args()
    for name in given.what:
        found = kinds[name](given)
        RESULTS.mkdir(exist_ok=True)
        found.to_csv(RESULTS / f"speed_{name}.csv", index=False)
        print(f"\n## {name}\n\n{table(found.set_index(found.columns[0]))}", flush=True)


if __name__ == "__main__":
    main()
