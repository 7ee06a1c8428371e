"""What cannot be drawn is refused in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_fcr.errors import DesignError, sentence

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["refuse"]


def refuse(problems: Iterable[tuple[bool, str, str, str]]) -> None:
    """Refuse a simulation for the first argument that is wrong.

    Parameters
    ----------
    problems
        For each: whether it is wrong, its name, what was expected, what was given.

    Raises
    ------
    DesignError
        If one is wrong.
    """
    for wrong, where, expected, got in problems:
        if wrong:
            raise DesignError(
                sentence(
                    "the simulation cannot be drawn",
                    where=where,
                    expected=expected,
                    got=got,
                    hint="change that argument",
                )
            )
