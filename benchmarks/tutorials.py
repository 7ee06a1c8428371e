"""How long do the tutorials take?

    python benchmarks/tutorials.py --keep runs/tutorials

Each runs as a notebook in a kernel of its own, one after another, one thread per process, from its
first cell to its last. ``wall_seconds`` depends on what else the machine does, ``cpu_seconds``
little. ``code_lines`` are those that are neither blank nor comment.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jupytext
from _common import RESULTS, parser, run

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from test_tutorials import TUTORIALS, execute  # noqa: E402 - as the tests run them

KEEP = "PYRO_FCR_KEEP_TUTORIALS"


def job(tutorial: str) -> list[dict[str, Any]]:
    """Run one tutorial and time it."""
    path = TUTORIALS / f"{tutorial}.py"
    before, start = _cpu(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        notebook = execute(path, Path(folder), seconds=3600)
    wall = time.perf_counter() - start
    if kept := os.environ.get(KEEP):
        jupytext.write(notebook, Path(kept) / f"{tutorial}.ipynb")
    source = (line.strip() for line in path.read_text(encoding="utf8").splitlines())
    return [
        {
            "wall_seconds": round(wall, 1),
            "cpu_seconds": round(_cpu() - before, 1),
            "threads": 1,
            "code_lines": sum(bool(line) and not line.startswith("#") for line in source),
        }
    ]


def _cpu() -> float:
    """Seconds of all children that have ended, the kernels among them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    made = parser(__doc__ or "", seeds=())
    made.add_argument("--only", nargs="+", default=sorted(p.stem for p in TUTORIALS.glob("*.py")))
    made.add_argument("--keep", type=Path, help="folder for the executed notebooks")
    made.set_defaults(jobs=1)
    arguments = made.parse_args()
    # Before any kernel starts: it reads them once.
    os.environ |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
        os.environ[KEEP] = str(arguments.keep.resolve())
    tasks = [{"tutorial": name} for name in arguments.only]
    print(run(job, tasks, jobs=arguments.jobs, out=arguments.out or RESULTS / "tutorials.csv"))
