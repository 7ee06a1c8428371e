"""Jobs in processes of their own: parallel, resumable, and none takes the others with it."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import platform
import signal
import time
import traceback
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

import pyro_fcr
from pyro_fcr._version import __version__
from pyro_fcr.benchmark.methods import MissingPackageError, fitted
from pyro_fcr.benchmark.problem import load
from pyro_fcr.benchmark.tasks import TASKS
from pyro_fcr.errors import BenchmarkError, DesignWarning, sentence
from pyro_fcr.files import whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from multiprocessing.process import BaseProcess

    from pyro_fcr.benchmark.config import Config, Job

__all__ = ["Outcome", "code_version", "freeze", "run"]

SPLITS = "splits.json"
"""Beside the configurations: the hash of the split of every job, by configuration."""

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Outcome:
    """What became of a benchmark's jobs.

    Attributes
    ----------
    rows
        The tasks' rows with the jobs' labels; ``job`` leads to ``jobs``. A row's ``form``, where a
        task scores a method in several, has become part of ``method``.
    jobs
        One row per job: labels, ``status`` ("done", "failed", "skipped"), ``error``, seconds of
        wall, CPU and fit, peak memory, versions, split.
    """

    rows: pd.DataFrame
    jobs: pd.DataFrame

    @property
    def failed(self) -> pd.DataFrame:
        """The jobs that failed."""
        return self.jobs[self.jobs["status"] == "failed"]


@cache
def code_version() -> str:
    """Twelve digits over the package's sources and bundled data's names: what a row depends on."""
    root = Path(pyro_fcr.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def run(
    config: Config,
    out: Path,
    *,
    processes: int | None = None,
    reuse: bool = False,
    command: str = "",
    tell: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Run the jobs of a benchmark that are not yet done, and return the rows of all.

    Each job runs in a spawned process with one thread, and writes one file when it ends. A job
    whose file is there, made by the same code, is not run again; a failed one is.

    Parameters
    ----------
    config
        The benchmark.
    out
        Folder of the jobs' files.
    processes
        At a time; by default one a core. 0: one job after the other in this process, where a
        crash is everybody's and memory is not the job's own.
    reuse
        Also keep what an earlier state of the code made; ``jobs`` says which.
    command
        Kept with the jobs.
    tell
        Called with a line for every job that ends.

    Raises
    ------
    BenchmarkError
        If a job's split is not the frozen one.
    """
    folder = out / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    jobs = config.jobs()
    todo = [job for job in jobs if not _is_done(folder / f"{job.key}.json", reuse)]
    frozen = None if config.is_quick else _frozen(config)
    if frozen is not None:
        _check_frozen(config, jobs, frozen)
    tell(f"{config.name}: {len(jobs)} jobs, {len(jobs) - len(todo)} of them done before")
    running: dict[Any, tuple[BaseProcess, Job]] = {}
    most = os.cpu_count() or 1 if processes is None else processes
    try:
        with _one_thread():
            for job in todo:
                _start(job, folder, frozen, command, running, apart=most > 0)
                while len(running) >= max(most, 1):
                    _reap(running, folder, command, tell)
            while running:
                _reap(running, folder, command, tell)
    finally:
        for process, _ in running.values():
            process.kill()
            process.join()
    return collect(config, out)


def collect(config: Config, out: Path) -> Outcome:
    """Read the files of a benchmark's jobs.

    Parameters
    ----------
    config
        The benchmark.
    out
        Folder given to :func:`run`.
    """
    rows, jobs = [], []
    for job in config.jobs():
        found = _read(out / "jobs" / f"{job.key}.json")
        if found is None:
            continue
        for row in found.pop("rows"):
            told = {**job.labels, **row, "job": job.key}
            if form := told.pop("form", None):
                told["method"] += f", {form}"
            rows.append(told)
        found.pop("spec")
        jobs.append({"job": job.key, **job.labels, **found})
    return Outcome(pd.DataFrame(rows), pd.DataFrame(jobs))


def freeze(config: Config, tell: Callable[[str], None] = lambda line: None) -> Path:
    """Write the hashes of a benchmark's splits beside its configuration.

    Parameters
    ----------
    config
        The benchmark.
    tell
        Called with a line for every split that was not frozen, or was another one.

    Returns
    -------
    The file.
    """
    path = config.folder / SPLITS
    every = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known = every.get(config.name, {})
    found = {}
    for job in config.jobs():
        if (name := _split_name(job)) not in found:
            found[name] = load(job.spec["data"], job.spec["seed"]).split.hash
            if known.get(name) != found[name]:
                tell(f"{config.name}: {name} is now {found[name][:12]}")
    every[config.name] = dict(sorted({**known, **found}.items()))
    _write(path, dict(sorted(every.items())))
    return path


# ---- one job ---------------------------------------------------------------------------------


def _work(job: Job, path: Path, frozen: str | None, told: Mapping[str, Any]) -> None:
    """Do a job and write its file; as a rule the whole of a spawned process."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    found: dict[str, Any] = {"status": "done", "error": ""}
    rows: list[dict[str, Any]] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            rows = _rows(job, frozen, found)
        except MissingPackageError as error:
            found |= {"status": "skipped", "error": str(error)}
        except Exception as error:  # noqa: BLE001 - one job's fault is written down, the others go on
            text = f"{type(error).__name__}: {error}"
            found |= {"status": "failed", "error": text, "trace": traceback.format_exc()}
    words = {str(w.message) for w in caught if issubclass(w.category, DesignWarning)}
    usage = _usage()
    found |= {"warnings": " ".join(sorted(words)), **told, **usage,
              "wall_seconds": round(time.perf_counter() - start, 2)}  # fmt: skip
    _write(path, {"spec": job.spec, **found, "rows": rows})


def _rows(job: Job, frozen: str | None, found: dict[str, Any]) -> list[dict[str, Any]]:
    spec = job.spec
    problem = load(spec["data"], spec["seed"])
    found["split"] = problem.split.hash
    if frozen is not None and problem.split.hash != frozen:
        raise BenchmarkError(
            sentence(
                "the split is not the frozen one",
                where=str(job),
                expected=frozen[:12],
                got=problem.split.hash[:12],
                hint="find out what changed; --freeze accepts the new one",
            )
        )
    task = TASKS[spec["task"]](**spec["options"])
    method = spec["method"]
    if "references" in method:
        return _plain(task.references(problem, seed=spec["seed"]))
    found["fit_seconds"] = 0.0

    def fit(seed: int) -> Any:
        start = time.perf_counter()
        model = fitted(method, problem, seed)
        found["fit_seconds"] = round(found["fit_seconds"] + time.perf_counter() - start, 2)
        return model

    return _plain(task.run(problem, fit, seed=spec["seed"]))


def _plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of JSON's own types; a value that is no number becomes an empty one."""

    def plain(value: Any) -> Any:
        value = value.item() if isinstance(value, np.generic) else value
        return None if isinstance(value, float) and not np.isfinite(value) else value

    return [{key: plain(value) for key, value in row.items()} for row in rows]


def _usage() -> dict[str, float]:
    """CPU seconds and peak memory of this process; not known on Windows."""
    try:
        import resource
    except ImportError:
        return {"cpu_seconds": float("nan"), "peak_gib": float("nan")}
    used = resource.getrusage(resource.RUSAGE_SELF)
    # In kibibytes, except on macOS, where it is bytes.
    unit = 1 if platform.system() == "Darwin" else 1024
    return {
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_gib": round(used.ru_maxrss * unit / 2**30, 3),
    }


# ---- processes -------------------------------------------------------------------------------


def _start(
    job: Job,
    folder: Path,
    frozen: Mapping[str, str] | None,
    command: str,
    running: dict[Any, tuple[BaseProcess, Job]],
    *,
    apart: bool,
) -> None:
    path = folder / f"{job.key}.json"
    path.unlink(missing_ok=True)
    split = None if frozen is None else frozen[_split_name(job)]
    if not apart:
        _work(job, path, split, _told(command))
        return
    process = multiprocessing.get_context("spawn").Process(
        target=_work, args=(job, path, split, _told(command)), daemon=True
    )
    process.start()
    running[process.sentinel] = (process, job)


def _reap(
    running: dict[Any, tuple[BaseProcess, Job]],
    folder: Path,
    command: str,
    tell: Callable[[str], None],
) -> None:
    """Wait for a process to end; one that left no file is written down as failed."""
    for sentinel in wait(list(running)):
        process, job = running.pop(sentinel)
        process.join()
        path = folder / f"{job.key}.json"
        if _read(path) is None:
            code = process.exitcode or 0
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            _write(path, {"spec": job.spec, "status": "failed", "rows": [], **_told(command),
                          "error": f"the process ended by {how}"})  # fmt: skip
        found = _read(path) or {}
        seconds = f"{found.get('wall_seconds', float('nan')):.0f} s"
        tell(f"{job}: {found.get('status')} {found.get('error') or seconds}")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let processes that start here use one thread each; numpy reads this at its import."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _told(command: str) -> dict[str, str]:
    return {
        "command": command,
        "version": __version__,
        "code": code_version(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "pyro": version("pyro-ppl"),
    }


# ---- files -----------------------------------------------------------------------------------


def _is_done(path: Path, reuse: bool) -> bool:
    found = _read(path)
    if found is None or found["status"] != "done":
        return False
    return reuse or found.get("code") == code_version()


def _frozen(config: Config) -> dict[str, str]:
    path = config.folder / SPLITS
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found.get(config.name, {})


def _check_frozen(config: Config, jobs: list[Job], frozen: Mapping[str, str]) -> None:
    missing = sorted({_split_name(job) for job in jobs} - set(frozen))
    if missing:
        raise BenchmarkError(
            sentence(
                f"{len(missing)} splits are not frozen",
                where=f"{config.folder / SPLITS}: {config.name}",
                expected="a hash for every job's split",
                got=f"none for {missing[0]!r}",
                hint="freeze them first: pyro-fcr benchmark NAME --freeze",
            )
        )


def _split_name(job: Job) -> str:
    data = job.spec["data"]
    return " / ".join([data["name"], *([data["fold"]] if data["fold"] else []),
                       str(job.spec["seed"])])  # fmt: skip


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False)
    with whole(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")
