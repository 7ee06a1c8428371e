"""What was learnt from the training AnnData: how labels become codes, and back."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from pyro_fcr.data import checks
from pyro_fcr.data.cells import Cells
from pyro_fcr.data.features import read_features
from pyro_fcr.data.schema import Schema
from pyro_fcr.data.treatments import (
    check_treatments,
    read_treatments,
    rounded,
    split_label,
    summed,
    treatment_key,
)
from pyro_fcr.errors import (
    DesignError,
    DesignWarning,
    LoadError,
    SchemaError,
    sentence,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from pyro_fcr.data.treatments import Key

__all__ = ["Design"]

FEW_CELLS = 5
"""A condition with fewer cells than this draws a warning."""


class _Read(NamedTuple):
    """The counts, where they were kept, and their totals."""

    counts: Any
    per_cell: NDArray[np.float64]
    per_gene: NDArray[np.float64]


@dataclass(frozen=True)
class Design:
    """The codes of an experiment, learnt once and saved with the model.

    Parameters
    ----------
    schema
        What the user said.
    genes
        The model's genes in order, G.
    treatments
        Single treatments in column order, T; the control is none of them. With features, those
        that have features and no cells are among them.
    treatment_keys
        Treatment groups in order of label and dose, each as sorted (part, dose) pairs; group 0
        is the control, ``()``.
    covariates
        Levels of each covariate, sorted as strings.
    covariate_levels
        Observed joint combinations of covariate levels, sorted.
    batches
        Technical batches, sorted; empty where the schema names none.
    condition_counts
        (treatment group, joint covariate, number of cells) of every condition that was observed.
    require_counts
        Whether the values are molecules.
    library
        What a cell's library is: ``"totals"``, molecules, or ``"ones"``, for intensities.
    size_factor_unit
        Molecules per unit of the schema's size factor: mean training total over the model's
        genes / mean training factor.
    continuous
        Mean and standard deviation of each numeric covariate over the training cells.
    treatment_features
        Shape (T, F), float32: what is known of each treatment; ``None`` where the schema names
        no features.
    dose_units
        Units of doses, by treatment, that stay as they were when others were added.

    Examples
    --------
    >>> import anndata, numpy, pandas
    >>> obs = pandas.DataFrame({"drug": ["none"] * 5 + ["A"] * 5}, index=list("abcdefghij"))
    >>> adata = anndata.AnnData(numpy.ones((10, 3), "float32"), obs=obs)
    >>> design = Design.fit(adata, Schema(treatment="drug", control="none"))
    >>> design.treatments, design.treatment_levels
    (('A',), ('none', 'A'))
    """

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

    # ---- learning it ---------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        adata: AnnData,
        schema: Schema,
        *,
        require_counts: bool = True,
        library: Literal["totals", "ones"] | None = None,
    ) -> Design:
        """Learn the codes from the training data and check that a model can be trained on them.

        Parameters
        ----------
        adata
            Training data; it is only read.
        schema
            Which column is what.
        require_counts
            Refuse what is not a whole number of molecules; False for intensities.
        library
            ``"totals"`` where the likelihood shares a library among the genes, ``"ones"``
            where it does not; by default what ``require_counts`` suggests.

        Raises
        ------
        SchemaError
            If a column, layer or the control is missing, a label or dose cannot be read, or
            cell names repeat.
        GeneError
            If gene names repeat.
        CountsError
            If a count is not one, a cell is empty, or a total would have negative parts.
        DesignError
            If every cell has the same treatment, or ``library`` is none of its two.
        """
        return cls._learn(adata, schema, require_counts, library, keep=False)[0]

    @classmethod
    def fit_encode(
        cls,
        adata: AnnData,
        schema: Schema,
        *,
        require_counts: bool = True,
        library: Literal["totals", "ones"] | None = None,
    ) -> tuple[Design, Cells]:
        """Learn the codes and apply them to the same data, reading the counts once.

        Parameters, raises: as for :meth:`fit`.
        """
        design, read = cls._learn(adata, schema, require_counts, library, keep=True)
        return design, design._encode(adata, "required", read)

    @classmethod
    def _learn(
        cls,
        adata: AnnData,
        schema: Schema,
        require_counts: bool,
        library: Literal["totals", "ones"] | None,
        *,
        keep: bool,
    ) -> tuple[Design, _Read]:
        library = _usual_library(require_counts) if library is None else library
        if library not in ("totals", "ones"):
            raise DesignError(
                sentence(
                    "an unknown library",
                    where="Design.fit(library=)",
                    expected="'totals' or 'ones'",
                    got=repr(library),
                    hint="leave it out",
                )
            )
        names = checks.cell_names(adata)
        genes, columns = checks.gene_columns(adata)
        keys, key_of_cell = read_treatments(adata.obs, schema)
        parts = {part for key in keys for part, _ in key}
        if schema.treatment is not None:
            check_treatments(keys, schema, adata.obs)
        treatments, features = sorted(parts), None
        if schema.treatment_features is not None:
            treatments, features = read_features(adata, schema, parts)
        # By label, then by dose.
        treated = sorted(
            (key for key in keys if key), key=lambda key: tuple(zip(*key, strict=True))
        )
        groups: list[Key] = [(), *treated]
        codes, covariates = [], {}
        for name in schema.covariates:
            code, levels = checks.labels(adata.obs, name, role="covariate")
            codes.append(code)
            covariates[name] = tuple(levels)
        joint, joint_of_cell = _joint_levels(codes, len(names))
        continuous = {}
        for name in schema.continuous:
            continuous[name] = _moments(checks.numbers(adata.obs, name), name)
        batches: Sequence[str] = ()
        if schema.batch is not None:
            batches = checks.labels(adata.obs, schema.batch, role="batch")[1]
        group_of = {key: group for group, key in enumerate(groups)}
        group_of_key = np.asarray([group_of[key] for key in keys], dtype=np.int64)
        pairs = Counter(
            zip(group_of_key[key_of_cell].tolist(), joint_of_cell.tolist(), strict=True)
        )
        design = cls(
            schema=schema,
            genes=genes,
            treatments=tuple(treatments),
            treatment_keys=tuple(groups),
            covariates=covariates,
            covariate_levels=tuple(
                tuple(levels[code] for levels, code in zip(covariates.values(), row, strict=True))
                for row in joint.tolist()
            ),
            batches=tuple(batches),
            condition_counts=tuple((t, x, n) for (t, x), n in sorted(pairs.items())),
            require_counts=require_counts,
            library=library,
            continuous=continuous,
            treatment_features=features,
        )
        read = design._read(adata, names, columns, keep=keep)
        unit = design._check_values(adata, read)
        design._warn_weaknesses()
        return replace(design, size_factor_unit=unit), read

    def _read(
        self,
        adata: AnnData,
        names: NDArray[np.object_],
        columns: NDArray[np.int64],
        *,
        keep: bool,
    ) -> _Read:
        # One pass over the counts; they are kept unless they stay on disk.
        where = checks.count_matrix_name(self.schema.counts)
        stored = checks.on_disk(adata, self.schema.counts)
        per_cell, per_gene = np.zeros(len(names)), np.zeros(len(columns))
        pieces: list[Any] = []
        for rows, block in checks.blocks(
            adata, self.schema.counts, columns, require_counts=self.require_counts
        ):
            if self.library == "totals":
                checks.nonnegative(block, where=where)
            per_cell[rows] = _total(block, axis=1)
            per_gene += _total(block, axis=0)
            if keep and stored is None:
                pieces.append(block)
        if self.require_counts or (self.library == "totals" and self.schema.size_factor is None):
            checks.nonempty(per_cell, names, where=where)
        counts: Any = None
        if stored is not None:
            counts = stored.genes(columns)
        elif len(pieces) == 1:
            counts = pieces[0]
        elif pieces and all(sparse.issparse(piece) for piece in pieces):
            counts = sparse.csr_matrix(sparse.vstack(pieces, format="csr"))
        elif pieces:
            counts = np.concatenate(pieces)
        return _Read(counts, per_cell, per_gene)

    def _check_values(self, adata: AnnData, read: _Read) -> float:
        # Returns the unit of the size factors.
        schema, factors = self.schema, None
        if schema.size_factor is not None:
            factors = checks.size_factors(adata.obs, schema.size_factor)
        where = checks.count_matrix_name(schema.counts)
        per_cell, per_gene = read.per_cell, read.per_gene
        unit = 1.0
        if self.library == "totals" and factors is not None and per_cell.any():
            unit = float(per_cell.mean() / factors.mean(dtype=np.float64))
        if not self.require_counts:
            return unit
        silent = [gene for gene, total in zip(self.genes, per_gene, strict=True) if total == 0]
        if silent:
            _warn(
                sentence(
                    f"{len(silent)} genes have no count in any cell"
                    if len(silent) > 1
                    else "a gene has no count in any cell",
                    where=where,
                    expected="genes that some cell expresses",
                    got=checks.first(silent),
                    hint="they are kept, but leaving them out would save time",
                )
            )
        return unit

    def _warn_weaknesses(self) -> None:
        for name, levels in self.covariates.items():
            if len(levels) == 1:
                _warn(
                    sentence(
                        f"covariate {name!r} is constant",
                        where="adata.obs",
                        expected="at least two levels",
                        got=f"{levels[0]!r} in every cell",
                        hint="leave it out of the schema, it tells the model nothing",
                    )
                )
        # Doses are pooled: with a continuous dose every cell would be its own condition.
        pooled: Counter[tuple[str, int]] = Counter()
        for group, joint, n_cells in self.condition_counts:
            pooled[self._label(self.treatment_keys[group]), joint] += n_cells
        few = {condition: n for condition, n in pooled.items() if n < FEW_CELLS}
        if few:
            (label, joint), smallest = min(few.items(), key=lambda item: (item[1], item[0]))
            described = [label] if self.schema.treatment is not None else []
            described += self.covariate_levels[joint]
            _warn(
                sentence(
                    f"{len(few)} of {len(pooled)} conditions have fewer than {FEW_CELLS} cells",
                    where="adata.obs",
                    expected=f"at least {FEW_CELLS} cells of every treatment and covariate",
                    got=f"{smallest} in the smallest, {checks.first(described)}",
                    hint="pool rare levels or leave them out",
                )
            )

    # ---- what it says --------------------------------------------------------------------

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
        _warn(
            sentence(
                f"{n_tx} interaction dimensions are more than the design can identify",
                where="size of z_tx",
                expected=expected,
                got=got,
                hint=f"use {largest} or fewer" if largest else "do not interpret z_tx",
            ),
            level=4,
        )

    def extended(self, adata: AnnData) -> Design:
        """Return a design that knows the treatments of other cells too, after its own.

        Codes that were given stay as they are, and so do the units of known treatments' doses.

        Parameters
        ----------
        adata
            Cells under treatments that this design may not know.

        Raises
        ------
        DesignError
            If they hold no treatment that is new.
        """
        keys, of_cell = read_treatments(adata.obs, self.schema)
        parts = sorted({part for key in keys for part, _ in key} - set(self.treatments))
        if not parts or self.treatment_features is not None:
            raise DesignError(
                sentence(
                    "no new treatment" if not parts else "a new treatment needs features",
                    where=f"obs[{self.schema.treatment!r}]",
                    expected="a treatment that the model does not know",
                    got=checks.first([self._label(key) for key in keys]),
                    hint="what the model knows is asked with counterfactual and targets",
                )
            )
        fresh = [key for key in keys if key not in self._group_of]
        fresh.sort(key=lambda key: tuple(zip(*key, strict=True)))
        wider = replace(
            self,
            treatments=(*self.treatments, *parts),
            treatment_keys=(*self.treatment_keys, *fresh),
            dose_units=dict(zip(self.treatments, self.dose_unit.tolist(), strict=True)),
        )
        cells = wider.encode(adata, labels="optional")
        pairs = Counter(zip(cells.treatment_id.tolist(), cells.covariate_id.tolist(), strict=True))
        first = len(self.treatment_keys)
        seen = ((t, x, n) for (t, x), n in sorted(pairs.items()) if t >= first and x >= 0)
        return replace(wider, condition_counts=(*self.condition_counts, *seen))

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

    # ---- applying it ---------------------------------------------------------------------

    def encode(
        self,
        adata: AnnData,
        *,
        labels: Literal["required", "optional", "ignored"] = "required",
    ) -> Cells:
        """Turn an AnnData into codes and counts, its genes in the model's order.

        Parameters
        ----------
        adata
            Any cells with the model's genes; it is only read.
        labels
            ``"optional"`` lets the columns of treatment, dose, covariates and batch be absent:
            such cells get treatment group -1 and a row of zeros, covariate codes 0 and joint
            covariate -1, the mean of a continuous covariate, batch 0. ``"ignored"`` takes these
            columns for absent even where they are there.

        Raises
        ------
        CategoryError
            If a treatment, covariate or batch was not in the training data.
        SchemaError, GeneError, CountsError
            As in :meth:`fit`; also if one of the model's genes is missing.
        """
        if labels not in ("required", "optional", "ignored"):
            raise SchemaError(
                sentence(
                    "an unknown option",
                    where="Design.encode(labels=)",
                    expected="'required', 'optional' or 'ignored'",
                    got=repr(labels),
                    hint="use the default",
                )
            )
        return self._encode(adata, labels, None)

    def _encode(self, adata: AnnData, labels: str, read: _Read | None) -> Cells:
        schema, obs = self.schema, adata.obs
        names = checks.cell_names(adata)
        _, columns = checks.gene_columns(adata, self.genes)
        named = (
            schema.treatment, schema.dose, *schema.covariates, *schema.continuous, schema.batch
        )  # fmt: skip
        if labels == "ignored":
            obs = obs.drop(columns=obs.columns.intersection([n for n in named if n is not None]))
        unknown = {n for n in named if n is not None and n not in obs.columns}
        if labels == "required":
            unknown = set()
        if schema.treatment is not None and unknown & {schema.treatment, schema.dose}:
            # Without its dose a treatment is not known either.
            unknown.add(schema.treatment)
            keys: list[Key] = [()]
            treatment_row = np.zeros(len(names), np.int64)
            treatment_id = np.full(len(names), -1)
        else:
            keys, treatment_row = read_treatments(obs, schema)
            self._check_parts(keys, where=f"obs[{schema.treatment!r}]")
            treatment_id = self._groups(keys)[treatment_row]

        covariates = np.zeros((len(names), self.n_covariates), np.int64)
        for k, name in enumerate(schema.covariates):
            if name not in unknown:
                covariates[:, k] = self._codes(obs, name, self.covariates[name], role="covariate")
        if unknown & set(schema.covariates):
            covariate_id = np.full(len(names), -1)
        else:
            covariate_id = self._joint(covariates)

        continuous = np.zeros((len(names), len(self.continuous)), np.float32)
        for k, (name, (mean, sd)) in enumerate(self.continuous.items()):
            if name not in unknown:
                continuous[:, k] = (checks.numbers(obs, name) - mean) / sd

        batch_id = np.zeros(len(names), np.int64)
        if schema.batch is not None and schema.batch not in unknown:
            batch_id = self._codes(obs, schema.batch, self.batches, role="batch")
        read = self._read(adata, names, columns, keep=True) if read is None else read
        return Cells(
            design=self,
            names=names,
            counts=read.counts,
            library=self._library(obs, read.per_cell),
            treatment_rows=self._rows(keys),
            treatment_row=treatment_row,
            treatment_id=treatment_id,
            covariates=covariates,
            covariate_id=covariate_id,
            batch_id=batch_id,
            unknown=frozenset(unknown),
            continuous=continuous,
        )

    def _library(self, obs: pd.DataFrame, totals: NDArray[np.float64]) -> NDArray[np.float32]:
        if self.schema.size_factor is not None:
            factors = checks.size_factors(obs, self.schema.size_factor)
            return factors * np.float32(self.size_factor_unit)
        if self.library == "totals":
            return totals.astype(np.float32)
        return np.ones(len(totals), np.float32)

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

    def without_cells(self, cells: Cells) -> list[str]:
        """Return those of the cells' treatments that no cell of this design had.

        Parameters
        ----------
        cells
            Cells of this design.
        """
        had = {part for key in self.treatment_keys for part, _ in key}
        used = np.unique(cells.treatment_row)
        columns = np.flatnonzero((cells.treatment_rows[used] != 0).any(axis=0))
        return [self.treatments[t] for t in columns if self.treatments[t] not in had]

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
        raise checks.unknown_category(str(name), known, where="do", role="name")

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

    def _codes(
        self, obs: pd.DataFrame, name: str, known: tuple[str, ...], *, role: str
    ) -> NDArray[np.int64]:
        codes, levels = checks.labels(obs, name, role=role)
        return np.asarray(
            [self._code(level, known, f"obs[{name!r}]", role=role) for level in levels], np.int64
        )[codes]

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

    # ---- keeping it ----------------------------------------------------------------------

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
    def from_dict(cls, values: Mapping[str, Any]) -> Design:
        """Build a design from :meth:`to_dict`'s values.

        Raises
        ------
        LoadError
            If a value is missing or has the wrong form.
        """
        try:
            require_counts = bool(values["require_counts"])
            return cls(
                schema=Schema.from_dict(values["schema"]),
                genes=tuple(values["genes"]),
                treatments=tuple(values["treatments"]),
                treatment_keys=tuple(
                    tuple((str(part), float(dose)) for part, dose in key)
                    for key in values["treatment_keys"]
                ),
                covariates={name: tuple(levels) for name, levels in values["covariates"]},
                covariate_levels=tuple(tuple(levels) for levels in values["covariate_levels"]),
                batches=tuple(values["batches"]),
                condition_counts=tuple((t, x, n) for t, x, n in values["condition_counts"]),
                require_counts=require_counts,
                # Designs saved without these had the factors as they were given.
                library=values.get("library", _usual_library(require_counts)),
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
        except (KeyError, TypeError, ValueError) as error:
            raise LoadError(
                sentence(
                    "a design that cannot be read",
                    where="Design.from_dict",
                    expected="the values that Design.to_dict made",
                    got=f"{type(error).__name__}: {error}",
                    hint="save the model again with this version",
                )
            ) from error


def _features(values: Any, n_treatments: int) -> NDArray[np.float32] | None:
    if values is None:
        return None
    features = np.asarray(values, np.float32)
    if features.ndim != 2 or len(features) != n_treatments:
        raise ValueError(f"features of shape {features.shape} for {n_treatments} treatments")
    return features


def _moments(values: NDArray[np.float64], name: str) -> tuple[float, float]:
    mean, sd = float(values.mean()), float(values.std())
    if sd == 0:
        _warn(
            sentence(
                f"covariate {name!r} is constant",
                where="adata.obs",
                expected="at least two values",
                got=f"{mean:g} in every cell",
                hint="leave it out of the schema, it tells the model nothing",
            )
        )
    return mean, sd or 1.0


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


def _usual_library(require_counts: bool) -> Literal["totals", "ones"]:
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


def _warn(message: str, *, level: int = 5) -> None:
    warnings.warn(message, DesignWarning, stacklevel=level)


def _total(block: Any, *, axis: int) -> NDArray[np.float64]:
    return np.asarray(block.sum(axis=axis, dtype=np.float64)).reshape(-1)


def _joint_levels(
    codes: Sequence[NDArray[np.int64]], n_cells: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if not codes:
        return np.zeros((1, 0), np.int64), np.zeros(n_cells, np.int64)
    rows, inverse = np.unique(np.stack(codes, axis=1), axis=0, return_inverse=True)
    return rows, inverse.reshape(-1)
