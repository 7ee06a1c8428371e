"""How fast the simulators are, and how much memory they take.

    python benchmarks/simulators.py                 # 100,000 cells x 2,000 genes, and a quarter

Each line runs in a process of its own, on one core. ``memory`` keeps the counts, ``h5ad`` writes
them a chunk at a time to a temporary folder.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from _common import RESULTS, parser, run, table

import pyro_fcr as pf

CONDITIONS = 42


def simulate(generator: str, cells: int, genes: int, kept: str, seed: int) -> list[dict[str, Any]]:
    """Draw one data set and return its size and the seconds it took."""
    options: dict[str, Any] = {"n_per_condition": cells // CONDITIONS + 1, "seed": seed}
    real = pf.top_genes(pf.datasets.kang(), genes) if generator == "from_data" else None
    with tempfile.TemporaryDirectory() as folder:
        if kept != "memory":
            options["path"] = Path(folder) / f"cells.{kept}"
        start = time.perf_counter()
        if real is not None:
            adata = pf.simulate.from_data(real, **options)
        else:
            library = 1500.0 if generator == "sparse" else 5000.0
            adata = pf.simulate.factorised(n_genes=genes, library=library, **options)
        seconds = time.perf_counter() - start
        shape = adata.shape
        if adata.isbacked:
            adata.file.close()
    return [{"n_cells": shape[0], "n_genes": shape[1], "seconds": round(seconds, 1)}]


def main() -> None:
    """Run the tasks and print the table."""
    arguments = parser(__doc__.splitlines()[0], seeds=[0])
    arguments.add_argument("--cells", type=int, nargs="+", default=[25_000, 100_000])
    given = arguments.parse_args()
    tasks = [
        {"generator": g, "cells": n, "genes": 2000, "kept": kept, "seed": s}
        for s in given.seeds
        for g in ("base", "sparse", "from_data")
        for n in given.cells
        for kept in ("memory", "h5ad")
    ]
    rows = run(simulate, tasks, jobs=1, out=given.out or RESULTS / "simulators.csv")
    print(table(rows.set_index("generator").drop(columns=["cells", "genes", "torch", "python"])))


if __name__ == "__main__":
    main()
