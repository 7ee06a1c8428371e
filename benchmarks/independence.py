"""The conditional independence tests themselves: level on permuted data, power on planted leakage.

    python benchmarks/independence.py                  # 500 replicates a setting

Latents of three covariate groups and several treatments; a share of their variance within the
group depends on the treatment: by a shift of the mean along all dimensions (``shift``), along one
(``one``), or by the scale (``scale``). The level is measured on the leaking latents with the
treatments permuted within groups, so it holds for their real shape. Rejected at p <= 0.05, 199
permutations. The fresh classifiers count as rejecting where their 95 %
interval lies above chance (100 replicates: they take a second each).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from _common import RESULTS, parser, run, table
from scipy.stats import beta

from pyro_fcr.evaluate import hsic_test, separability

GROUPS = 3


def latents(
    rng: np.random.Generator, kind: str, leak: float, cells: int, treatments: int, d: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return latents (N, d), treatments and groups; ``leak`` is the share of variance."""
    t = np.tile(np.repeat(np.arange(treatments), cells), GROUPS)
    x = np.repeat(np.arange(GROUPS), treatments * cells)
    noise = rng.standard_normal((len(t), d))
    effect = rng.standard_normal((treatments, d))
    effect = (effect - effect.mean(0)) / effect.std(0)
    if kind == "scale":
        # Log-normal scales whose variance, as a share of the second moment, is the leak.
        spread = np.sqrt(np.log1p(leak / (1 - leak)))
        z = noise * np.exp(spread * effect[t])
    else:
        z = np.sqrt(1 - leak) * noise + np.sqrt(leak) * effect[t]
        if kind == "one":
            z[:, 1:] = noise[:, 1:]
    return z + 3 * rng.standard_normal((GROUPS, d))[x], t, x


def judge(
    test: str,
    kind: str,
    leak: float,
    cells: int,
    treatments: int,
    d: int,
    replicates: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return the share of rejections, on the latents as they are and with labels permuted."""
    found: dict[str, list[bool]] = {"power": [], "level": []}
    for replicate in range(replicates):
        rng = np.random.default_rng([seed, replicate])
        z, t, x = latents(rng, kind, leak, cells, treatments, d)
        permuted = t.copy()
        for group in range(GROUPS):
            inside = np.flatnonzero(x == group)
            permuted[inside] = t[rng.permutation(inside)]
        for name, labels in (("power", t), ("level", permuted)):
            if test == "hsic":
                p = hsic_test(z, labels, x, n_permutations=199, seed=replicate).p_value
                found[name].append(p <= 0.05)
            else:
                probe = separability(z, labels, x, n_splits=3, seed=replicate)
                found[name].append(probe.interval[0] > 0)
    rows = []
    for name, rejected in found.items():
        k, n = int(np.sum(rejected)), len(rejected)
        low = beta.ppf(0.025, k, n - k + 1) if k else 0.0
        high = beta.ppf(0.975, k + 1, n - k) if k < n else 1.0
        rows.append({"measure": name, "share": k / n, "low": low, "high": high})
    return rows


def main() -> None:
    """Run the settings and print the table."""
    arguments = parser(__doc__.splitlines()[0], seeds=[11])
    arguments.add_argument("--replicates", type=int, default=500)
    given = arguments.parse_args()
    settings = [
        {"kind": kind, "leak": leak, "cells": cells, "treatments": treatments, "d": d}
        for kind, leak in (("shift", 0.05), ("one", 0.05), ("scale", 0.05))
        for cells, treatments, d in ((40, 4, 3), (100, 2, 3), (60, 6, 3), (60, 6, 10))
    ]
    tasks = [
        {"test": "hsic", **setting, "replicates": given.replicates, "seed": seed}
        for seed in given.seeds
        for setting in settings
    ]
    tasks += [
        {"test": "classifier", **settings[0], "replicates": given.replicates // 5, "seed": seed}
        for seed in given.seeds
    ]
    rows = run(judge, tasks, jobs=given.jobs, out=given.out or RESULTS / "independence.csv")
    keys = ["test", "kind", "leak", "cells", "treatments", "d"]
    wide = rows.pivot_table(index=keys, columns="measure", values=["share", "low", "high"])
    wide.columns = [f"{measure} {bound}" for bound, measure in wide.columns]
    print(table(wide[sorted(wide.columns)]))
    level = rows[(rows["measure"] == "level") & (rows["test"] == "hsic")]
    pooled = level["share"].mean()
    print(f"\nHSIC level over all {level['replicates'].sum()} permuted data sets: {pooled:.4f}")


if __name__ == "__main__":
    main()
