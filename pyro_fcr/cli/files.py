"""Files that commands read and write; a run is a folder."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import anndata
import h5py
import pandas as pd
import torch

import pyro_fcr as pf
from pyro_fcr._version import __version__
from pyro_fcr.cli.options import known_device
from pyro_fcr.data import keep_inside
from pyro_fcr.datasets.bundled import SHA256
from pyro_fcr.errors import DesignError, LoadError, sentence
from pyro_fcr.files import finish, together, whole
from pyro_fcr.io import file_hash
from pyro_fcr.nn import read_tensors
from pyro_fcr.reading import DAMAGE, first_line, regular

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import click
    from anndata import AnnData

    from pyro_fcr import Split

__all__ = [
    "compare_runs",
    "latents_of",
    "load_run",
    "made_by",
    "read_data",
    "read_split",
    "ready_file",
    "ready_folder",
    "save_run",
    "short_table",
    "told_of",
    "write_h5ad",
    "write_text",
]


def read_data(path: Path) -> AnnData:
    """Read an ``.h5ad`` file into memory, or say why it cannot be read."""
    if not path.is_file():
        raise LoadError(
            sentence("no such data file", where="DATA", expected="an .h5ad file", got=str(path),
                     hint="check the path")
        )  # fmt: skip
    try:
        with h5py.File(path, "r") as file:
            keep_inside(file, path)
        return anndata.read_h5ad(path)
    except LoadError:
        raise
    except DAMAGE as error:
        raise LoadError(
            sentence(
                "the data file cannot be read",
                where=str(path),
                expected="an .h5ad file that anndata can read",
                got=first_line(error),
                hint="write it again with adata.write_h5ad",
            )
        ) from error


def load_run(run: Path, device: str) -> Any:
    """Return the run's model on a device."""
    return pf.load(run, device=known_device(device))


def read_split(run: Path) -> Split | None:
    """Return the run's split; ``None`` where it held nothing out."""
    path = run / "split.csv"
    if not os.path.lexists(path):
        return None
    try:
        table = pd.read_csv(regular(path), dtype=str, keep_default_na=False)
        names, parts = table["cell"].tolist(), table["part"].tolist()
    except DAMAGE as error:
        raise LoadError(
            sentence(
                "the run's split cannot be read",
                where=str(path),
                expected="columns cell and part",
                got=first_line(error, 120),
                hint="fit again, or give a split",
            )
        ) from error
    told = _read_run(run).get("split")
    if isinstance(told, dict):
        # With the hash that the run's record keeps, a changed table is refused.
        return pf.Split.from_dict({**told, "names": names, "parts": parts})
    return pf.Split(tuple(names), tuple(parts)) if "test" in parts else None


def _read_run(run: Path) -> dict[str, Any]:
    path = run / "run.json"
    if not os.path.lexists(path):
        return {}
    try:
        found = json.loads(regular(path).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError(f"a {type(found).__name__}")
    except DAMAGE as error:
        raise LoadError(
            sentence(
                "the run's record cannot be read",
                where=str(path),
                expected="what fit wrote",
                got=first_line(error, 120),
                hint="fit again, or take the file away",
            )
        ) from error
    return found


def told_of(run: Path) -> dict[str, str]:
    """Return what the page says of a run beside what the model knows."""
    found = _read_run(run)
    told = {"Command": found.get("command"), "Started": found.get("started")}
    if isinstance(found.get("versions"), dict):
        told["Versions"] = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    data = found.get("data")
    if isinstance(data, dict):
        told["Data"] = (
            f"{data.get('path')}: {data.get('cells')} cells, {data.get('genes')} genes, "
            f"sha256 {str(data.get('sha256'))[:12]}"
        )
    return {name: str(value) for name, value in told.items() if value}


def ready_folder(folder: Path) -> None:
    """Find out before the work that the results will have a place."""
    if folder.exists() and not folder.is_dir():
        raise DesignError(
            sentence("the run's place is taken", where="--out", expected="a folder", got=f"a file "
                     f"called {folder}", hint="choose another name")
        )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(13, "cannot write to the folder", str(folder))


def ready_file(path: Path, ending: str) -> None:
    """Find out before the work that the result will have a place, and the name of its kind."""
    if path.is_dir():
        raise DesignError(
            sentence("the result's place is taken", where="--out", expected="a file", got=f"the "
                     f"folder {path}", hint="give a file's name in it")
        )  # fmt: skip
    if path.suffix.lower() != ending:
        raise DesignError(
            sentence("the result is of another kind", where="--out", expected=f"a file's name "
                     f"that ends in {ending}", got=path.name, hint=f"--out {path.stem}{ending}")
        )  # fmt: skip
    ready_folder(path.parent)


def write_text(path: Path, text: str) -> Path:
    """Write a text file whole."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def write_h5ad(adata: AnnData, path: Path) -> Path:
    """Write an ``.h5ad`` file whole."""
    with whole(path) as partial:
        adata.write_h5ad(partial)
    return path


def latents_of(model: Any, adata: AnnData) -> AnnData:
    """Return the cells without counts, with the posterior means of every block."""
    out = anndata.AnnData(obs=adata.obs.copy())
    key = type(model).__name__.lower()
    for name, frame in model.latents(adata).items():
        out.obsm[f"X_{key}_{name}"] = frame.to_numpy()
    return out


def save_run(
    out: Path,
    model: Any,
    adata: AnnData,
    split: Split | None,
    made: Mapping[str, Any],
    *,
    seconds: float,
) -> None:
    """Write the model, its split and its record; ``model.json`` last, which makes it a run.

    Parameters
    ----------
    out
        The run's folder.
    model, adata, split
        What was fitted, to what.
    made
        The path of the data, by which command, with which options.
    seconds
        It took.
    """
    data = made["data"]
    names = [str(name) for name in adata.obs_names]
    parts = dict(zip(split.names, split.parts, strict=True)) if split is not None else {}
    table = pd.DataFrame({"cell": names, "part": [parts.get(name, "train") for name in names]})
    record = {
        "command": shlex.join(["pyro-fcr", *sys.argv[1:]]),
        "started": datetime.fromtimestamp(time.time() - seconds, UTC).isoformat("T", "seconds"),
        "seconds": round(seconds, 2),
        "versions": _versions(),
        "machine": _machine(model),
        "made": {"by": made["by"], "options": dict(made["options"])},
        "data": {
            "path": "pyro_fcr.datasets.kang()" if data is None else str(data.resolve()),
            "sha256": SHA256["kang_ifnb"] if data is None else file_hash(data),
            "cells": adata.n_obs,
            "genes": adata.n_vars,
        },
        "split": None if split is None else {
            "recipe": split.recipe, "hash": split.hash, "cells": split.counts()
        },
    }  # fmt: skip
    with together(out) as stage:
        model.save(stage)
        table.to_csv(stage / "split.csv", index=False)
        text = json.dumps(record, indent=1, ensure_ascii=False)
        (stage / "run.json").write_text(text, encoding="utf-8")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "pyro-fcr": __version__}
    for name in ("pyro-ppl", "torch", "anndata", "numpy", "scipy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def _machine(model: Any) -> dict[str, Any]:
    """Return what results may depend on beside data, options and versions."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": torch.backends.cpu.get_cpu_capability(),
        "device": str(model.device),
        "threads": model.settings["threads"],
    }


def made_by(run: Path, commands: Mapping[str, click.Command]) -> dict[str, Any]:
    """Return which command made a run, with which options, from which data.

    Parameters
    ----------
    run
        Its folder.
    commands
        Those that make runs, by name.

    Raises
    ------
    LoadError
        If the run does not tell.
    """
    finish(run)
    found = _read_run(run)
    try:
        made = found["made"]
        options, place = dict(made["options"]), str(found["data"]["path"])
        needed = {str(given.name) for given in commands[made["by"]].params} - {"data", "out"}
        if needed - {*options}:
            raise KeyError(*(needed - {*options}))
    except (KeyError, TypeError, ValueError) as error:
        raise LoadError(
            sentence(
                "the run does not tell how it was made",
                where=str(run / "run.json"),
                expected="the record of fit or demo",
                got=first_line(error, 120),
                hint="fit it again with the command line",
            )
        ) from None
    return {"by": made["by"], "options": options, "data": place}


def compare_runs(run: Path, other: Path) -> tuple[bool, list[str]]:
    """Return whether two runs have the same weights, and a line for each difference.

    Parameters
    ----------
    run, other
        Their folders.
    """
    lines = []
    told, found = _read_run(run), _read_run(other)
    for what in ("versions", "machine", "data", "split"):
        was, now = (record[what] if isinstance(record.get(what), dict) else {}
                    for record in (told, found))  # fmt: skip
        lines += [
            f"{what}: {name} was {was.get(name)}, is {now.get(name)}"
            for name in sorted({*was, *now} - {"path"})
            if was.get(name) != now.get(name)
        ]
    was, now = (read_tensors(folder / "weights.safetensors")[0] for folder in (run, other))
    for name in sorted({*was, *now}):
        if name not in was or name not in now or was[name].shape != now[name].shape:
            lines.append(f"weights: {name} is in one of the two, or of another shape")
        elif not torch.equal(was[name], now[name]):
            far = float((was[name].double() - now[name].double()).abs().max())
            lines.append(f"weights: {name} differs by up to {far:.3g}")
    return not any(line.startswith("weights") for line in lines), lines


def short_table(table: pd.DataFrame) -> str:
    """Return a table as text that fits the terminal."""
    width = shutil.get_terminal_size((100, 24)).columns
    return table.round(3).to_string(line_width=max(width, 60))
