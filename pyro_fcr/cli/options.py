"""Options that several commands share, and how their text is read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch

import pyro_fcr as pf
from pyro_fcr.errors import DesignError, sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anndata import AnnData

    from pyro_fcr import Split

__all__ = [
    "PATH",
    "OrAuto",
    "chosen_split",
    "device_option",
    "draws_option",
    "known_device",
    "matching",
    "pairs",
    "progress_option",
    "seed_option",
    "split_options",
    "whole_numbers",
]

PATH = click.Path(path_type=Path)


class OrAuto(click.IntRange):
    """A whole number from ``min`` on, or the word auto."""

    name = "integer or auto"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the number, or ``"auto"``."""
        return value if value == "auto" else super().convert(value, param, ctx)


def _options(*decorators: Callable[..., Any]) -> Callable[..., Any]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


split_options = _options(
    click.option("--split", metavar="random|COLUMN", help="How to hold out test cells: at random "
                 "within conditions, or a column of obs with train, valid and test."),
    click.option("--hold-out", "held_out", multiple=True, metavar="COLUMN=VALUE", help="Hold out "
                 "the cells that match; several columns must all match, values of one column "
                 "add up. A tenth of the other cells validates."),
)  # fmt: skip


seed_option = click.option(
    "--seed", default=0, show_default=True, help="Governs everything random."
)


device_option = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, mps."
)


draws_option = click.option("--draws", type=click.IntRange(1), default=50, show_default=True,
                      help="Posterior draws per cell.")  # fmt: skip


progress_option = click.option("--quiet", is_flag=True, help="No progress on stderr.")


def known_device(name: str) -> str:
    """Return the name of a device that is here."""
    try:
        kind = "cpu" if name == "auto" else torch.device(name).type
    except RuntimeError:
        kind = ""
    there = {"cpu": True, "cuda": torch.cuda.is_available(),
             "mps": torch.backends.mps.is_available()}  # fmt: skip
    if not there.get(kind, False):
        raise DesignError(
            sentence(
                "no such device here",
                where="--device",
                expected=f"auto or one of {[k for k, found in there.items() if found]}",
                got=repr(name),
                hint="use --device auto",
            )
        )
    return name


def pairs(option: str, given: Sequence[str], *, single: bool = False) -> dict[str, list[str]]:
    """Return NAME=VALUE options as lists of values by name."""
    found: dict[str, list[str]] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name or not value or (single and name in found):
            raise DesignError(
                sentence(
                    "cannot be read" if name not in found else f"{name!r} is set twice",
                    where=option,
                    expected="NAME=VALUE" + (", each name once" if single else ""),
                    got=repr(text),
                    hint=f"for example {option} treatment=SGK1",
                )
            )
        found.setdefault(name, []).append(value)
    return found


def whole_numbers(option: str, text: str) -> list[int]:
    """Return comma-separated whole numbers."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise DesignError(
            sentence("cannot be read", where=option, expected="whole numbers, with commas between",
                     got=repr(text), hint=f"for example {option} 11,12")
        ) from None  # fmt: skip


def chosen_split(
    adata: AnnData, options: Mapping[str, Any], conditions: Sequence[str | None]
) -> Split | None:
    """Return the split that the options ask for."""
    named, held_out = options["split"], pairs("--hold-out", options["held_out"])
    if named is not None and held_out:
        raise DesignError(
            sentence("two splits were asked for", where="--split, --hold-out", expected="one",
                     got="both", hint="leave one out")
        )  # fmt: skip
    if held_out:
        return pf.splits.hold_out(adata, held_out, seed=options["seed"])
    if named == "random":
        columns = [name for name in conditions if name is not None]
        return pf.splits.random(adata, stratify=columns, seed=options["seed"])
    return None if named is None else pf.splits.column(adata, named)


def matching(adata: AnnData, wanted: Mapping[str, Sequence[str]]) -> AnnData:
    """Return the cells whose columns have the wanted values."""
    # A split refuses unknown columns and values by name, and says which cells match.
    return adata[pf.splits.hold_out(adata, wanted, valid=0).mask(adata, "test")]
