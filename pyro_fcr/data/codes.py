"""The codes of an experiment: what they mean, how many there are, and their JSON."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from pyro_fcr.data import checks
from pyro_fcr.data.schema import Schema
from pyro_fcr.data.treatments import (
    rounded,
)
from pyro_fcr.errors import LoadError, SchemaError, sentence
from pyro_fcr.reading import DAMAGE, first_line

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from pyro_fcr.data.treatments import Key

__all__ = ["Codes", "usual_library"]


@dataclass(frozen=True)
class Codes:
    """The fields of a :class:`~pyro_fcr.data.design.Design`, and what can be read off them."""

    schema: Schema
    genes: tuple[str, ...]
    treatments: tuple[str, ...]
    treatment_keys: tuple[Key, ...]
    covariates: Mapping[str, tuple[str, ...]]
    covariate_levels: tuple[tuple[str, ...], ...]
    batches: tuple[str, ...]
    condition_counts: tuple[tuple[int, int, int], ...]
    require_counts: bool = True
    library: Literal["totals", "ones"] = "totals"
    size_factor_unit: float = 1.0
    continuous: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    treatment_features: NDArray[np.float32] | None = field(default=None, compare=False)
    dose_units: Mapping[str, float] = field(default_factory=dict)

    @property
    def n_genes(self) -> int:
        """G, the number of genes."""
        return len(self.genes)

    @property
    def n_treatments(self) -> int:
        """T, the number of single treatments; the control is none of them."""
        return len(self.treatments)

    @property
    def n_treatment_levels(self) -> int:
        """Number of treatment groups (label with dose), the control among them."""
        return len(self.treatment_keys)

    @property
    def n_levels(self) -> dict[str, int]:
        """Number of levels of each covariate."""
        return {name: len(levels) for name, levels in self.covariates.items()}

    @property
    def n_covariates(self) -> int:
        """K, the number of covariates that are labels."""
        return len(self.covariates)

    @property
    def n_covariate_levels(self) -> int:
        """Number of observed joint covariate combinations; 1 without covariates."""
        return len(self.covariate_levels)

    @property
    def n_batches(self) -> int:
        """Number of technical batches; 1 where the schema names none."""
        return max(1, len(self.batches))

    @cached_property
    def treatment_levels(self) -> tuple[str, ...]:
        """Names of the treatment groups, e.g. ``"A+B @ 0.5+1"``; level 0 is the control."""
        names = []
        for key in self.treatment_keys:
            label, plain = self._label(key), all(dose == 1.0 for _, dose in key)
            told = key and (self.schema.dose is not None or not plain)
            names.append(f"{label} @ {self._dose_text(key)}" if told else label)
        return tuple(names)

    @cached_property
    def covariate_groups(self) -> tuple[str, ...]:
        """Names of the joint covariate combinations, e.g. ``"B cell | donor 1"``."""
        return tuple(" | ".join(levels) for levels in self.covariate_levels)

    @cached_property
    def treatment_rows(self) -> NDArray[np.float32]:
        """Shape (number of groups, T), float32: the dose-weighted row of every group."""
        return self._rows(self.treatment_keys)

    @cached_property
    def dose_unit(self) -> NDArray[np.float32]:
        """Shape (T,), float32: geometric mean of each treatment's doses over its groups.

        It is 1 where the schema names no dose. A treatment without cells has the geometric mean
        of the others; one of ``dose_units`` has that unit.
        """
        log_doses: dict[str, list[float]] = {part: [] for part in self.treatments}
        if self.schema.dose is not None:
            for part, dose in itertools.chain.from_iterable(self.treatment_keys):
                log_doses[part].append(np.log(dose))
        usual = [np.mean(logs) for logs in log_doses.values() if logs]
        otherwise = np.mean(usual) if usual else 0.0
        means = [np.mean(logs) if logs else otherwise for logs in log_doses.values()]
        units = dict(zip(self.treatments, np.exp(np.asarray(means)), strict=True))
        return np.asarray(list((units | dict(self.dose_units)).values()), dtype=np.float32)

    @cached_property
    def conditions(self) -> pd.DataFrame:
        """The observed conditions: treatment group, covariate levels, number of cells."""
        columns: dict[str, list[Any]] = {}
        if self.schema.treatment is not None:
            columns[self.schema.treatment] = [
                self.treatment_levels[t] for t, _, _ in self.condition_counts
            ]
        for k, name in enumerate(self.covariates):
            columns[name] = [self.covariate_levels[x][k] for _, x, _ in self.condition_counts]
        columns["n_cells"] = [n for _, _, n in self.condition_counts]
        return pd.DataFrame(columns)

    @property
    def largest_interaction_size(self) -> int:
        r"""The most interaction dimensions that the design can identify.

        Half of :meth:`n_contrasts`, rounded down; with all conditions observed

        .. math:: \lfloor (T_g - 1)(X_g - 1) / 2 \rfloor

        with :math:`T_g` treatment groups and :math:`X_g` joint covariate groups.
        """
        return self.n_contrasts() // 2

    def n_contrasts(self, conditions: Iterable[tuple[int, int]] | None = None) -> int:
        r"""Count the independent interaction contrasts that a set of conditions gives.

        .. math:: n - \operatorname{rank} = n - (T_g + X_g - P)

        with n conditions, in which :math:`T_g` treatment and :math:`X_g` covariate groups occur,
        and the rank of their additive design, whose graph has P connected pieces. On a full grid
        this is :math:`(T_g - 1)(X_g - 1)`. Doses of one label are pooled where that leaves more,
        as it does where hardly a dose is met twice.

        Parameters
        ----------
        conditions
            (treatment group, joint covariate) pairs; by default the observed conditions. Repeats
            count once, and pairs with a negative code not at all.
        """
        if conditions is None:
            conditions = [(t, x) for t, x, _ in self.condition_counts]
        pairs = {(int(t), int(x)) for t, x in conditions if t >= 0 and x >= 0}
        labels = [tuple(part for part, _ in key) for key in self.treatment_keys]
        numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
        pooled = {(numbers[labels[t]], x) for t, x in pairs}
        return max(_contrasts(pairs), _contrasts(pooled))

    def check_interaction_size(self, n_tx: int) -> None:
        """Warn if the design has too few conditions to identify ``n_tx`` interaction dimensions.

        Warns
        -----
        DesignWarning
            If the observed conditions give fewer than 2 ``n_tx`` interaction contrasts; on a
            full grid these are (treatment groups - 1)(covariate groups - 1).
        """
        t, x = self.n_treatment_levels, self.n_covariate_levels
        seen, contrasts = len(self.condition_counts), self.n_contrasts()
        if contrasts >= 2 * n_tx:
            return
        expected = f"(treatments - 1)(covariate groups - 1) >= {2 * n_tx}"
        got = f"({t} - 1)({x} - 1) = {contrasts}"
        if seen < t * x:
            expected = f"at least {2 * n_tx} interaction contrasts"
            got = f"{contrasts} from the {seen} of {t * x} conditions that were observed"
        largest = self.largest_interaction_size
        checks.warn(
            sentence(
                f"{n_tx} interaction dimensions are more than the design can identify",
                where="size of z_tx",
                expected=expected,
                got=got,
                hint=f"use {largest} or fewer" if largest else "do not interpret z_tx",
            ),
            level=4,
        )

    def require(self, *fields: str, system: str) -> None:
        """Refuse a schema that lacks what a system needs.

        Parameters
        ----------
        fields
            Names of schema fields, such as ``"treatment"``.
        system
            Name of the system, for the message.

        Raises
        ------
        SchemaError
            If one of the fields is empty.
        """
        missing = [field for field in fields if getattr(self.schema, field) in (None, ())]
        if missing:
            raise SchemaError(
                sentence(
                    f"{system} needs {' and '.join(missing)}",
                    where=f"Schema.{missing[0]}",
                    expected="columns of obs" if missing[0] == "covariates" else "a column of obs",
                    got="none",
                    hint=f"name it: Schema({missing[0]}=...)",
                )
            )

    def roles(self, parents: Iterable[str]) -> frozenset[str]:
        """Return which of ``"treatment"``, ``"covariates"`` and ``"batch"`` are among parents.

        Parameters
        ----------
        parents
            As a block names them: roles, or columns of covariates and of the batch.
        """
        columns = {*self.schema.covariates, *self.schema.continuous}
        found = {"covariates" if name in columns else name for name in parents}
        return frozenset("batch" if name == self.schema.batch else name for name in found)

    def label(self, row: NDArray[np.float32]) -> tuple[str, float | str]:
        """Name a dose-weighted treatment row.

        Parameters
        ----------
        row
            Shape (T,).

        Returns
        -------
        label, dose
            The parts joined by the separator, or the control's label; the dose as a number, or
            as text with one number per part.
        """
        key = self._key_of(row)
        if len(key) > 1:
            return self._label(key), self._dose_text(key)
        return self._label(key), key[0][1] if key else 0.0

    def _key_of(self, row: NDArray[np.float32]) -> Key:
        return tuple((self.treatments[t], rounded(float(row[t]))) for t in np.flatnonzero(row))

    def _label(self, key: Key) -> str:
        separator = self.schema.separator or "+"
        return separator.join(part for part, _ in key) if key else str(self.schema.control)

    def _dose_text(self, key: Key) -> str:
        return (self.schema.separator or "+").join(f"{dose:g}" for _, dose in key)

    def _rows(self, keys: Sequence[Key]) -> NDArray[np.float32]:
        column_of = {part: t for t, part in enumerate(self.treatments)}
        rows = np.zeros((len(keys), self.n_treatments), np.float32)
        for r, key in enumerate(keys):
            for part, dose in key:
                rows[r, column_of[part]] = dose
        return rows

    @cached_property
    def _group_of(self) -> dict[Key, int]:
        return {key: group for group, key in enumerate(self.treatment_keys)}

    def _groups(self, keys: Sequence[Key]) -> NDArray[np.int64]:
        return np.asarray([self._group_of.get(key, -1) for key in keys], dtype=np.int64)

    def _joint(self, covariates: NDArray[np.int64]) -> NDArray[np.int64]:
        code_of = {levels: x for x, levels in enumerate(self.covariate_levels)}
        rows, inverse = np.unique(covariates, axis=0, return_inverse=True)
        if not self.covariates:
            return np.zeros(len(covariates), np.int64)
        every = list(self.covariates.values())
        found = [
            code_of.get(tuple(every[k][code] for k, code in enumerate(row)), -1)
            for row in rows.tolist()
        ]
        return np.asarray(found, dtype=np.int64)[inverse.reshape(-1)]

    @staticmethod
    def _code(value: Any, known: tuple[str, ...], where: str, *, role: str) -> int:
        if str(value) not in known:
            raise checks.unknown_category(str(value), known, where=where, role=role)
        return known.index(str(value))

    def _check_parts(self, keys: Sequence[Key], where: str) -> None:
        known = set(self.treatments)
        for part, _ in itertools.chain.from_iterable(keys):
            if part not in known:
                every = [str(self.schema.control), *self.treatments]
                raise checks.unknown_category(part, every, where=where, role="treatment")

    def to_dict(self) -> dict[str, Any]:
        """Return the design as JSON-able values."""
        return {
            "schema": self.schema.to_dict(),
            "genes": list(self.genes),
            "treatments": list(self.treatments),
            "treatment_keys": [
                [[part, dose] for part, dose in key] for key in self.treatment_keys
            ],
            # A list keeps the covariates' order wherever the JSON is sorted by key.
            "covariates": [[name, list(levels)] for name, levels in self.covariates.items()],
            "covariate_levels": [list(levels) for levels in self.covariate_levels],
            "batches": list(self.batches),
            "condition_counts": [list(row) for row in self.condition_counts],
            "require_counts": self.require_counts,
            "library": self.library,
            "size_factor_unit": self.size_factor_unit,
            "continuous": [[name, mean, sd] for name, (mean, sd) in self.continuous.items()],
            "treatment_features": (
                None if self.treatment_features is None else self.treatment_features.tolist()
            ),
            "dose_units": dict(self.dose_units),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a design from :meth:`to_dict`'s values.

        Raises
        ------
        LoadError
            If a value is missing or has the wrong form.
        """
        try:
            require_counts = bool(values["require_counts"])
            made = cls(
                schema=Schema.from_dict(values["schema"]),
                genes=_names(values["genes"]),
                treatments=_names(values["treatments"]),
                treatment_keys=tuple(
                    tuple((str(part), float(dose)) for part, dose in key)
                    for key in values["treatment_keys"]
                ),
                covariates={str(name): _names(levels) for name, levels in values["covariates"]},
                covariate_levels=tuple(tuple(levels) for levels in values["covariate_levels"]),
                batches=_names(values["batches"]),
                condition_counts=tuple(
                    (int(t), int(x), int(n)) for t, x, n in values["condition_counts"]
                ),
                require_counts=require_counts,
                # Designs saved without these had the factors as they were given.
                library=values.get("library", usual_library(require_counts)),
                size_factor_unit=float(values.get("size_factor_unit", 1.0)),
                continuous={
                    str(name): (float(mean), float(sd))
                    for name, mean, sd in values.get("continuous", ())
                },
                treatment_features=_features(
                    values.get("treatment_features"), len(values["treatments"])
                ),
                dose_units={
                    str(name): float(unit) for name, unit in values.get("dose_units", {}).items()
                },
            )
            made._check_together()
        except LoadError:
            raise
        except DAMAGE as error:
            raise LoadError(
                sentence(
                    "a design that cannot be read",
                    where="Design.from_dict",
                    expected="the values that Design.to_dict made",
                    got=first_line(error),
                    hint="save the model again with this version",
                )
            ) from error
        return made

    def _check_together(self) -> None:
        """Raise ValueError where the fields contradict one another."""
        schema, numbers = self.schema, [*self.dose_units.values(), self.size_factor_unit]
        numbers += [sd for _, sd in self.continuous.values()]
        numbers += [dose for key in self.treatment_keys for _, dose in key]
        parts = {part for key in self.treatment_keys for part, _ in key}
        levels = [set(levels) for levels in self.covariates.values()]
        joint = self.covariate_levels
        for agree, what in (
            (self.genes, "genes"),
            (tuple(self.covariates) == tuple(schema.covariates), "covariates"),
            (tuple(self.continuous) == tuple(schema.continuous), "continuous covariates"),
            (bool(self.batches) == (schema.batch is not None), "batches"),
            (self.library in ("totals", "ones"), "library"),
            (all(math.isfinite(x) and x > 0 for x in numbers), "doses, units or spreads"),
            (all(math.isfinite(mean) for mean, _ in self.continuous.values()), "means"),
            (self.treatment_keys[:1] == ((),), "treatment groups"),
            (len(set(self.treatment_keys)) == len(self.treatment_keys), "treatment groups"),
            (parts | set(self.dose_units) <= set(self.treatments), "treatments"),
            (joint and len(set(joint)) == len(joint), "covariate groups"),
            (all(len(row) == len(levels) for row in joint), "covariate groups"),
            (all(v in k for row in joint for v, k in zip(row, levels, strict=True)), "levels"),
            (
                all(
                    0 <= t < len(self.treatment_keys) and 0 <= x < len(joint) and n > 0
                    for t, x, n in self.condition_counts
                ),
                "conditions",
            ),
        ):
            if not agree:
                raise ValueError(f"{what} that contradict the rest")


def _names(values: Any) -> tuple[str, ...]:
    names = tuple(values)
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise TypeError("names that are no strings, or one name twice")
    return names


def _features(values: Any, n_treatments: int) -> NDArray[np.float32] | None:
    if values is None:
        return None
    features = np.asarray(values, np.float32)
    if features.ndim != 2 or len(features) != n_treatments:
        raise ValueError(f"features of shape {features.shape} for {n_treatments} treatments")
    return features


def usual_library(require_counts: bool) -> Literal["totals", "ones"]:
    """Return what a cell's library is where nothing was said of it."""
    return "totals" if require_counts else "ones"


def _contrasts(conditions: Collection[tuple[int, int]]) -> int:
    if not conditions:
        return 0
    treatments, covariates = np.asarray(sorted(conditions)).T
    rows = np.unique(treatments, return_inverse=True)[1]
    columns = np.unique(covariates, return_inverse=True)[1] + rows.max() + 1
    size = int(columns.max()) + 1
    graph = sparse.coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(size, size))
    pieces = connected_components(graph, directed=False, return_labels=False)
    return len(rows) - (size - int(pieces))
