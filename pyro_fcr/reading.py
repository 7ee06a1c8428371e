"""Reading files of others: what may go wrong, and what is no file at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["DAMAGE", "first_line", "intact", "regular"]

DAMAGE = Exception
"""What reading a damaged file may raise: libraries let anything through; no interrupt is one."""


def first_line(error: BaseException, limit: int = 160) -> str:
    """Return an error's kind and the beginning of what it says, on one line.

    Parameters
    ----------
    error
        Of another library.
    limit
        Characters to keep.
    """
    told = " ".join(f"{type(error).__name__}: {error}".split())
    return "".join(c if c.isprintable() else "?" for c in told)[:limit].strip()


def intact(pointers: Any, places: Any, n_values: int, width: int) -> None:
    """Check a compressed matrix: compiled code that reads a damaged one reads other memory.

    Parameters
    ----------
    pointers
        Shape (R + 1,): where each row's values begin, and the last one's end.
    places
        Their columns.
    n_values
        Number of values.
    width
        Number of columns.

    Raises
    ------
    ValueError
        If a row or a column lies beyond the matrix.
    """
    pointers, places = np.asarray(pointers), np.asarray(places)
    if not len(pointers) or pointers[0] != 0 or (pointers[1:] < pointers[:-1]).any():
        raise ValueError("rows of a sparse matrix that do not follow one another")
    used = places[: int(pointers[-1])]
    if len(used) != pointers[-1] or n_values < pointers[-1]:
        raise ValueError("rows of a sparse matrix that end beyond its values")
    if len(used) and not (used.min() >= 0 and used.max() < width):
        raise ValueError(f"a column of a sparse matrix beyond its {width}")


def regular(path: str | Path) -> Path:
    """Return the path of a file that ends: a link is followed, a device or pipe is refused.

    Parameters
    ----------
    path
        Where the file should be.

    Raises
    ------
    OSError
        If nothing is there, or what is there is no regular file.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(f"{str(path)!r} is no regular file")
    return Path(path)
