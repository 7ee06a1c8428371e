"""What cells become when labels are set to other values."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_fcr.data import checks
from pyro_fcr.data.codes import Codes
from pyro_fcr.data.treatments import (
    split_label,
    summed,
    treatment_key,
)
from pyro_fcr.errors import DesignError, sentence

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pyro_fcr.data.cells import Cells
    from pyro_fcr.data.treatments import Key

__all__ = ["Interventions"]


class Interventions(Codes):
    """Codes that can be set: ``do``, and what it changes."""

    def do(self, cells: Cells, changes: Mapping[str, Any]) -> Cells:
        """Return the cells as if some of their labels were set to other values.

        Parameters
        ----------
        cells
            Cells of this design.
        changes
            Values by name: ``"treatment"``, ``"dose"``, ``"batch"``, or the name of one of the
            schema's columns. Combinations that training never saw are allowed, as long as
            every part was seen; they get group -1. A treatment without a dose takes
            the one dose that training saw it at, if it was one.

        Raises
        ------
        CategoryError
            If a name or a value is none that the design knows.
        DesignError
            If the dose is needed and not given, or cannot be read.
        """
        wanted: dict[str, Any] = {}
        for name, value in changes.items():
            target = self._target(name)
            if target in wanted:
                raise DesignError(
                    sentence(
                        f"{target!r} is set twice",
                        where="do",
                        expected="one value",
                        got=f"{wanted[target]!r} and {value!r}",
                        hint="use one of the two names",
                    )
                )
            if not isinstance(value, (str, int, float, np.generic)):
                raise DesignError(
                    sentence(
                        f"{name!r} is not one value",
                        where="do",
                        expected="a label or a number for all the cells",
                        got=type(value).__name__,
                        hint="call it once per value",
                    )
                )
            wanted[target] = value
        changed, schema = cells, self.schema
        treatment = wanted.pop("\0treatment", None)
        dose = wanted.pop("\0dose", None)
        if treatment is not None or dose is not None:
            changed = self._do_treatment(changed, treatment, dose)
        covariates = changed.covariates.copy()
        for k, (name, levels) in enumerate(self.covariates.items()):
            if name in wanted:
                covariates[:, k] = self._code(wanted[name], levels, name, role="covariate")
        continuous = changed.continuous.copy()
        for k, (name, (mean, sd)) in enumerate(self.continuous.items()):
            if name in wanted:
                continuous[:, k] = (_number(wanted[name], name) - mean) / sd
        unknown = changed.unknown - set(wanted)
        known = not unknown & set(schema.covariates)
        changed = replace(
            changed,
            covariates=covariates,
            covariate_id=self._joint(covariates) if known else changed.covariate_id,
            continuous=continuous,
            unknown=unknown,
        )
        if schema.batch is not None and schema.batch in wanted:
            code = self._code(wanted[schema.batch], self.batches, schema.batch, role="batch")
            changed = replace(changed, batch_id=np.full(len(cells), code, np.int64))
        return changed

    def setting(self, group: int) -> dict[str, float | str]:
        """Return what :meth:`do` is told to bring cells into a treatment group.

        Parameters
        ----------
        group
            Its code; 0 is the control.
        """
        if self.schema.dose is None:
            # Without doses, a part that counts twice is one that is named twice.
            named = [
                (part, 1.0) for part, n in self.treatment_keys[group] for _ in range(round(n))
            ]
            return {"treatment": self._label(tuple(named))}
        label, dose = self.label(self.treatment_rows[group])
        return {"treatment": label, "dose": dose}

    def causes(self, do: Iterable[str]) -> set[str]:
        """Return what an intervention sets, as blocks name their parents.

        That is any of ``"treatment"``, ``"covariates"`` and ``"batch"``, and each covariate or
        batch that is set by its column's name.

        Parameters
        ----------
        do
            Values by name, as for :meth:`do`, or the names alone. A column that is both the
            batch and a covariate sets both.

        Raises
        ------
        CategoryError
            If a name is none that the design knows.
        """
        found = set()
        for target in map(self._target, do):
            if target in ("\0treatment", "\0dose"):
                found.add("treatment")
            if target in (*self.schema.covariates, *self.schema.continuous):
                found |= {"covariates", target}
            if target == self.schema.batch:
                found |= {"batch", target}
        return found

    def parent(self, name: str) -> str:
        """Return what a block names as its parent if it depends on a column.

        Parameters
        ----------
        name
            One of the schema's columns, or ``"treatment"``, ``"dose"`` or ``"batch"``.

        Returns
        -------
        str
            ``"treatment"`` for the treatment and its dose, the column's name for a covariate and
            for the batch.

        Raises
        ------
        CategoryError
            If it is none that the design knows.
        """
        target = self._target(name)
        return "treatment" if target in ("\0treatment", "\0dose") else target

    def _target(self, name: str) -> str:
        # The schema's own names come first: a covariate may well be called "dose".
        schema = self.schema
        if name in (*schema.covariates, *schema.continuous):
            return name
        own = {schema.treatment: "\0treatment", schema.dose: "\0dose", schema.batch: schema.batch}
        words = {"treatment": schema.treatment, "dose": schema.dose, "batch": schema.batch}
        own.pop(None, None)
        if name in own:
            return str(own[name])
        if words.get(name) is not None:
            return str(own[words[name]])
        said = [word for word, column in words.items() if column is not None]
        columns = (*schema.covariates, *schema.continuous)
        known = list(dict.fromkeys([*said, *map(str, own), *columns]))
        raise checks.unknown_category(
            str(name), known, where="do", role="name", otherwise="use one of these"
        )

    def _do_treatment(self, cells: Cells, treatment: Any, dose: Any) -> Cells:
        schema = self.schema
        where = "do"
        if treatment is not None:
            parts = split_label(str(treatment), schema, where=where)
            self._check_parts([tuple((part, 1.0) for part in parts if part is not None)], where)
            if dose is None:
                key = self._usual(parts)
            else:
                key = treatment_key(parts, dose, schema, where=where, error=DesignError)
            row = np.zeros(len(cells), np.int64)
            rows: list[Key] = [key]
        else:
            if schema.treatment in cells.unknown:
                raise DesignError(
                    sentence(
                        "a dose for cells whose treatment is not known",
                        where=where,
                        expected="a treatment beside it",
                        got="the dose alone",
                        hint="pass both: do={'treatment': ..., 'dose': ...}",
                    )
                )
            row = cells.treatment_row
            used = set(np.unique(row).tolist())
            rows = []
            for number, weights in enumerate(cells.treatment_rows):
                named = [part for part, _ in self._key_of(weights)]
                keep = number in used and named
                rows.append(
                    treatment_key(named, dose, schema, where=where, error=DesignError)
                    if keep
                    else ()
                )
        names = {name for name in (schema.treatment, schema.dose) if name is not None}
        return replace(
            cells,
            treatment_rows=self._rows(rows),
            treatment_row=row,
            treatment_id=self._groups(rows)[row],
            unknown=cells.unknown - names,
        )

    def _usual(self, parts: Sequence[str | None]) -> Key:
        # The treatment's one dose in training, which needs no saying.
        real = [part for part in parts if part is not None]
        if not real:
            return ()
        if self.schema.dose is None:
            return summed([(part, 1.0) for part in real])
        distinct = sorted(set(real))
        seen = [key for key in self.treatment_keys if [part for part, _ in key] == distinct]
        if len(seen) == 1 and len(distinct) == len(real):
            return seen[0]
        raise DesignError(
            sentence(
                f"treatment {'+'.join(real)!r} without a dose",
                where="do",
                expected="one of the doses of training, or another",
                got=f"none, and training saw it at {len(seen)} doses"
                + (f" ({checks.first(map(self._dose_text, seen))})" if seen else ""),
                hint="add 'dose' beside it",
            )
        )


def _number(value: Any, name: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = np.nan
    if not np.isfinite(found):
        raise DesignError(
            sentence(
                f"{name!r} is a continuous covariate",
                where="do",
                expected="a finite number",
                got=repr(value),
                hint="give it in the units of the training data",
            )
        )
    return found
