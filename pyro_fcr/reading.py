"""Reading files of others: what may go wrong, and what is no file at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["DAMAGE", "first_line", "regular"]

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
