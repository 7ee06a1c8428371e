"""What the user says about an AnnData: which column is what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from pyro_fcr.errors import SchemaError, sentence

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Schema"]


@dataclass(frozen=True)
class Schema:
    """The columns and the layer a model reads; every field may be left out.

    Parameters
    ----------
    treatment
        Column of ``obs`` with the treatment's label; ``"A+B"`` is the combination of A and B.
    control
        Label of the untreated cells in that column; needed wherever ``treatment`` is given.
    covariates
        One column of ``obs`` or several: cell type, donor, cell line.
    counts
        Name of the layer with the molecules; ``None`` reads ``X``.
    dose
        Column of ``obs`` with the dose: a number, or ``"0.5+1.0"`` for a combination.
        Without it every part of a treatment has dose 1.
    batch
        Column of ``obs`` with the technical batch.
    continuous
        One column of ``obs`` or several with covariates that are numbers: age, time, a score.
    size_factor
        Column of ``obs`` with a positive size factor; without it, a cell's total count. Only
        ratios between cells matter: one constant, the mean training total over the model's
        genes divided by the mean training factor, turns the factors into molecules.
    separator
        What stands between the parts of a combination; ``None`` never splits a label.
    treatment_features
        Key of ``uns`` (a DataFrame with a row per treatment, or a mapping from treatments to
        vectors) or of ``varm`` (a row per gene, where treatments are named after genes): what is
        known of the treatments beside their labels. Those with features and without cells can be
        asked for by ``do``.

    Raises
    ------
    SchemaError
        If the fields contradict one another.

    Examples
    --------
    >>> Schema(treatment="drug", control="DMSO", covariates="cell_line").covariates
    ('cell_line',)
    """

    treatment: str | None = None
    control: str | None = None
    covariates: tuple[str, ...] | Sequence[str] | str = ()
    counts: str | None = None
    dose: str | None = None
    batch: str | None = None
    size_factor: str | None = None
    separator: str | None = "+"
    continuous: tuple[str, ...] | Sequence[str] | str = ()
    treatment_features: str | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        for field in ("covariates", "continuous"):
            given = getattr(self, field)
            given = () if given is None else given
            several = isinstance(given, Iterable) and not isinstance(given, str)
            names = tuple(given) if several else (given,)
            object.__setattr__(self, field, names)
            for name in names:
                _text_or_none(field, name, optional=False)
        if self.control is not None:
            # Labels are compared as strings, so control=0 must meet the label "0".
            object.__setattr__(self, "control", str(self.control))
        names = ("treatment", "counts", "dose", "batch", "size_factor", "separator")
        for field in (*names, "treatment_features"):
            _text_or_none(field, getattr(self, field))
        self._check_together()

    def _check_together(self) -> None:
        if self.treatment is not None and self.control is None:
            raise SchemaError(
                sentence(
                    "a treatment column without its control",
                    where="Schema.control",
                    expected=f"the label of the untreated cells in obs[{self.treatment!r}]",
                    got="None",
                    hint="name the control, or the level that the others are compared with",
                )
            )
        for field in ("control", "dose", "treatment_features"):
            if self.treatment is None and getattr(self, field) is not None:
                raise SchemaError(
                    sentence(
                        f"a {field} without a treatment column",
                        where="Schema.treatment",
                        expected="a column of obs",
                        got="None",
                        hint=f"name the treatment column, or leave {field} out",
                    )
                )
        taken = [self.treatment, *self.covariates, *self.continuous]
        if self.batch in self.continuous:
            taken.append(self.batch)
        repeated = sorted({name for name in taken if name is not None and taken.count(name) > 1})
        if repeated:
            raise SchemaError(
                sentence(
                    "a column named twice",
                    where="Schema.covariates",
                    expected="covariates that differ from one another and from the treatment",
                    got=f"{repeated[0]!r} more than once",
                    hint="leave it out of covariates or continuous",
                )
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-able values."""
        lists = {"covariates": list(self.covariates), "continuous": list(self.continuous)}
        return {**asdict(self), **lists}

    @classmethod
    def from_dict(cls, fields_by_name: Mapping[str, Any]) -> Schema:
        """Build a schema from :meth:`to_dict`'s values.

        Raises
        ------
        SchemaError
            If a field is none that a schema has.
        """
        if not isinstance(fields_by_name, dict):
            fields_by_name = {repr(fields_by_name)[:80]: None}
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(fields_by_name) - set(known))
        if unknown:
            raise SchemaError(
                sentence(
                    "an unknown field",
                    where="Schema.from_dict",
                    expected=f"some of {', '.join(known)}",
                    got=repr(unknown[0]),
                    hint="remove it",
                )
            )
        return cls(**fields_by_name)


def _text_or_none(field: str, value: Any, *, optional: bool = True) -> None:
    if value is None and optional:
        return
    if not isinstance(value, str) or not value:
        raise SchemaError(
            sentence(
                "not a name",
                where=f"Schema.{field}",
                expected="a string that is not empty" + (", or None" if optional else ""),
                got=repr(value),
                hint="pass the name of the column or layer",
            )
        )
