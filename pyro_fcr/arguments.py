"""Arguments of the user's: of the right kind, and in a range that makes sense."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from pyro_fcr.errors import ArgumentError, sentence

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["mapping", "number", "refused", "tails", "whole"]


def refused(value: Any, *, where: str, expected: str, hint: str) -> ArgumentError:
    """Return the error for an argument.

    Parameters
    ----------
    value
        What was given.
    where
        The argument as it is written, with its equals sign.
    expected, hint
        As for :func:`~pyro_fcr.errors.sentence`.
    """
    got = repr(value)
    got = got if len(got) <= 60 else f"a {type(value).__name__}"
    return ArgumentError(
        sentence("an unusable argument", where=where, expected=expected, got=got, hint=hint)
    )


def whole(value: Any, where: str, *, least: int, hint: str = "leave it out") -> int:
    """Return a whole number of at least ``least`` that 64 bits hold.

    Raises
    ------
    ArgumentError
        If it is none.
    """
    right = isinstance(value, Integral) and not isinstance(value, bool)
    if not right or not least <= value < 2**63:
        expected = f"a whole number of at least {least}, below 2**63"
        raise refused(value, where=where, expected=expected, hint=hint)
    return int(value)


def number(
    value: Any, where: str, *, least: float, most: float = math.inf, hint: str = "leave it out"
) -> float:
    """Return a finite number from ``least`` to ``most``.

    Raises
    ------
    ArgumentError
        If it is none.
    """
    right = isinstance(value, Real) and not isinstance(value, bool)
    if not right or not math.isfinite(value) or not least <= value <= most:
        limit = f" and at most {most:g}" if math.isfinite(most) else ""
        expected = f"a finite number of at least {least:g}{limit}"
        raise refused(value, where=where, expected=expected, hint=hint)
    return float(value)


def tails(level: Any, where: str = "level=") -> tuple[float, float]:
    """Return the quantiles that bound a central interval.

    Parameters
    ----------
    level
        Probability of the interval.
    where
        As for :func:`refused`.

    Raises
    ------
    ArgumentError
        If the level is no number between 0 and 1, both left out.

    Examples
    --------
    >>> tails(0.5)
    (0.25, 0.75)
    """
    right = isinstance(level, Real) and not isinstance(level, bool)
    if not right or not 0 < level < 1:
        raise refused(level, where=where, expected="a number between 0 and 1", hint="try 0.9")
    tail = (1 - float(level)) / 2
    return tail, 1 - tail


def mapping(value: Any, where: str, *, of: str) -> Mapping[str, Any]:
    """Return something that holds values by name.

    Raises
    ------
    ArgumentError
        If it does not.
    """
    if not hasattr(value, "items"):
        raise refused(value, where=where, expected=f"{of} by name", hint="write {'name': ...}")
    return value
