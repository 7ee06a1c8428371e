"""What the benchmark scripts share: jobs over the cores, rows to a CSV as they come."""

from __future__ import annotations

import argparse
import platform
import resource
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RESULTS = Path(__file__).parent / "results"


def parser(description: str, seeds: Sequence[int]) -> argparse.ArgumentParser:
    """Return the arguments every benchmark takes."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    made.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each")
    made.add_argument(
        "--out", type=Path, default=None, help="CSV; default benchmarks/results/NAME"
    )
    return made


def run(
    job: Callable[..., list[dict[str, Any]]],
    tasks: Sequence[dict[str, Any]],
    *,
    jobs: int,
    out: Path,
) -> pd.DataFrame:
    """Run the tasks in parallel, append their rows to a CSV as they come, return all rows.

    A task whose rows are already in the CSV is not run again.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    done = pd.read_csv(out) if out.exists() else pd.DataFrame()
    todo = [task for task in tasks if not _has(done, task)]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        running = {pool.submit(_timed, job, task): task for task in todo}
        for future in as_completed(running):
            try:
                rows = [{**running[future], **row} for row in future.result()]
            except Exception:  # noqa: BLE001 - one failed task must not lose the others
                traceback.print_exc()
                continue
            _append(out, rows)
            print(running[future], "done", file=sys.stderr, flush=True)
    return pd.read_csv(out)


def _timed(job: Callable[..., list[dict[str, Any]]], task: dict[str, Any]) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    start = time.perf_counter()
    rows = job(**task)
    told = {
        "task_seconds": round(time.perf_counter() - start, 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return [{**row, **told} for row in rows]


def _has(done: pd.DataFrame, task: dict[str, Any]) -> bool:
    if done.empty or not set(task) <= set(done.columns):
        return False
    same = pd.Series(data=True, index=done.index)
    for name, value in task.items():
        same &= done[name].astype(str) == str(value)
    return bool(same.any())


def _append(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    # Tasks may tell different things of themselves: what one does not tell stays empty.
    earlier = [pd.read_csv(out, dtype=str, keep_default_na=False)] if out.exists() else []
    partial = out.with_suffix(".partial")
    pd.concat([*earlier, pd.DataFrame(rows)]).to_csv(partial, index=False)
    partial.replace(out)


def table(frame: pd.DataFrame, digits: int = 3) -> str:
    """Return a Markdown table of a frame with its index."""
    flat = frame.reset_index()
    cells = [[str(name) for name in flat.columns], ["---"] * flat.shape[1]]
    for row in flat.itertuples(index=False):
        cells.append([f"{v:.{digits}f}" if isinstance(v, float) else str(v) for v in row])
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)
