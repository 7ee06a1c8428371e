"""Damaged files and what reads them: each case drawn from a seed, each answer judged."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import signal
import struct
import warnings
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import torch
from click.testing import CliRunner
from safetensors.torch import load, save
from scipy import sparse
from tiny import fit, tiny_adata, tiny_fcr, tiny_schema

import pyro_fcr as pf
from pyro_fcr.benchmark import read_config
from pyro_fcr.benchmark.config import CONFIGS
from pyro_fcr.cli import main
from pyro_fcr.data import Design, open_data
from pyro_fcr.errors import FCRError
from pyro_fcr.io import seal
from pyro_fcr.nn import tensors as stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECONDS = 60
"""A reader that takes longer hangs."""

ODD = [
    None, True, False, 0, -1, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), -0.5,
    "", "x" * 10_000, "../../../etc/passwd", "/dev/zero", "os.system", "\u2028", "\x00", "é" * 9,
    "__class__", [], {}, [[]], [None], {"": None}, {"part": "os.system", "arguments": {}},
    {"part": "priors.__builtins__"}, {"autoguide": "__import__"}, {"user": "Mine"}, [1, "2", None],
]  # fmt: skip
"""What stands in a JSON file in the place of something else."""


UNSEALED = ("json odd", "json nested", "tensor header", "tensor header size")
"""Damage that no checksum was made for."""


class Hang(BaseException):
    """No ordinary handler may swallow it."""


# ---- damage ------------------------------------------------------------------------------------


def damaged_bytes(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Change a file's bytes in one of eight ways."""
    kind = rng.choice(["cut", "flip", "flips", "overwrite", "insert", "drop", "empty", "random"])
    at = int(rng.integers(max(len(data), 1)))
    size = int(2 ** rng.uniform(0, 10))
    noise = rng.bytes(size)
    kind = str(kind)
    if kind == "cut":
        return kind, data[:at]
    if kind in ("flip", "flips"):
        changed = bytearray(data)
        # Where a file keeps what it says of itself.
        front = min(len(data), 4096) if rng.random() < 0.5 else len(data)
        for place in rng.integers(max(front, 1), size=1 if kind == "flip" else 20):
            if len(changed):
                changed[int(place)] ^= 1 << int(rng.integers(8))
        return kind, bytes(changed)
    if kind == "overwrite":
        return kind, data[:at] + noise + data[at + size :]
    if kind == "insert":
        return kind, data[:at] + noise + data[at:]
    if kind == "drop":
        return kind, data[:at] + data[at + size :]
    return (kind, b"") if kind == "empty" else (kind, rng.bytes(min(len(data), 5000)))


def _nodes(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if not isinstance(value, (dict, list)):
        return []
    inside = list(value.items() if isinstance(value, dict) else enumerate(value))
    below = [_nodes(item, (*path, key)) for key, item in inside]
    return [(*path, key) for key, _ in inside] + [found for each in below for found in each]


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def damaged_value(content: Any, rng: np.random.Generator) -> tuple[str, Any]:
    """Change one place of a JSON-able value."""
    content = json.loads(json.dumps(content))
    every = _nodes(content)
    # Every depth alike: a long list of genes would else be all that is ever hit.
    depths = sorted({len(path) for path in every})
    level = depths[int(rng.integers(len(depths)))]
    among = [path for path in every if len(path) == level]
    *above, key = among[int(rng.integers(len(among)))]
    parent = _at(content, tuple(above))
    kind = str(rng.choice(["swap", "swap", "swap", "drop", "double", "deep", "huge"]))
    if kind == "drop":
        del parent[key]
    elif kind == "double" and isinstance(parent, list):
        parent.insert(key, parent[key])
    elif kind == "double":
        parent[str(key) + "2"] = parent[key]
    elif kind == "deep":
        nested: Any = parent[key]
        for _ in range(200):
            nested = [nested]
        parent[key] = nested
    elif kind == "huge":
        parent[key] = [10**9, 10**12, 1e300][int(rng.integers(3))]
    else:
        parent[key] = ODD[int(rng.integers(len(ODD)))]
    return f"json {kind}", content


def sealed(content: Any) -> str:
    """Write JSON as ``save`` does: its hash is right, whatever it says."""
    return json.dumps(seal(content) if isinstance(content, dict) else content)


def damaged_json(text: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Change what a JSON file says, and make its hash right again."""
    if rng.random() < 0.05:
        return "json nested", b"[" * 200_000 if rng.random() < 0.5 else b'{"a":' * 50_000
    if rng.random() < 0.05:
        return "json odd", json.dumps(ODD[int(rng.integers(len(ODD)))]).encode()
    kind, content = damaged_value(json.loads(text), rng)
    return kind, sealed(content).encode()


def damaged_tensors(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Change what a safetensors file holds, and make its hash right again."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    kind = str(rng.choice(["shape", "type", "missing", "extra", "name", "meta", "header", "size"]))
    if kind == "size":
        size = [0, 1, length - 1, length + 1, 2**31, 2**63][int(rng.integers(6))]
        return "tensor header size", struct.pack("<Q", size) + data[8:]
    if kind == "header":
        text = json.dumps(damaged_value(header, rng)[1]).encode()
        return "tensor header", struct.pack("<Q", len(text)) + text + data[8 + length :]
    tensors = load(data)
    meta = json.loads(header["__metadata__"]["json"])
    meta.pop("sha256")
    name = list(tensors)[int(rng.integers(len(tensors)))]
    if kind == "shape":
        old = tensors[name]
        shapes = [(*old.shape, 1), (0,), tuple(s + 1 for s in old.shape) or (2,), ()]
        shape = shapes[int(rng.integers(4))]
        tensors[name] = torch.zeros(shape, dtype=old.dtype)
    elif kind == "type":
        types = [torch.float64, torch.int64, torch.bool, torch.float16, torch.uint8]
        tensors[name] = tensors[name].to(types[int(rng.integers(5))])
    elif kind in ("missing", "name"):
        gone = tensors.pop(name)
        if kind == "name":
            tensors[
                ["", "../../x", name + ".0", "rng.0", "optimiser.x.y"][int(rng.integers(5))]
            ] = gone
    elif kind == "extra":
        tensors["objective.extra"] = torch.ones(3)
    else:
        meta = damaged_value({"meta": meta}, rng)[1].get("meta")
    told = stored.seal(tensors, meta) if isinstance(meta, dict) else meta
    return f"tensor {kind}", save(tensors, {"json": json.dumps(told)})


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def bombs(mark: Path) -> dict[str, bytes]:
    """Return files that run code in whoever unpickles them."""
    stored, arrays = io.BytesIO(), io.BytesIO()
    torch.save({"a": Bomb(mark)}, stored)
    np.save(arrays, np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    plain = pickle.dumps(Bomb(mark))
    return {"pickle": plain, "torch": stored.getvalue(), "npy": arrays.getvalue()}


def misplaced(path: Path, rng: np.random.Generator, mark: Path) -> str:
    """Put something else in a file's place."""
    kind = str(rng.choice(["missing", "folder", "loop", "device", "fifo", "elsewhere", "bomb"]))
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "elsewhere":
        path.symlink_to("../../../../../../../../etc/passwd")
    elif kind == "bomb":
        path.write_bytes(list(bombs(mark).values())[int(rng.integers(3))])
    return kind


def damage(path: Path, rng: np.random.Generator, mark: Path) -> str:
    """Damage one file; return how."""
    if path.parent.name == "dicts":
        kind, content = damaged_value(json.loads(path.read_text()), rng)
        path.write_text(json.dumps(content))
        return kind
    chance = rng.random()
    if chance < 0.1:
        return misplaced(path, rng, mark)
    data = path.read_bytes()
    change: Callable[[bytes, np.random.Generator], tuple[str, bytes]] = damaged_bytes
    if path.suffix == ".json" and chance < 0.7:
        change = damaged_json
    elif path.suffix == ".safetensors" and chance < 0.6:
        change = damaged_tensors
    kind, changed = change(data, rng)
    path.write_bytes(changed)
    return kind


# ---- readers -----------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What a reader made of a damaged file."""

    reader: str
    seed: int
    file: str
    kind: str
    answer: str
    told: str = ""

    @property
    def is_good(self) -> bool:
        """Whether nobody could complain."""
        return self.answer in ("refused", "same", "valid")


@dataclass
class Readers:
    """Everything that reads files, each beside a whole example of what it reads."""

    folder: Path
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.adata = tiny_adata(per_condition=6, n_genes=12)
        self.few = self.adata[:20].copy()
        whole = self.folder / "whole"
        if not whole.is_dir():
            self._make(whole)
        self.whole = whole
        self.mark = self.folder / "exploded"
        self.checks: dict[str, Callable[[Path], str]] = {
            **{f"pf.load ({name})": self._load for name in ("FCR", "SVAE", "InVAE")},
            "fit(resume=True)": self._resume,
            "pyro-fcr latents": self._latents,
            "pyro-fcr evaluate": self._evaluate,
            "pyro-fcr report": self._report,
            "pyro-fcr latents, its data": self._data,
            ".h5ad on disk": self._stream,
            ".h5ad on disk, sparse": self._stream,
            ".zarr on disk": self._stream,
            "Design, Schema, Split from_dict": self._dicts,
            "pyro-fcr benchmark, its file": self._config,
        }
        self.expected: dict[str, Any] = {}
        self.reading = ""

    def _make(self, whole: Path) -> None:
        whole.mkdir()
        split = pf.splits.hold_out(self.adata, {"drug": ["A"], "type": ["u"]})
        self.adata.write_h5ad(whole / "data.h5ad")
        compressed = self.adata.copy()
        compressed.X = sparse.csr_matrix(compressed.X)
        compressed.write_h5ad(whole / "sparse.h5ad")
        self.adata.X = self.adata.X.copy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with anndata.settings.override(zarr_write_format=2):
                self.adata.write_zarr(whole / "data.zarr")
        tiny_fcr_options = {"guide": pf.guides.Amortised(width=8, depth=1), "hidden": (8,)}
        systems = {
            "FCR": tiny_fcr(self.adata, hidden=(8,)),
            "SVAE": pf.SVAE(self.adata, pf.Schema(treatment="drug", control="ctrl"),
                            sizes={"z": 3}, **tiny_fcr_options),
            "InVAE": pf.InVAE(self.adata, pf.Schema(covariates=["type"], batch="lane"),
                              invariant=["type"], spurious=["lane"], **tiny_fcr_options),
        }  # fmt: skip
        for name, model in systems.items():
            fit(model, max_epochs=1, split=split)
            model.save(whole / name)
        fcr = systems["FCR"]
        fit(fcr, **self._run(whole))
        out = whole / "run"
        columns = ["--treatment", "drug", "--control", "ctrl", "--covariate", "type"]
        held_out = ["--hold-out", "drug=A", "--hold-out", "type=u"]
        self._cli("fit", whole / "data.h5ad", *columns, *held_out, "--z-x", "2", "--max-epochs",
                  "1", "--quiet", "--device", "cpu", "--out", out)  # fmt: skip
        texts = {
            "design.json": fcr.design.to_dict(),
            "schema.json": fcr.design.schema.to_dict(),
            "split.json": split.to_dict(),
        }
        (whole / "dicts").mkdir()
        for name, content in texts.items():
            (whole / "dicts" / name).write_text(json.dumps(content))
        (whole / "config").mkdir()
        for name in ("data.toml", "held-out-combination.toml"):
            shutil.copy(CONFIGS / name, whole / "config")

    def _run(self, folder: Path) -> dict[str, Any]:
        return {"max_epochs": 2, "checkpoint": folder / "checkpoint.safetensors", "seed": 3}

    # Each gets a damaged copy, and says "same" or "valid", or raises.

    def _load(self, path: Path) -> str:
        return self._compare(path, self._told(pf.load(path)))

    def _told(self, model: Any) -> Any:
        state = {name: value.numpy() for name, value in model._objective.state_dict().items()}
        frames = {name: frame.to_numpy() for name, frame in model.latents(self.few).items()}
        said = [model.design.to_dict(), model.settings, model.sizes, type(model).__name__]
        return {**state, **frames, "said": json.dumps(said), "csv": model.history.to_csv()}

    def _resume(self, path: Path) -> str:
        model = tiny_fcr(self.adata, hidden=(8,))
        before = {name: value.clone() for name, value in model._objective.state_dict().items()}
        try:
            fit(model, **self._run(path.parent), resume=True)
        except FCRError:
            after = model._objective.state_dict()
            assert all(torch.equal(after[name], before[name]) for name in before), "half read"
            assert model._history is None, "half read"
            raise
        return self._compare(path, self._told(model))

    def _cli(self, *args: Any) -> str:
        done = CliRunner().invoke(main, [str(arg) for arg in args])
        if done.exit_code == 0:
            return done.stdout
        unhandled = done.exception
        if unhandled is not None and not isinstance(unhandled, SystemExit):
            raise unhandled
        lines = done.stderr.splitlines()
        told = [line for line in lines if not line.startswith("pyro-fcr: warning:")]
        assert done.exit_code == 2, f"exit {done.exit_code}: {done.output}"
        assert len(told) == 1, f"{len(told)} lines: {told[:3]}"
        raise FCRError(told[0])

    def _latents(self, path: Path) -> str:
        self._cli("latents", path, self.whole / "data.h5ad", "--out", path.parent / "z.h5ad")

        found = anndata.read_h5ad(path.parent / "z.h5ad")
        return self._compare(path, {name: np.asarray(z) for name, z in found.obsm.items()})

    def _evaluate(self, path: Path) -> str:
        out = path.parent / "t.csv"
        self._cli("evaluate", path, self.whole / "data.h5ad", "--draws", 1, "--out", out)
        return self._compare(path, {"csv": out.read_text()})

    def _report(self, path: Path) -> str:
        self._cli("report", path, "--out", path.parent / "page.html")
        text = (path.parent / "page.html").read_text()
        assert text.count("<script") == 1, "a script from a file"
        return "valid"

    def _data(self, path: Path) -> str:
        self._cli("latents", self.whole / "run", path, "--out", path.parent / "z.h5ad")
        return "valid"

    def _stream(self, path: Path) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _, cells = Design.fit_encode(open_data(path), tiny_schema())
            total = float(cells.loaded().counts.sum())
        assert np.isfinite(total), "values that are not finite"
        return "valid"

    def _dicts(self, path: Path) -> str:
        for name, cls in (("design", Design), ("schema", pf.Schema), ("split", pf.Split)):
            content = json.loads((path / f"{name}.json").read_text())
            json.dumps(cls.from_dict(content).to_dict())
        return "valid"

    def _config(self, path: Path) -> str:
        read_config(path / "held-out-combination.toml").jobs()
        return "valid"

    def _compare(self, path: Path, found: Any) -> str:
        expected = self.expected.get(self.reading)
        if expected is None:
            return "same"
        assert expected.keys() == found.keys(), "another model"
        same = all(
            np.array_equal(expected[k], found[k], equal_nan=np.asarray(found[k]).dtype.kind == "f")
            for k in found
        )
        return "same" if same else "other"

    # ---- one case ------------------------------------------------------------------------------

    def sample(self, reader: str) -> Path:
        """Return the whole example that a reader reads."""
        if reader.startswith("pf.load"):
            return self.whole / reader.split("(")[1][:-1]
        return self.whole / {
            "fit(resume=True)": "checkpoint.safetensors",
            "pyro-fcr latents": "run", "pyro-fcr evaluate": "run", "pyro-fcr report": "run",
            "pyro-fcr latents, its data": "data.h5ad", ".h5ad on disk": "data.h5ad",
            ".h5ad on disk, sparse": "sparse.h5ad", ".zarr on disk": "data.zarr",
            "Design, Schema, Split from_dict": "dicts",
            "pyro-fcr benchmark, its file": "config",
        }[reader]  # fmt: skip

    def remember(self, reader: str) -> None:
        """Read the whole example, so that what a damaged one gives can be compared."""
        sample = self.sample(reader)
        self.reading = reader
        copied = self._copy(sample)
        found: dict[str, Any] = {}
        compare, self._compare = self._compare, lambda _, told: found.update(told) or "same"
        try:
            self.checks[reader](copied)
        finally:
            self._compare = compare
        self.expected[reader] = found

    def _copy(self, sample: Path) -> Path:
        place = self.folder / "case"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        to = place / sample.name
        if sample.is_dir():
            return shutil.copytree(sample, to)
        return Path(shutil.copy(sample, to))

    def case(self, reader: str, seed: int) -> Outcome:
        """Damage one file of an example, drawn from the seed, and let it be read."""
        sample = self.sample(reader)
        if reader not in self.expected:
            self.remember(reader)
        self.reading = reader
        rng = np.random.default_rng([seed, *reader.encode()])
        copied = self._copy(sample)
        files = (
            sorted(p for p in copied.rglob("*") if p.is_file()) if copied.is_dir() else [copied]
        )
        file = files[int(rng.integers(len(files)))]
        kind = damage(file, rng, self.mark)
        outcome = Outcome(reader, seed, file.name, kind, "")
        with alarm(SECONDS):
            try:
                outcome.answer = self.checks[reader](copied)
            except FCRError as error:
                told = str(error)
                outcome.answer, outcome.told = "refused", told
                if "\n" in told or len(told) > 1500:
                    outcome.answer = "unclear"
            except Hang:
                outcome.answer = "hung"
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
                outcome.answer = "crashed"
                outcome.told = f"{type(error).__name__}: {error}"[:300]
        if outcome.answer == "other":
            # What was sealed anew, or is not there, may well be another model that is whole.
            sealed = kind.startswith(("json", "tensor")) and kind not in UNSEALED
            outcome.answer = "valid" if sealed or kind in ("missing", "loop") else "unnoticed"
        if self.mark.exists():
            outcome.answer = "ran code"
            self.mark.rmdir()
        return outcome


@contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """Raise :class:`Hang` when the time is up."""

    def ring(*_: Any) -> None:
        raise Hang

    former = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)
