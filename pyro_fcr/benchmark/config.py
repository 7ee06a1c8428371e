"""A benchmark as a file: what is asked, of which data, by which methods, under which seeds."""

from __future__ import annotations

import copy
import hashlib
import json
import tomllib
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_fcr.benchmark.methods import check_method
from pyro_fcr.benchmark.problem import check_recipe
from pyro_fcr.benchmark.tasks import TASKS
from pyro_fcr.errors import BenchmarkError, sentence
from pyro_fcr.reading import DAMAGE, first_line, regular

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["CONFIGS", "Config", "Job", "available", "read_config"]

CONFIGS = Path(__file__).parent / "configs"
"""The benchmarks of the package; ``data.toml`` among them names the data sets."""

DATA = "data.toml"

QUICK_DATA = {"cells": 24, "genes": 40, "min_cells": 2}
QUICK_FIT = {"max_epochs": 2}


@dataclass(frozen=True)
class Job:
    """The unit of work: one method on one data set under one seed.

    Attributes
    ----------
    spec
        Everything that decides the rows, JSON-able: task, data, split, method, seed.
    """

    spec: Mapping[str, Any]

    @cached_property
    def key(self) -> str:
        """Sixteen digits that stand for the spec."""
        text = json.dumps(self.spec, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def labels(self) -> dict[str, Any]:
        """The columns by which its rows are told from others'."""
        named = {"data": self.spec["data"]["name"], "fold": self.spec["data"]["fold"]}
        return {**named, "method": self.spec["method"]["name"], "seed": self.spec["seed"]}

    def __str__(self) -> str:
        """Its labels in one line."""
        return " / ".join(str(value) for value in self.labels.values() if value != "")


@dataclass(frozen=True)
class Config:
    """A benchmark; see ``pyro_fcr/benchmark/configs`` for examples.

    Attributes
    ----------
    name
        Of the file.
    task
        A key of :data:`~pyro_fcr.benchmark.tasks.TASKS`.
    title
        One line for the table's head.
    seeds
        Of simulations, splits and fits alike.
    data
        Recipes: an entry of ``data.toml`` by name, what differs from it, and a split.
    methods
        By the name that tables show: a system, an external adapter, or the task's references.
    options
        Of the task.
    table
        ``columns`` of the summary; ``by``, the labels of its rows; ``shares``, columns to give as
        shares of the ``ceiling``'s; ``against``, the method every other is compared with
        condition by condition.
    """

    name: str
    task: str
    title: str
    seeds: tuple[int, ...]
    data: tuple[Mapping[str, Any], ...]
    methods: Mapping[str, Mapping[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    table: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = CONFIGS
    is_quick: bool = False

    def jobs(self) -> list[Job]:
        """Return every job, data by data, seed by seed."""
        return [
            Job({"task": self.task, "options": dict(self.options),
                 "data": {k: v for k, v in recipe.items() if k != "quick"},
                 "method": {"name": name, **method}, "seed": seed})
            for recipe in self.data
            for seed in self.seeds
            for name, method in self.methods.items()
        ]  # fmt: skip

    def quick(self) -> Config:
        """Return a smoke test of the same shape: few cells, one fold, one seed, two epochs."""
        recipes: dict[str, dict[str, Any]] = {}
        for recipe in self.data:
            small: dict[str, Any] = copy.deepcopy(dict(recipe))
            quick = small.pop("quick", {})
            few = {} if small["source"].startswith("simulate.") else QUICK_DATA
            arguments = {**small["arguments"], **quick.get("arguments", {})}
            small |= {**few, **quick, "arguments": arguments}
            recipes.setdefault(small["name"], small)
        methods = {
            name: {**method, **({"fit": {**method.get("fit", {}), **QUICK_FIT}}
                                if "system" in method else {})}
            for name, method in self.methods.items()
        }  # fmt: skip
        options = {**self.options, **TASKS[self.task].quick_options}
        return replace(self, seeds=self.seeds[:1], data=tuple(recipes.values()), methods=methods,
                       options=options, is_quick=True)  # fmt: skip

    def only(
        self,
        *,
        seeds: Iterable[int] = (),
        data: Iterable[str] = (),
        methods: Iterable[str] = (),
    ) -> Config:
        """Return the part of the benchmark with these seeds, data sets and methods.

        Parameters
        ----------
        seeds
            Any seeds, also others than the configured ones.
        data, methods
            Names; all of them if none is given.
        """
        names, wanted = tuple(data), tuple(methods)
        _known(names, {recipe["name"] for recipe in self.data}, f"{self.name}: data")
        _known(wanted, self.methods, f"{self.name}: methods")
        return replace(
            self,
            seeds=tuple(seeds) or self.seeds,
            data=tuple(r for r in self.data if not names or r["name"] in names),
            methods={k: v for k, v in self.methods.items() if not wanted or k in wanted},
        )


def available() -> list[str]:
    """Return the names of the package's benchmarks."""
    return sorted(path.stem for path in CONFIGS.glob("*.toml") if path.name != DATA)


def read_config(name: str | Path) -> Config:
    """Read and check a benchmark.

    Parameters
    ----------
    name
        One of :func:`available`, or the path of a ``.toml`` file.

    Raises
    ------
    BenchmarkError
        If there is no such file, or what it says does not hold together.
    """
    path = Path(name)
    if path.suffix != ".toml":
        _known([str(name)], available(), "benchmark")
        path = CONFIGS / f"{name}.toml"
    content = _read_toml(path)
    where = path.name
    allowed = {f.name for f in fields(Config)} - {"name", "folder", "is_quick"}
    _known(content, allowed, where)
    if missing := {"task", "title", "seeds", "data", "methods"} - set(content):
        raise _refusal("incomplete", where, f"the keys {sorted(missing)}", "none of them",
                       "add them")  # fmt: skip
    _known([content["task"]], TASKS, f"{where}: task")
    seeds = content["seeds"]
    if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise _refusal("no seeds", f"{where}: seeds", "whole numbers, at least one", repr(seeds),
                       "seeds = [11, 12, 13]")  # fmt: skip
    options = content.get("options", {})
    TASKS[content["task"]].check(options, where=f"{where}: options")
    for label, method in content["methods"].items():
        check_method(method, where=f"{where}: methods.{label}")
    table = content.get("table", {})
    _known(table, ("columns", "by", "shares", "against", "ceiling"), f"{where}: table")
    named = {**_read_toml(CONFIGS / DATA)}
    if path.parent != CONFIGS and (path.parent / DATA).is_file():
        named |= _read_toml(path.parent / DATA)
    recipes = [r for entry in content["data"] for r in _recipes(entry, named, where=where)]
    return Config(
        name=path.stem,
        task=content["task"],
        title=content["title"],
        seeds=tuple(seeds),
        data=tuple(recipes),
        methods=content["methods"],
        options=options,
        table=table,
        folder=path.parent,
    )


def _recipes(
    entry: Mapping[str, Any], named: Mapping[str, Any], *, where: str
) -> list[dict[str, Any]]:
    """Return one recipe per fold of an entry, with what data.toml says of its data set."""
    if "name" not in entry:
        raise _refusal("a data set without a name", f"{where}: data", 'name = "..."',
                       repr(dict(entry)), "name an entry of data.toml")  # fmt: skip
    base = entry.get("base", entry["name"])
    _known([base], named, f"{where}: data")
    whole = {"arguments": {}, **named[base], **entry}
    whole.pop("base", None)
    whole["arguments"] = {**named[base].get("arguments", {}), **entry.get("arguments", {})}
    check_recipe(whole, where=f"{where}: data {entry['name']}")
    split = dict(whole["split"])
    each = split.pop("each", None)
    if each is None:
        return [{**whole, "split": split, "fold": ""}]
    return [
        {**whole, "fold": value, "split": {**split, "hold_out": {**split["hold_out"],
                                                                 each: value}}}
        for value in split["hold_out"][each]
    ]  # fmt: skip


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(regular(path).read_text(encoding="utf-8"))
    except OSError:
        raise _refusal("no such benchmark", str(path), f"a .toml file, or one of {available()}",
                       "none", "check the name") from None  # fmt: skip
    except DAMAGE as error:
        raise _refusal("not TOML", str(path), "a file that tomllib reads", first_line(error),
                       "mend that line") from None  # fmt: skip


def _known(given: Iterable[str], known: Iterable[str], where: str) -> None:
    known = sorted(known)
    for name in given:
        if name not in known:
            raise _refusal("an unknown name", where, f"one of {known}", repr(name),
                           "correct it")  # fmt: skip


def _refusal(what: str, where: str, expected: str, got: str, hint: str) -> BenchmarkError:
    return BenchmarkError(sentence(what, where=where, expected=expected, got=got, hint=hint))
