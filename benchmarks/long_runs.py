"""Memory and open files over a long fit and over many models; weights over processes and threads.

    python benchmarks/long_runs.py

Memory is the process's resident set. Each fit of the second part runs in a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pandas as pd
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tiny import fit, tiny_adata, tiny_fcr  # noqa: E402 - on the path set above

import pyro_fcr as pf  # noqa: E402 - on the path set above

PROCESSES = [
    {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "threads": "auto"},
    {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1", "threads": "auto"},
    {"PYTHONHASHSEED": "2", "OMP_NUM_THREADS": "4", "threads": "auto"},
    {"PYTHONHASHSEED": "3", "OMP_NUM_THREADS": "4", "threads": "1"},
    {"PYTHONHASHSEED": "4", "OMP_NUM_THREADS": "4", "threads": "2"},
    {"PYTHONHASHSEED": "5", "OMP_NUM_THREADS": "4", "threads": "4"},
]


def resident() -> float:
    """Return the process's memory in MB, garbage collected."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def long_fit(epochs: int) -> list[dict]:
    from pyro_fcr.infer import Trainer

    rows, epoch = [], Trainer._epoch

    def watched(self: Trainer, *arguments: object) -> dict:
        row = epoch(self, *arguments)
        if self.epoch % (epochs // 10) == 0:
            rows.append({"what": "epochs", "n": self.epoch, "MB": resident(),
                         "files": open_files()})  # fmt: skip
        return row

    Trainer._epoch = watched
    adata = tiny_adata()
    options = {"penalties": {"z_x_vs_z_tx": 1.0}}
    fit(tiny_fcr(adata, **options), max_epochs=epochs, batch_size=128,
        split=pf.splits.random(adata), monitor_leakage=True)  # fmt: skip
    Trainer._epoch = epoch
    return rows


def many_models(number: int) -> list[dict]:
    rows = []
    for n in range(1, number + 1):
        model = tiny_fcr(tiny_adata(per_condition=8))
        fit(model, max_epochs=1)
        model.counterfactual(do={"treatment": "A"}, draws=2)
        del model
        if n % (number // 10) == 0:
            rows.append({"what": "models", "n": n, "MB": resident(), "files": open_files()})
    return rows


def weights_hash(threads: str) -> str:
    """Return a hash of the weights of a fit whose matrices are large enough to be shared out."""
    model = tiny_fcr(tiny_adata(per_condition=60, n_genes=400), hidden=(256,), guide=None)
    fit(model, max_epochs=3, batch_size=256, seed=2,
        threads=threads if threads == "auto" else int(threads))  # fmt: skip
    digest = hashlib.sha256()
    for value in model._objective.state_dict().values():
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=500)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--hash", metavar="THREADS", help="Print one fit's hash.")
    told = parser.parse_args()
    warnings.simplefilter("error")
    if told.hash:
        print(weights_hash(told.hash))
        return
    torch.set_num_threads(1)
    told.out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame([*long_fit(told.epochs), *many_models(told.models)])
    table.round(1).to_csv(told.out / "long_runs.csv", index=False)
    print(table.to_string(index=False), flush=True)
    rows = []
    for setting in PROCESSES:
        threads = setting["threads"]
        environment = os.environ | {k: v for k, v in setting.items() if k != "threads"}
        command = [sys.executable, __file__, "--hash", threads]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        rows.append({**setting, "weights": done.stdout.strip()[:16]})
        print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(told.out / "processes.csv", index=False)


if __name__ == "__main__":
    main()
