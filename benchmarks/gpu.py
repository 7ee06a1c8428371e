"""CUDA against CPU: the same numbers first, then the speed of a training step.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --quick     # does it run? few cells, half a second each

Needs nothing from outside; prints one table and takes a few minutes. The data are simulated:
20,000 cells with about 10 % non-zero counts.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch
from _common import table

import pyro_fcr as pf
from pyro_fcr.data import open_source
from pyro_fcr.infer import Plan, Trainer
from pyro_fcr.infer.runtime import networks_at

FULL = {"z_x_vs_z_tx": 1.0, "z_t_vs_z_tx": 1.0, "covariate_head": 1.0, "treatment_head": 1.0}


def make(n_genes: int, n_cells: int = 20_000) -> pf.FCR:
    """Return an untrained model on sparse simulated counts."""
    per_condition = max(5, n_cells // 42)
    adata = pf.simulate.factorised(
        n_per_condition=per_condition, n_genes=n_genes, library=0.12 * n_genes, seed=0
    )
    schema = pf.Schema(treatment="treatment", control="control", covariates="covariate")
    return pf.FCR(adata, schema, penalties=FULL)


def check() -> dict[str, float]:
    """Return the largest relative difference of the objective's terms between the devices."""
    model = make(500, 2_000)
    batch = model.cells.batch(np.arange(256))
    found = {}
    for device in ("cpu", "cuda"):
        objective = model._objective.to(device).eval()
        torch.manual_seed(0)
        # The draws differ between the devices; terms that need none must agree.
        terms = objective(batch.to(device))
        found[device] = {k: float(v) for k, v in terms.sites.items() if k != "counts"}
    worst = max(abs(found["cuda"][k] - v) / max(abs(v), 1e-3) for k, v in found["cpu"].items())
    start = model.fit(max_epochs=3, device="cuda", progress=False)
    on_cpu = model.fit(max_epochs=3, device="cpu", progress=False)
    last = abs(start["loss"].iloc[-1] / on_cpu["loss"].iloc[-1] - 1)
    return {"terms": worst, "loss after 3 epochs": float(last)}


def speed(
    model: pf.FCR, batch_size: int, device: str, seconds: float, precision: str, recorded: bool
) -> dict[str, Any]:
    """Return cells per second of whole training steps, gathering included."""
    n_genes = model.design.n_genes
    place = torch.device(device)
    trainer = Trainer(model._objective, Plan(steps=10**6), device=place)
    if not recorded:
        trainer.captured = None
    source = open_source(model.cells, device=place, batch_size=batch_size, drop_last=True)
    model._objective.train()
    cells = epoch = 0
    start = time.perf_counter()
    with networks_at(precision, model._objective, place), pyro.settings.context(
        validate_distributions_pyro=False, validate_distributions_torch=False,
        validate_poutine=False, validate_infer=False,
    ):  # fmt: skip
        while time.perf_counter() - start < seconds or epoch < 3:
            for batch in source.batches(epoch=epoch):
                trainer.step(batch)
                cells += len(batch)
            if device == "cuda":
                torch.cuda.synchronize()
            epoch += 1
            if epoch == 2:
                # Recordings are made and kernels chosen by now.
                start, cells = time.perf_counter(), 0
    refused = trainer.captured is not None and trainer.captured.refused
    return {
        "device": device, "genes": n_genes, "batch": batch_size, "networks": precision,
        "step": "refused" if refused else "recorded" if trainer.captured else "as it is",
        "cells per second": round(cells / (time.perf_counter() - start)),
    }  # fmt: skip


def main() -> None:
    """Check, measure, print."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--quick", action="store_true", help="few cells, half a second each")
    quick = made.parse_args().quick
    n_cells, seconds = (5_000, 0.5) if quick else (20_000, 5.0)
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if "cuda" in devices:
        print(torch.cuda.get_device_name(), "| torch", torch.__version__)
        for name, value in check().items():
            print(f"CPU and CUDA agree, {name}: {value:.2g} relative")
    rows = []
    for device in devices:
        for genes in (150, 2_000):
            for size in (512, 4_096):
                kinds = [("float32", False)]
                if device == "cuda":
                    kinds = [("float32", False), ("float32", True), ("tf32", True), ("bf16", True)]
                for precision, recorded in kinds:
                    model = make(genes, n_cells)
                    rows.append(speed(model, size, device, seconds, precision, recorded))
    print(table(pd.DataFrame(rows).set_index("device")))


if __name__ == "__main__":
    main()
