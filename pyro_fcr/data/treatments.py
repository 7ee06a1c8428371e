"""Reading treatments and doses: from labels such as "A+B" to canonical keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyro_fcr.data import checks
from pyro_fcr.errors import DesignError, SchemaError, sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pyro_fcr.data.schema import Schema

__all__ = [
    "Key",
    "check_treatments",
    "read_treatments",
    "rounded",
    "split_label",
    "summed",
    "treatment_key",
]

Key = tuple[tuple[str, float], ...]
"""A treatment in canonical form: its parts in sorted order, each with its dose; () is control."""


SINGLE = np.finfo(np.float32)
"""The precision that doses are kept in."""


def rounded(dose: float) -> float:
    """Return a dose to six digits: one that went through float32 is still the same dose."""
    return float(f"{dose:.6g}")


def summed(pairs: Sequence[tuple[str, float]]) -> Key:
    """Return the canonical key of (part, dose) pairs: sorted, doses of a repeated part added."""
    total: dict[str, float] = {}
    for part, dose in pairs:
        total[part] = total.get(part, 0.0) + dose
    return tuple(sorted((part, rounded(dose)) for part, dose in total.items()))


def split_label(label: str, schema: Schema, *, where: str) -> list[str | None]:
    """Split a label; a part that is the control is None."""
    if label.strip() == schema.control:
        return [None]
    pieces = label.split(schema.separator) if schema.separator else [label]
    pieces = [piece.strip() for piece in pieces]
    if not all(pieces):
        raise SchemaError(
            sentence(
                f"treatment {label!r} has an empty part",
                where=where,
                expected=f"names joined by {schema.separator!r}",
                got=f"{len(pieces)} parts, {pieces.count('')} of them empty",
                hint="choose a separator that no name contains, or Schema(separator=None)",
            )
        )
    return [None if piece == schema.control else piece for piece in pieces]


def _numbers(dose: Any, schema: Schema) -> list[float]:
    """Read one dose or several; raises ValueError."""
    if not isinstance(dose, str):
        return [float(dose)]
    try:
        return [float(dose)]
    except ValueError:
        pieces = dose.split(schema.separator) if schema.separator else [dose]
        return [float(piece) for piece in pieces]


def treatment_key(
    parts: Sequence[str | None],
    dose: Any,
    schema: Schema,
    *,
    where: str,
    error: type[SchemaError] | type[DesignError] = SchemaError,
) -> Key:
    """Return the canonical key of a treatment's parts and its dose.

    Raises
    ------
    SchemaError or DesignError
        As ``error`` says, if the dose does not fit the parts.
    """
    real = [part for part in parts if part is not None]
    if not real:
        return ()
    label = (schema.separator or "+").join(real)

    def refuse(expected: str, hint: str) -> SchemaError | DesignError:
        return error(
            sentence(
                f"unusable dose for treatment {label!r}",
                where=where,
                expected=expected,
                got=repr(dose.item() if isinstance(dose, np.generic) else dose),
                hint=hint,
            )
        )

    if schema.dose is None:
        raise refuse("no dose, for the schema names no dose column", "leave the dose out")
    joined = f" joined by {schema.separator!r}" if len(real) > 1 else ""
    expected = f"{len(real)} number{'s' if len(real) > 1 else ''}{joined}"
    try:
        numbers = _numbers(dose, schema)
    except (TypeError, ValueError):
        raise refuse(expected, "write the dose as plain numbers, without units") from None
    if len(numbers) == len(parts):
        pairs = zip(parts, numbers, strict=True)
        kept = [(part, number) for part, number in pairs if part is not None]
    elif len(numbers) == len(real):
        kept = list(zip(real, numbers, strict=True))
    else:
        raise refuse(expected, "give every part its own dose")
    for _, number in kept:
        if not float(SINGLE.tiny) <= number <= float(SINGLE.max):
            raise refuse(
                "positive finite numbers that float32 can hold",
                "use a linear scale, and the control's label for untreated cells",
            )
    return summed(kept)


def read_treatments(obs: pd.DataFrame, schema: Schema) -> tuple[list[Key], NDArray[np.int64]]:
    """Return the distinct treatments of ``obs`` and which of them each cell has."""
    if schema.treatment is None:
        return [()], np.zeros(len(obs), np.int64)
    codes, levels = checks.labels(obs, schema.treatment, role="treatment")
    where = f"obs[{schema.treatment!r}]"
    parts = [split_label(level, schema, where=where) for level in levels]
    if schema.dose is None:
        raw = [summed([(part, 1.0) for part in named if part is not None]) for named in parts]
        pair_of_cell = codes
    else:
        doses = checks.column(obs, schema.dose, role="dose")
        dose_codes, values = pd.factorize(doses, use_na_sentinel=True)
        # Code -1, a missing dose, becomes the last one; only the control may have it.
        values = [*values, None]
        n_doses = len(values)
        pairs, pair_of_cell = np.unique(
            codes * n_doses + dose_codes % n_doses, return_inverse=True
        )
        raw = [
            treatment_key(
                parts[pair // n_doses],
                values[pair % n_doses],
                schema,
                where=f"obs[{schema.dose!r}]",
            )
            for pair in pairs.tolist()
        ]
    number_of: dict[Key, int] = {}
    numbers = [number_of.setdefault(key, len(number_of)) for key in raw]
    return list(number_of), np.asarray(numbers, dtype=np.int64)[pair_of_cell]


def check_treatments(keys: Sequence[Key], schema: Schema, obs: pd.DataFrame) -> None:
    """Check that there are control cells and treated ones.

    Raises
    ------
    SchemaError
        If no cell is a control.
    DesignError
        If every cell is.
    """
    if () not in keys:
        levels = checks.labels(obs, str(schema.treatment), role="treatment")[1]
        hint = checks.nearest(str(schema.control), levels, "name the label of untreated cells")
        raise SchemaError(
            sentence(
                f"no control cells labelled {schema.control!r}",
                where=f"obs[{schema.treatment!r}]",
                expected=f"one of {checks.first(levels, 12)}",
                got=repr(schema.control),
                hint=hint,
            )
        )
    if len(keys) == 1:
        raise DesignError(
            sentence(
                "the treatment is constant",
                where=f"obs[{schema.treatment!r}]",
                expected="control cells and treated ones",
                got=f"{schema.control!r} in every cell",
                hint="add treated cells, or leave treatment out of the schema",
            )
        )
