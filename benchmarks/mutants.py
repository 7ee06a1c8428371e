"""Change one operator, comparison or number at a time, and see that a test notices.

    python benchmarks/mutants.py --sample 60

A small tool of our own: the package is copied aside, one place of it is changed, and the tests
beside it run in a forked process until one fails. A mutant that none notices survives; it is
listed with its line, for somebody to say whether it matters.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
READERS = "tests/infer/test_readers_turn.py"
PERMUTATIONS = [
    "tests/penalties/test_permute.py",
    "tests/penalties/test_discriminator.py",
    READERS,
]
DENSITIES = ["tests/distributions/test_cell_log_prob.py", "tests/distributions/test_counts.py"]
EFFECTS = [
    "tests/analysis/test_changes.py",
    "tests/analysis/test_effects.py",
    "tests/analysis/test_contrasts.py",
]
TARGETS = {
    "infer/objective.py": ["tests/infer/test_objective.py"],
    "penalties/base.py": [*PERMUTATIONS, "tests/penalties/test_one_group.py"],
    "penalties/discriminator.py": PERMUTATIONS,
    "penalties/heads.py": ["tests/penalties/test_heads.py", READERS],
    "penalties/adversary.py": ["tests/penalties/test_adversary.py", READERS],
    "penalties/hsic.py": ["tests/penalties/test_hsic.py"],
    "penalties/total_correlation.py": ["tests/penalties/test_total_correlation.py", READERS],
    "analysis/draws.py": ["tests/analysis/test_draws.py"],
    "analysis/expression.py": ["tests/analysis/test_draws.py", "tests/io/test_streams.py"],
    "analysis/crossed.py": ["tests/analysis/test_crossed.py"],
    "analysis/condition_means.py": ["tests/analysis/test_condition_means.py"],
    "analysis/model_error.py": ["tests/analysis/test_effects.py"],
    "analysis/unmeasured.py": EFFECTS,
    "analysis/changes.py": EFFECTS,
    "analysis/contrasts.py": ["tests/analysis/test_contrasts.py"],
    "fitted/counterfactuals.py": [
        "tests/trust/test_left_out.py",
        "tests/data/test_features.py",
        "tests/test_estimator.py",
    ],
    "data/interventions.py": ["tests/data/test_design.py", "tests/data/test_continuous.py"],
    "infer/gauge.py": ["tests/infer/test_gauge.py", READERS],
    "infer/milestones.py": ["tests/infer/test_gauge.py", READERS],
    "infer/sleep.py": ["tests/infer/test_sleep.py"],
    "evaluate/conformal.py": ["tests/evaluate/test_conformal.py"],
    "analysis/shrinkage.py": ["tests/analysis/test_shrinkage.py"],
    "nn/networks.py": [READERS, "tests/nn/test_networks.py"],
    "nn/sparse_linear.py": ["tests/nn/test_sparse_linear.py"],
    "distributions/counts.py": DENSITIES,
    "distributions/densities.py": DENSITIES,
}
SWAPS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE,
    ast.GtE: ast.Gt, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.And: ast.Or, ast.Or: ast.And, ast.UAdd: ast.USub, ast.FloorDiv: ast.Mult,
}  # fmt: skip
TYPES = ("annotation", "returns")
LIMIT = 240.0
"""Seconds after which tests that go on and on have noticed."""


def places(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Yield the nodes that can be changed, and how; not types, docstrings and zip's strict."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.keyword) and node.arg == "strict":
            continue
        if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in SWAPS:
            yield node, "op"
        if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            yield node, "ops"
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            yield node, "drop"
        if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
            yield node, "value"
        if isinstance(node, ast.Raise | ast.ImportFrom):
            continue
        yield from places(_untyped(node))


def _untyped(node: ast.AST) -> ast.AST:
    if not any(getattr(node, name, None) is not None for name in TYPES):
        return node
    bare = copy.copy(node)
    for name in TYPES:
        if hasattr(bare, name):
            setattr(bare, name, None)
    return bare


def mutant(source: str, number: int) -> tuple[str, str]:
    """Return the source with its nth place changed, and what was changed."""
    tree = ast.parse(source)
    node, how = list(places(tree))[number]
    before = ast.unparse(node)
    if how == "op":
        node.op = SWAPS[type(node.op)]()
    elif how == "ops":
        node.ops[0] = SWAPS[type(node.ops[0])]()
    elif how == "drop":
        text = ast.get_source_segment(source, node)
        operand = node.operand
        node.__class__ = operand.__class__
        node.__dict__ = operand.__dict__
        before = text or before
    else:
        value = node.value
        node.value = (not value) if isinstance(value, bool) else value + 1
    return ast.unparse(tree), f"{before}  ->  {ast.unparse(node)}"


def notices(folder: Path, tests: list[str]) -> bool:
    """Return whether one of the tests fails on the package in the folder."""
    process = os.fork()
    if not process:
        os.chdir(folder)
        sys.path[:0] = [str(folder)]
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        code = 1
        try:
            import pytest

            options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider",
                       "-W", "ignore::pytest.PytestAssertRewriteWarning"]  # fmt: skip
            code = int(pytest.main([*options, *tests]))
        finally:
            os._exit(code)
    began = time.monotonic()
    while not (done := os.waitpid(process, os.WNOHANG))[0]:
        if time.monotonic() - began > LIMIT:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return True
        time.sleep(0.02)
    return done[1] != 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, help="So many of each file's mutants; all if not.")
    parser.add_argument("--files", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", type=int, nargs="+", help="Of these lines alone.")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / "mutants.csv"
    )
    told = parser.parse_args()
    sys.dont_write_bytecode = True
    # The package itself is none of it: each child reads its own, changed.
    import anndata  # noqa: F401 - read once, before the forks
    import pyro.infer.autoguide  # noqa: F401 - read once, before the forks
    import sklearn.linear_model  # noqa: F401 - read once, before the forks
    import torch

    torch.set_num_threads(1)
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as name:
        copy_of = Path(name)
        for part in ("pyro_fcr", "tests", "setup.cfg"):
            given = ROOT / part
            (shutil.copytree if given.is_dir() else shutil.copy)(given, copy_of / part)
        for file in told.files:
            tests = [test for test in TARGETS[file] if (ROOT / test).exists()]
            path = copy_of / "pyro_fcr" / file
            source = path.read_text(encoding="utf-8")
            if notices(copy_of, tests):
                raise SystemExit(f"the tests of {file} fail as it is")
            lines = [node.lineno for node, _ in places(ast.parse(source))]
            numbers = [
                number
                for number, line in enumerate(lines)
                if told.lines is None or line in told.lines
            ]
            if told.sample is not None and told.sample < len(numbers):
                numbers = sorted(random.Random(told.seed).sample(numbers, told.sample))
            for number in numbers:
                text, what = mutant(source, number)
                path.write_text(text, encoding="utf-8")
                found = notices(copy_of, tests)
                rows.append(
                    {"file": file, "line": lines[number], "change": what, "noticed": found}
                )
                print("." if found else f"\n{file}:{lines[number]}: {what}", end="", flush=True)
                told.out.parent.mkdir(parents=True, exist_ok=True)
                pd.DataFrame(rows).to_csv(told.out, index=False)
            path.write_text(source, encoding="utf-8")
    if not rows:
        raise SystemExit("nothing to change there")
    table = pd.DataFrame(rows).groupby("file", sort=False)["noticed"].agg(["size", "sum"])
    print("\n" + table.rename(columns={"size": "mutants", "sum": "noticed"}).to_string())


if __name__ == "__main__":
    main()
