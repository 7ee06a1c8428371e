"""Kill -9 at random moments, go on, and compare with what was never killed.

    python benchmarks/kill.py --kills 100

One line per moment: while fitting, while a checkpoint, a model, latents or counterfactuals are
written. "Lost" is a file that is there and not whole, or weights that are not bit for bit those of
the uninterrupted run. Workers are forked, so that most of their time is work. Where writing is
what is to be met, writers are slowed down; nothing else is changed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tiny import fit, tiny_adata, tiny_fcr  # noqa: E402 - on the path set above

import pyro_fcr as pf  # noqa: E402 - on the path set above
from pyro_fcr.errors import LoadError  # noqa: E402 - on the path set above

if TYPE_CHECKING:
    from collections.abc import Callable

EPOCHS = 15
"""With a checkpoint after each."""

CELLS = {"per_condition": 8}
SLOW = 0.02
MOMENTS = ("fit", "checkpoint", "save", "latents", "counterfactual")
EMPTY = {"kills": 0, "survived": 0, "lost": 0, "met while writing": 0, "seconds": 0.0}


def slow_writes() -> None:
    """Write in pieces with pauses, as a disk under load does."""
    write, replace = Path.write_bytes, os.replace

    def slowly(self: Path, content: bytes) -> int:
        write(self, b"")
        with self.open("ab", buffering=0) as file:
            for piece in np.array_split(np.frombuffer(content, np.uint8), 10):
                file.write(piece.tobytes())
                time.sleep(SLOW)
        return len(content)

    def renaming(source: Path, target: Path) -> None:
        time.sleep(SLOW)
        replace(source, target)

    Path.write_bytes, os.replace = slowly, renaming


def worker(moment: str, folder: Path) -> None:
    """What is killed."""
    if moment not in ("fit", "whole"):
        slow_writes()
    if moment in ("fit", "checkpoint", "whole"):
        model = tiny_fcr(tiny_adata(**CELLS), penalties={"z_x_vs_z_tx": 1.0})
        options = {} if moment == "whole" else {"checkpoint": folder / "run", "resume": True}
        (folder / "ready").touch()
        fit(model, max_epochs=EPOCHS, batch_size=16, seed=3, **options)
        model.save(folder / "model")
        return
    first, second = (pf.load(folder / name) for name in ("a", "b"))
    data = tiny_adata(**CELLS)
    (folder / "ready").touch()
    for turn in range(10_000):
        model = (first, second)[turn % 2]
        if moment == "save":
            model.save(folder / "model")
        elif moment == "latents":
            model.latents(data, out=folder / "z.h5ad")
            model.latents(data, out=folder / "z.zarr")
        else:
            options = {"do": {"treatment": "A"}, "draws": 2}
            model.counterfactual(data, out=folder / "cf.h5ad", **options)
            model.counterfactual(data, out=folder / "cf.zarr", **options)


def forked(function: Callable[..., None], *arguments: object) -> int:
    """Run a function in a process of its own; return its number."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        function(*arguments)
        code = 0
    finally:
        os._exit(code)


def run(moment: str, folder: Path, wait: float) -> tuple[bool, bool]:
    """Start a worker and kill it so many seconds after it is ready, unless it has ended.

    Returns whether it was killed, and whether a file was being written at that moment.
    """
    (folder / "ready").unlink(missing_ok=True)
    process, kill_at = forked(worker, moment, folder), None
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            break
        if kill_at is None and (folder / "ready").exists():
            kill_at = time.monotonic() + wait
        if kill_at is not None and time.monotonic() > kill_at:
            os.kill(process, signal.SIGKILL)
            kill_at = float("inf")
        time.sleep(0.002)
    killed = os.WIFSIGNALED(status)
    if not killed and os.waitstatus_to_exitcode(status):
        raise SystemExit(f"a worker failed: {moment}")
    return killed, any(folder.rglob(".*"))


def prepare(root: Path) -> None:
    """Make what is compared with: an uninterrupted run, and two models."""
    began = time.perf_counter()
    worker("whole", root / "whole")
    (root / "seconds").write_text(str(time.perf_counter() - began))
    for seed, letter in enumerate("ab"):
        model = tiny_fcr(tiny_adata(**CELLS))
        fit(model, seed=seed)
        model.save(root / letter)


def same_weights(folder: Path, expected: Path) -> bool:
    return (folder / "weights.safetensors").read_bytes() == (
        expected / "weights.safetensors"
    ).read_bytes()


def is_whole(folder: Path, moment: str, models: list[Path]) -> bool:
    """Return whether every file that has its name is whole."""
    if moment == "save":
        if not (folder / "model" / "model.json").exists():
            return True
        try:
            pf.load(folder / "model")
        except LoadError:
            return False
        return any(same_weights(folder / "model", model) for model in models)
    for path in folder.glob("[zc]*"):
        found = ad.read_h5ad(path) if path.suffix == ".h5ad" else ad.read_zarr(path)
        arrays = [found.X, *found.obsm.values(), *found.layers.values()]
        # A part that was never written holds zeros, which no latent and no expectation is.
        full = all((np.asarray(a) != 0).any(1).all() for a in arrays if a is not None)
        if found.n_obs != len(tiny_adata(**CELLS)) or not full:
            return False
    return True


def fit_through(moment: str, folder: Path, rng: np.random.Generator, seconds: float) -> dict:
    """Kill one run again and again until it ends by itself; one more kill each time."""
    done = {"kills": 0, "met while writing": 0}
    while True:
        killed, writing = run(moment, folder, rng.uniform(0, seconds))
        if not killed:
            return done
        done["kills"] += 1
        done["met while writing"] += writing
        print(".", end="", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--moments", nargs="*", default=MOMENTS, choices=MOMENTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "kill.csv")
    told = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rng, rows = np.random.default_rng(told.seed), []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "whole").mkdir()
        if os.waitpid(forked(prepare, root), 0)[1]:
            raise SystemExit("the uninterrupted run failed")
        seconds = float((root / "seconds").read_text())
        expected, models = root / "whole" / "model", [root / "a", root / "b"]
        for moment in told.moments:
            row, began, runs = {"moment": moment, **EMPTY}, time.perf_counter(), 0
            while row["kills"] < told.kills:
                folder = root / f"{moment}-{runs}"
                folder.mkdir()
                runs += 1
                if moment in ("fit", "checkpoint"):
                    done = fit_through(moment, folder, rng, seconds)
                    kept = same_weights(folder / "model", expected)
                else:
                    for model in models:
                        shutil.copytree(model, folder / model.name)
                    killed, writing = run(moment, folder, rng.uniform(0, 1.5))
                    done = {"kills": int(killed), "met while writing": int(writing)}
                    kept = is_whole(folder, moment, models)
                for key, value in done.items():
                    row[key] += value
                row["survived" if kept else "lost"] += done["kills"]
                if kept:
                    shutil.rmtree(folder)
                row["seconds"] = round(time.perf_counter() - began)
                print(row, flush=True)
            rows.append(row)
            told.out.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(rows).to_csv(told.out, index=False)


if __name__ == "__main__":
    main()
