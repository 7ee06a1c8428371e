"""Which labels a baseline reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_fcr.errors import SlotError, sentence
from pyro_fcr.nn import check_labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyro_fcr.data import Design

__all__ = ["chosen_labels"]


def chosen_labels(
    design: Design, parents: Sequence[str] | None, *, system: str
) -> tuple[str, ...]:
    """Return the labels a system reads: those given, or the treatment and covariates there are.

    Parameters
    ----------
    design
        The experiment.
    parents
        What the user asked for; ``None`` for the default.
    system
        The system's name, for the message.

    Raises
    ------
    SlotError
        If there is none, or one that the schema does not name.
    """
    named = {"treatment": design.schema.treatment, "covariates": design.schema.covariates}
    given = [name for name, column in named.items() if column] if parents is None else parents
    where = f"{system}(parents=)"
    if not given:
        raise SlotError(
            sentence(
                f"{system} has no label to read",
                where=where,
                expected="'treatment', 'covariates' or 'batch'",
                got="none",
                hint="name their columns in the schema, or use VAE",
            )
        )
    return tuple(sorted(check_labels(given, design, where=where)))
