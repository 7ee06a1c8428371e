"""How long does a table of all latents take, by `pf.summary` and by ArviZ?

    python benchmarks/summary.py

10,000 cells × 24 latents × 200 draws of a standard normal; ArviZ on fewer cells, since its time is
proportional to them.
"""

from __future__ import annotations

import time
from pathlib import Path

import arviz as az
import numpy as np
import pandas as pd
import xarray as xr

import pyro_fcr as pf

RESULTS = Path(__file__).parent / "results" / "summary.csv"


def tree(n_cells: int) -> xr.DataTree:
    """Return draws as ``posterior()`` does."""
    draws = np.random.default_rng(0).normal(size=(1, 200, n_cells, 24)).astype(np.float32)
    coords = {"cell": [f"cell{i}" for i in range(n_cells)]}
    data = xr.Dataset({"z": (("chain", "draw", "cell", "z_dim"), draws)}, coords=coords)
    return xr.DataTree.from_dict({"/posterior": data})


def main() -> None:
    """Time both and write the rows."""
    rows = []
    for name, n_cells in (("pf.summary", 10_000), ("az.summary", 100), ("az.summary", 200)):
        draws = tree(n_cells)
        start = time.perf_counter()
        if name == "pf.summary":
            table = pf.summary(draws)
        else:
            table = az.summary(pf.to_arviz(draws), kind="stats")
        seconds = time.perf_counter() - start
        assert len(table) == 24 * n_cells
        rows.append({"function": name, "cells": n_cells, "seconds": round(seconds, 2)})
    found = pd.DataFrame(rows)
    found.to_csv(RESULTS, index=False)
    print(found.to_string(index=False))


if __name__ == "__main__":
    main()
