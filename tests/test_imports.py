"""Hold the package to its house rules: who imports whom, and what importing it may not do."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pyro_fcr"
NAME = "pyro_fcr"
FRONT = "__init__"  # the room of pyro_fcr/__init__.py

# The direction of imports, as ARCHITECTURE.md draws it. A room may always import itself.
LEAVES = frozenset({"arguments", "errors", "files", "nonzeros", "reading", "_version"})
GROUND = LEAVES | {"data", "nn", "distributions"}
PARTS = GROUND | {"decoders", "priors", "likelihoods", "penalties"}
MODEL = PARTS | {"guides", "model"}
READS = MODEL | {"infer", "evaluate", "analysis", "io"}
USES = READS | {"assembly", "fitted", "estimator", "loading", "systems", "simulate", "datasets"}
ALLOWED: dict[str, frozenset[str]] = {
    "_version": frozenset(),
    "errors": frozenset(),
    "arguments": frozenset({"errors"}),
    "files": frozenset({"errors"}),
    "reading": frozenset(),
    "nonzeros": frozenset(),
    "data": LEAVES,
    "distributions": LEAVES,
    "nn": LEAVES | {"data"},
    "decoders": GROUND | {"priors"},
    "priors": GROUND,
    "likelihoods": GROUND,
    "penalties": GROUND,
    "guides": PARTS,
    "model": PARTS | {"guides"},
    "infer": GROUND | {"penalties"},
    "evaluate": LEAVES,
    "analysis": MODEL | {"infer", "evaluate"},
    "io": MODEL | {"infer"},
    "assembly": READS,
    "fitted": READS | {"assembly"},
    "estimator": READS | {"assembly", "fitted"},
    "loading": READS | {"assembly", "fitted", "estimator"},
    "systems": READS | {"assembly", "fitted", "estimator"},
    "simulate": LEAVES,
    "datasets": LEAVES,
    "benchmark": USES | {FRONT},
    "cli": USES | {"benchmark", FRONT},
    "__main__": frozenset({"cli"}),
    FRONT: USES,
}

SYSTEM_NAMES = frozenset({"FCR", "SVAE", "InVAE"})
SYSTEM_LINES = 150


def modules(package: Path) -> Iterator[Path]:
    """Every module of the package, in a stable order."""
    return iter(sorted(package.rglob("*.py")))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def room_of(package: Path, path: Path) -> str:
    return path.relative_to(package).parts[0].removesuffix(".py")


def within(package: Path, room: str) -> Iterator[Path]:
    return (path for path in modules(package) if room_of(package, path) == room)


def where(package: Path, path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(package)}:{getattr(node, 'lineno', 0)}"


def imported_rooms(package: Path, path: Path) -> Iterator[tuple[ast.AST, str]]:
    """Yield the rooms a module imports: absolutely, relatively, lazily, or for types alone."""
    rooms = {room_of(package, p) for p in modules(package)} | set(ALLOWED)
    here = [NAME, *path.relative_to(package).parts[:-1]]

    def of(parts: list[str]) -> str:
        return parts[1] if len(parts) > 1 and parts[1] in rooms else FRONT

    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if (parts := alias.name.split("."))[0] == NAME:
                    yield node, of(parts)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) + 1 - node.level] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            if base and base[0] == NAME:
                found = {of([*base, alias.name]) for alias in node.names}
                yield from ((node, room) for room in sorted(found))
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else None
            called = node.func.id if isinstance(node.func, ast.Name) else called
            target = node.args[0]
            if (
                called in {"import_module", "__import__"}
                and isinstance(target, ast.Constant)
                and isinstance(target.value, str)
                and (parts := target.value.split("."))[0] == NAME
            ):
                yield node, of(parts)


def wrong_directions(
    package: Path, allowed: Mapping[str, frozenset[str]] = ALLOWED
) -> Iterator[str]:
    unknown = {room_of(package, path) for path in modules(package)} - set(allowed)
    yield from (f"{room}: a room that the table does not know" for room in sorted(unknown))
    for path in modules(package):
        room = room_of(package, path)
        for node, target in imported_rooms(package, path):
            if room in allowed and target != room and target not in allowed[room]:
                yield f"{where(package, path, node)}: {room} may not import {target}"


def identifiers(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """Yield every name a module binds, reads or spells as a whole string; prose does not count."""
    for node in ast.walk(tree(path)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield node, name
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                yield node, name
            case ast.alias(name=name, asname=asname):
                yield from ((node, part) for part in name.split("."))
                if asname:
                    yield node, asname
            case ast.keyword(arg=str(name)):
                yield node, name
            case ast.Constant(value=str(name)):
                yield node, name


def naming(package: Path, rooms: set[str], names: frozenset[str]) -> Iterator[str]:
    folded = {name.casefold() for name in names}
    for room in sorted(rooms):
        for path in within(package, room):
            for node, name in identifiers(path):
                if name.casefold() in folded:
                    yield f"{where(package, path, node)}: {room} names {name}"


def systems_by_name(package: Path) -> Iterator[str]:
    declared = {
        node.name
        for path in within(package, "systems")
        for node in tree(path).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    }
    yield from naming(package, {"estimator", "model", "infer"}, SYSTEM_NAMES | declared)


def model_by_name(package: Path) -> Iterator[str]:
    yield from naming(package, {"infer"}, frozenset({"LatentModel"}))


def prints(package: Path) -> Iterator[str]:
    for path in modules(package):
        if room_of(package, path) == "cli":
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "print":
                yield f"{where(package, path, node)}: print; use logging or return the text"


def asserts(package: Path) -> Iterator[str]:
    for path in modules(package):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Assert):
                yield f"{where(package, path, node)}: assert; raise an error from errors.py"


def long_systems(package: Path) -> Iterator[str]:
    for path in within(package, "systems"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines >= SYSTEM_LINES:
            yield f"{path.relative_to(package)}: {lines} lines; fewer than {SYSTEM_LINES} allowed"


RULES = [wrong_directions, systems_by_name, model_by_name, prints, asserts, long_systems]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_package(rule: Callable[[Path], Iterator[str]]) -> None:
    assert list(modules(PACKAGE)), f"no modules under {PACKAGE}"
    assert list(rule(PACKAGE)) == []


def test_table_is_the_page() -> None:
    """ARCHITECTURE.md draws the same rooms as the table above."""
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = page.split("## Rooms", 1)[1].split("```")[1]
    rows = [line.split() for line in section.strip().splitlines()]
    drawn = set()
    for words in rows:
        for word in words:
            drawn.add(word.rstrip(","))
            if not word.endswith(","):
                break
    assert drawn == set(ALLOWED) - {"_version", FRONT}


def grow(root: Path, files: dict[str, str]) -> Path:
    """Plant a small package."""
    package = root / NAME
    for name, text in {"__init__.py": "", **files}.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
    return package


CLEAN = {
    "__init__.py": "from pyro_fcr.systems import FCR\n",
    "_version.py": "__version__ = '0'\n",
    "errors.py": "class FCRError(ValueError): ...\n",
    "data/__init__.py": "from .schema import Schema\n",
    "data/schema.py": "from pyro_fcr.errors import FCRError\nclass Schema: ...\n",
    "nn/__init__.py": "import torch\nfrom .. import errors\n",
    "priors/gaussian.py": "from ..nn import x\nfrom pyro_fcr import data\n",
    "model.py": '"""FCR is one of the systems on it."""\nfrom . import priors, guides\n',
    "infer/loop.py": "import pyro_fcr.nn.module\nfrom pyro_fcr.data import Batch\n",
    "estimator.py": "from pyro_fcr.errors import FCRError\nimport pyro_fcr.io\n",
    "systems/fcr.py": "from pyro_fcr.estimator import Estimator\nclass FCR(Estimator): ...\n",
    "cli.py": "import pyro_fcr as pf\nfrom pyro_fcr import FCR\nprint('hello')\n",
    "simulate/a.py": "from pyro_fcr.errors import FCRError\n",
    "datasets/files/kang.h5ad": "",
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_clean_package_passes(rule: Callable[[Path], Iterator[str]], tmp_path: Path) -> None:
    assert list(rule(grow(tmp_path, CLEAN))) == []


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("priors/a.py", "import pyro_fcr.model", "priors/a.py:1: priors may not import model"),
        ("priors/a.py", "from pyro_fcr.guides import x", "priors may not import guides"),
        ("priors/a.py", "from pyro_fcr import likelihoods", "priors may not import likelihoods"),
        ("priors/a.py", "from .. import guides", "priors may not import guides"),
        ("priors/a.py", "from ..model import LatentModel", "priors may not import model"),
        ("priors/b/c.py", "from ...model import LatentModel", "priors may not import model"),
        ("model.py", "from .infer import loop", "model may not import infer"),
        ("model.py", "from . import infer as i", "model may not import infer"),
        (
            "model.py",
            "def f():\n    from pyro_fcr.io import x",
            "model.py:2: model may not import",
        ),
        (
            "data/a.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..nn import M",
            "data/a.py:3: data may not import nn",
        ),
        ("data/a.py", "import pyro_fcr as pf", "data may not import __init__"),
        ("data/a.py", "from pyro_fcr import FCR", "data may not import __init__"),
        ("data/a.py", "import importlib as i\ni.import_module('pyro_fcr.nn')", "not import nn"),
        ("data/a.py", "__import__('pyro_fcr.nn')", "data may not import nn"),
        ("infer/a.py", "from pyro_fcr.model import LatentModel", "infer may not import model"),
        ("infer/a.py", "from pyro_fcr.guides import Guide", "infer may not import guides"),
        ("estimator.py", "from pyro_fcr.systems.fcr import X", "estimator may not import systems"),
        ("systems/a.py", "import pyro_fcr.cli", "systems may not import cli"),
        ("simulate/a.py", "from ..data import Schema", "simulate may not import data"),
        ("errors.py", "from ._version import v", "errors may not import _version"),
        ("__init__.py", "from .cli import main", "__init__ may not import cli"),
        ("utils.py", "", "utils: a room that the table does not know"),
        ("attic/old.py", "", "attic: a room that the table does not know"),
    ],
)
def test_wrong_directions_are_seen(path: str, text: str, said: str, tmp_path: Path) -> None:
    found = list(wrong_directions(grow(tmp_path, {path: text})))
    assert len(found) == 1
    assert said in found[0]


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (systems_by_name, "estimator.py", "if type(x).__name__ == 'FCR': ..."),
        (systems_by_name, "estimator.py", "isinstance(x, FCR)"),
        (systems_by_name, "estimator.py", "pf.SVAE"),
        (systems_by_name, "model.py", "class InVAE: ..."),
        (systems_by_name, "model.py", "def f(fcr): ..."),
        (systems_by_name, "infer/a.py", "f(svae=1)"),
        (systems_by_name, "infer/a.py", "from elsewhere import FCR as F"),
        (systems_by_name, "infer/b/a.py", "import elsewhere as invae"),
        (model_by_name, "infer/a.py", "isinstance(x, LatentModel)"),
        (prints, "data/a.py", "def f():\n    print('x')"),
        (asserts, "nn/a.py", "def f(x):\n    assert x"),
        (asserts, "cli.py", "assert True"),
        (long_systems, "systems/a.py", "x = 1\n" * SYSTEM_LINES),
    ],
)
def test_breaches_are_seen(
    rule: Callable[[Path], Iterator[str]], path: str, text: str, tmp_path: Path
) -> None:
    found = list(rule(grow(tmp_path, {path: text})))
    assert len(found) == 1
    assert path in found[0]


def test_declared_systems_count_as_names(tmp_path: Path) -> None:
    files = {"systems/a.py": "class Other: ...", "estimator.py": "Other()"}
    assert list(systems_by_name(grow(tmp_path, files))) == [
        "estimator.py:1: estimator names Other"
    ]


# Runs in a fresh interpreter: what changes in the process when the package is imported?
PROBE = """
import json, logging, os, random, sys, threading, warnings
import numpy as np, torch, pyro, matplotlib
from pyro.distributions.distribution import Distribution
from torch.distributions import Distribution as TorchDistribution

name = sys.argv[1]
filters = []

def watched(function):
    def call(*args, **kwargs):
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.split(".")[0] == name:
            filters.append(f"{caller}: {function.__name__}")
        return function(*args, **kwargs)
    return call

for setter in ("simplefilter", "filterwarnings", "resetwarnings"):
    setattr(warnings, setter, watched(getattr(warnings, setter)))

def state():
    np_state = np.random.get_state()
    return {
        "random": hash(random.getstate()),
        "numpy.random": hash((np_state[1].tobytes(), np_state[2:])),
        "torch RNG": hash(torch.get_rng_state().numpy().tobytes()),
        "pyro param store": sorted(pyro.get_param_store().keys()),
        "pyro settings": repr(sorted(pyro.settings.get().items(), key=str)),
        "pyro validation": pyro.poutine.util.is_validation_enabled(),
        "torch validation": TorchDistribution._validate_args,
        "torch dtype": str(torch.get_default_dtype()),
        "torch device": str(torch.get_default_device()),
        "torch threads": torch.get_num_threads(),
        "torch grad": torch.is_grad_enabled(),
        "torch anomaly": torch.is_anomaly_enabled(),
        "torch determinism": torch.are_deterministic_algorithms_enabled(),
        "torch matmul": torch.get_float32_matmul_precision(),
        "torch cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "torch print": repr(torch._tensor_str.PRINT_OPTS),
        "cuda": torch.cuda.is_initialized(),
        "numpy errors": sorted(np.geterr().items()),
        "matplotlib": repr(sorted(dict.items(matplotlib.rcParams))),
        "logging": repr((logging.getLogger().level, logging.getLogger().handlers)),
        "environment": sorted(os.environ.items()),
        "threads": threading.active_count(),
    }

before = state()
__import__(name)
after = state()
changed = sorted(key for key in before if before[key] != after[key])
sys.__stdout__.write("\\n" + json.dumps({"changed": changed, "filters": filters}))
"""


def imported(root: Path, cache: Path) -> tuple[dict[str, list[str]], str]:
    """Import the package in a fresh process; what it changed, and what it had to say."""
    environment = os.environ | {
        "PYTHONPATH": str(root),
        # ArviZ gives its daily notice once per cache: with an empty one it cannot hide.
        "XDG_CACHE_HOME": str(cache),
        "MPLCONFIGDIR": str(cache / "matplotlib"),
    }
    # The compiler sets the second when it is imported, which this process may have done.
    for name in ("PYTHONWARNINGS", "TORCHINDUCTOR_CACHE_DIR"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", PROBE, NAME],
        capture_output=True,
        text=True,
        env=environment,
        cwd=cache,
        timeout=120,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"import {NAME} failed:\n{done.stderr}")
    said, _, report = done.stdout.rstrip().rpartition("\n")
    chatter = "\n".join(
        line
        for line in (said + "\n" + done.stderr).splitlines()
        # numcodecs, under the oldest zarr, warns of a package that it stands on itself.
        if line and not re.search(r"Matplotlib is building the font cache|numcodecs", line)
    )
    return json.loads(report), chatter


def test_import_has_no_side_effects(tmp_path: Path) -> None:
    report, chatter = imported(ROOT, tmp_path)
    assert report == {"changed": [], "filters": []}
    assert chatter == ""


def test_side_effects_are_seen(tmp_path: Path) -> None:
    package = """
        import logging, os, random, sys, warnings
        import matplotlib, numpy as np, pyro, torch
        np.random.seed(3)
        random.seed(3)
        torch.manual_seed(3)
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(torch.get_num_threads() + 1)
        torch.set_float32_matmul_precision("high")
        torch.use_deterministic_algorithms(True)
        pyro.param("w", torch.ones(1))
        pyro.enable_validation(not pyro.poutine.util.is_validation_enabled())
        np.seterr(all="raise")
        matplotlib.rcParams["lines.linewidth"] = 7
        logging.basicConfig(level="DEBUG")
        os.environ["PYRO_FCR"] = "1"
        warnings.filterwarnings("ignore")
        sys.stderr.write("hello")
    """
    grow(tmp_path, {"__init__.py": package})
    report, chatter = imported(tmp_path, tmp_path)
    assert set(report["changed"]) >= {
        "environment",
        "logging",
        "matplotlib",
        "numpy errors",
        "numpy.random",
        "pyro param store",
        "pyro validation",
        "random",
        "torch RNG",
        "torch determinism",
        "torch dtype",
        "torch matmul",
        "torch threads",
    }
    assert report["filters"] == [f"{NAME}: filterwarnings"]
    assert chatter == "hello"
