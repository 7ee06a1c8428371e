"""What pictures are given, checked to be what can be drawn."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyro_fcr import arguments
from pyro_fcr.errors import ArgumentError, sentence

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["chosen", "named", "numbers", "table"]


def table(value: Any, where: str, columns: Sequence[str] = (), *, source: str) -> pd.DataFrame:
    """Return a table with these columns.

    Parameters
    ----------
    value
        What was given.
    where
        The argument as it is written, with its equals sign.
    columns
        What will be read.
    source
        What makes such a table.

    Raises
    ------
    ArgumentError
        If it is none.
    """
    expected = f"a table with {_listed(columns)}" if columns else "a table"
    if not isinstance(value, pd.DataFrame):
        raise arguments.refused(type(value), where=where, expected=expected, hint=source)
    missing = [name for name in columns if name not in value]
    if missing:
        got = f"one without {_listed(missing)}"
        raise _refused("another table", where=where, expected=expected, got=got, hint=source)
    return value


def numbers(value: Any, where: str, *, source: str) -> NDArray[np.float64]:
    """Return a table's values, all of them numbers.

    Raises
    ------
    ArgumentError
        If some are none, or there is no value at all.
    """
    frame = table(value, where, source=source)
    words = [name for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name])]
    if words or not frame.size:
        got = f"words in {_listed(words)}" if words else "an empty one"
        raise _refused(
            "another table", where=where, expected="a table of numbers", got=got, hint=source
        )
    return frame.to_numpy(dtype=float)


def named(value: Any, where: str, *, of: str) -> Mapping[str, Any]:
    """Return what is given by name, of one name at least.

    Raises
    ------
    ArgumentError
        If it is not by name, or empty.
    """
    by_name = isinstance(value, pd.DataFrame | pd.Series) or not hasattr(value, "items")
    if by_name or not len(value):
        raise arguments.refused(
            type(value) if len(np.shape(value)) else value, where=where,
            expected=f"{of} by name, at least one", hint="write {'name': ...}",
        )  # fmt: skip
    return value


def chosen(names: Iterable[Any], there: Iterable[Any], where: str, what: str) -> list[Any]:
    """Return the names asked for, all of which are there.

    Parameters
    ----------
    names, there
        Names asked for, and names that can be.
    where
        The argument as it is written, with its equals sign.
    what
        What is chosen among, as "genes of the table".

    Raises
    ------
    ArgumentError
        If one is not there.
    """
    asked, known = list(names), list(there)
    missing = [name for name in asked if name not in set(known)]
    if missing:
        close = get_close_matches(str(missing[0]), [str(name) for name in known], n=1)
        hint = f"did you mean {close[0]}" if close else "take one of these"
        raise _refused(
            "no such name", where=where, expected=f"{what}, as {_listed(known)}",
            got=_listed(missing), hint=hint,
        )  # fmt: skip
    return asked


def _refused(what: str, **parts: str) -> ArgumentError:
    return ArgumentError(sentence(what, **parts))


def _listed(names: Sequence[Any], most: int = 8) -> str:
    said = ", ".join(str(name) for name in names[:most])
    return said + (f" and {len(names) - most} more" if len(names) > most else "")
