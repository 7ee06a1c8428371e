"""What was learnt from the training AnnData: how labels become codes, and back."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np
from scipy import sparse

from pyro_fcr.data import checks, count_matrix
from pyro_fcr.data.cells import Cells
from pyro_fcr.data.codes import usual_library
from pyro_fcr.data.features import read_features
from pyro_fcr.data.interventions import Interventions
from pyro_fcr.data.treatments import (
    check_treatments,
    read_treatments,
)
from pyro_fcr.errors import DesignError, SchemaError, sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

    from pyro_fcr.data.schema import Schema
    from pyro_fcr.data.treatments import Key

__all__ = ["Design"]

FEW_CELLS = 5
"""A condition with fewer cells than this draws a warning."""


class _Read(NamedTuple):
    """The counts, where they were kept, and their totals."""

    counts: Any
    per_cell: NDArray[np.float64]
    per_gene: NDArray[np.float64]


class Design(Interventions):
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
    >>> from pyro_fcr import Design, Schema
    >>> obs = pandas.DataFrame({"drug": ["none"] * 5 + ["A"] * 5}, index=list("abcdefghij"))
    >>> adata = anndata.AnnData(numpy.ones((10, 3), "float32"), obs=obs)
    >>> design = Design.fit(adata, Schema(treatment="drug", control="none"))
    >>> design.treatments, design.treatment_levels
    (('A',), ('none', 'A'))
    """

    @classmethod
    def fit(
        cls,
        adata: AnnData,
        schema: Schema,
        *,
        require_counts: bool = True,
        library: Literal["totals", "ones"] | None = None,
    ) -> Self:
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
    ) -> tuple[Self, Cells]:
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
    ) -> tuple[Self, _Read]:
        library = usual_library(require_counts) if library is None else library
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
        where = count_matrix.name_of(self.schema.counts)
        stored = count_matrix.on_disk(adata, self.schema.counts)
        per_cell, per_gene = np.zeros(len(names)), np.zeros(len(columns))
        pieces: list[Any] = []
        for rows, block in count_matrix.blocks(
            adata, self.schema.counts, columns, require_counts=self.require_counts
        ):
            if self.library == "totals":
                count_matrix.nonnegative(block, where=where)
            per_cell[rows] = _total(block, axis=1)
            per_gene += _total(block, axis=0)
            if keep and stored is None:
                pieces.append(block)
        if self.require_counts or (self.library == "totals" and self.schema.size_factor is None):
            count_matrix.nonempty(per_cell, names, where=where)
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
        where = count_matrix.name_of(schema.counts)
        per_cell, per_gene = read.per_cell, read.per_gene
        unit = 1.0
        if self.library == "totals" and factors is not None and per_cell.any():
            unit = float(per_cell.mean() / factors.mean(dtype=np.float64))
        if not self.require_counts:
            return unit
        silent = [gene for gene, total in zip(self.genes, per_gene, strict=True) if total == 0]
        if silent:
            checks.warn(
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
                checks.warn(
                    sentence(
                        f"covariate {name!r} is constant",
                        where="adata.obs",
                        expected="at least two levels",
                        got=f"{levels[0]!r} in every cell",
                        hint="leave it out of the schema, it tells the model nothing",
                    )
                )
        if len(self.batches) == 1 and self.schema.batch not in self.covariates:
            checks.warn(
                sentence(
                    f"batch {self.schema.batch!r} is constant",
                    where="adata.obs",
                    expected="at least two levels",
                    got=f"{self.batches[0]!r} in every cell",
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
            checks.warn(
                sentence(
                    f"{len(few)} of {len(pooled)} conditions have fewer than {FEW_CELLS} cells",
                    where="adata.obs",
                    expected=f"at least {FEW_CELLS} cells of every treatment and covariate",
                    got=f"{smallest} in the smallest, {checks.first(described)}",
                    hint="pool rare levels or leave them out",
                )
            )

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

    def _codes(
        self, obs: pd.DataFrame, name: str, known: tuple[str, ...], *, role: str
    ) -> NDArray[np.int64]:
        codes, levels = checks.labels(obs, name, role=role)
        return np.asarray(
            [self._code(level, known, f"obs[{name!r}]", role=role) for level in levels], np.int64
        )[codes]

    def extended(self, adata: AnnData) -> Self:
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

    def without_cells(self, cells: Cells) -> list[str]:
        """Return those of the cells' treatments that no cell of this design had.

        Parameters
        ----------
        cells
            Cells of this design.
        """
        had = self._with_cells()
        column = self.schema.treatment
        return [] if column is None else sorted(self.levels_of(cells)[column] - had)

    def levels_of(self, cells: Cells) -> dict[str, set[str]]:
        """Return the treatments without the control, the covariates and batches that cells have.

        Parameters
        ----------
        cells
            Cells of this design.

        Returns
        -------
        dict
            By column; of a combination its parts.
        """
        codes = dict(zip(self.covariates, cells.covariates.T, strict=True))
        known = dict(self.covariates)
        if self.schema.batch is not None:
            codes[self.schema.batch], known[self.schema.batch] = cells.batch_id, self.batches
        found = {
            name: {known[name][k] for k in np.unique(code) if k >= 0}
            for name, code in codes.items()
        }
        if self.schema.treatment is not None:
            rows = cells.treatment_rows[np.unique(cells.treatment_row)]
            has = (rows != 0).any(axis=0)
            found[self.schema.treatment] = {self.treatments[t] for t in np.flatnonzero(has)}
        return found

    def unseen(self, cells: Cells) -> dict[str, list[str]]:
        """Return the levels that cells of this design have, but none of these, by column.

        Parameters
        ----------
        cells
            Cells of this design, those that a model is trained on.
        """
        known = {name: set(levels) for name, levels in self.covariates.items()}
        if self.schema.batch is not None:
            known[self.schema.batch] = set(self.batches)
        if self.schema.treatment is not None:
            known[self.schema.treatment] = self._with_cells()
        has = self.levels_of(cells)
        return {name: sorted(some - has[name]) for name, some in known.items() if some - has[name]}

    def _with_cells(self) -> set[str]:
        return {part for key in self.treatment_keys for part, _ in key}


def _moments(values: NDArray[np.float64], name: str) -> tuple[float, float]:
    mean, sd = float(values.mean()), float(values.std())
    if sd == 0:
        checks.warn(
            sentence(
                f"covariate {name!r} is constant",
                where="adata.obs",
                expected="at least two values",
                got=f"{mean:g} in every cell",
                hint="leave it out of the schema, it tells the model nothing",
            )
        )
    return mean, sd or 1.0


def _total(block: Any, *, axis: int) -> NDArray[np.float64]:
    return np.asarray(block.sum(axis=axis, dtype=np.float64)).reshape(-1)


def _joint_levels(
    codes: Sequence[NDArray[np.int64]], n_cells: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if not codes:
        return np.zeros((1, 0), np.int64), np.zeros(n_cells, np.int64)
    rows, inverse = np.unique(np.stack(codes, axis=1), axis=0, return_inverse=True)
    return rows, inverse.reshape(-1)
