"""Data, schema and split of a job, and the scale on which its profiles are compared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_fcr import datasets, simulate
from pyro_fcr.data import Schema, Split, splits, top_genes
from pyro_fcr.errors import BenchmarkError, FCRError, sentence
from pyro_fcr.evaluate import Training, cell_values, principal_components, profile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

    from pyro_fcr.evaluate import PrincipalComponents

__all__ = ["Problem", "check_recipe", "load"]

ROOMS = {"datasets": datasets, "simulate": simulate}
SPLITS = {
    "random": {"test", "valid", "stratify"},
    "hold_out": {"hold_out", "valid", "each"},
    "combinations": {"share", "valid"},
    "column": {"column"},
}
FIELDS = {"name", "fold", "base", "source", "arguments", "schema", "likelihood", "genes", "cells",
          "keep", "quick", "split", "min_cells", "controls"}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """What a method is given, and what it is judged by.

    Attributes
    ----------
    adata
        All cells; a method may learn from those of ``split``'s train and valid parts alone.
    schema
        Which column is what.
    split
        Of the cells.
    likelihood
        ``"normal"`` says that the values are no counts.
    min_cells
        A condition with fewer test cells is not scored.
    """

    adata: AnnData
    schema: Schema
    split: Split
    likelihood: str = "nb"
    min_cells: int = 10

    @property
    def counts(self) -> bool:
        """Whether the values are counts; profiles are then log1p of counts per 10,000."""
        return self.likelihood != "normal"

    @cached_property
    def treatment(self) -> np.ndarray:
        """Label of every cell, shape (N,)."""
        if self.schema.treatment is None:
            return np.full(self.adata.n_obs, "all")
        return self.adata.obs[self.schema.treatment].astype(str).to_numpy()

    @cached_property
    def covariate(self) -> np.ndarray:
        """Joint label of the covariates of every cell, shape (N,)."""
        columns = [self.adata.obs[name].astype(str) for name in self.schema.covariates]
        if not columns:
            return np.full(self.adata.n_obs, "all")
        return columns[0].str.cat(columns[1:], sep="|").to_numpy()

    @cached_property
    def condition(self) -> np.ndarray:
        """Treatment and covariates as one label, and the batch where there is no treatment."""
        labels = [self.treatment, self.covariate]
        if self.schema.treatment is None and self.schema.batch is not None:
            labels.append(self.adata.obs[self.schema.batch].astype(str).to_numpy())
        return np.array(["|".join(row) for row in zip(*labels, strict=True)])

    def mask(self, part: str) -> np.ndarray:
        """Boolean mask of a part of the split, shape (N,)."""
        return self.split.mask(self.adata, part)

    def values(self, cells: np.ndarray) -> Any:
        """Return the matrix of some cells."""
        return self.adata.X[cells]

    def transform(self, values: Any) -> np.ndarray:
        """Return cells on the scale of comparison: log-normalised, or as they are."""
        return cell_values(values, log_normalise=self.counts)

    def profile(self, values: Any) -> np.ndarray:
        """Return the mean profile of cells on the scale of comparison, shape (G,)."""
        return profile(values, log_normalise=self.counts)

    def training(self, cells: np.ndarray) -> Training:
        """Return some cells as baselines read them, with profiles on the scale of comparison."""
        return Training(
            self.values(cells), self.treatment[cells], self.covariate[cells],
            control=str(self.schema.control), genes=self.adata.var_names,
            log_normalise=self.counts,
        )  # fmt: skip

    def components(self, n: int = 50) -> PrincipalComponents:
        """Return principal components of the training cells."""
        return principal_components(self.values(self.mask("train")), n, log_normalise=self.counts)


def load(recipe: Mapping[str, Any], seed: int) -> Problem:
    """Make a job's problem.

    Parameters
    ----------
    recipe
        As a configuration gives it, one fold of it.
    seed
        Of a simulation, and of the split.

    Raises
    ------
    BenchmarkError
        If the data or the split refuse.
    """
    room, _, name = recipe["source"].partition(".")
    simulated = {"seed": seed} if room == "simulate" else {}
    try:
        adata = getattr(ROOMS[room], name)(**recipe["arguments"], **simulated)
        for column, values in recipe.get("keep", {}).items():
            adata = adata[adata.obs[column].astype(str).isin(values).to_numpy()].copy()
        schema = Schema(**recipe["schema"])
        if "cells" in recipe:
            adata = _thinned(adata, schema, int(recipe["cells"]))
        split = _split(adata, schema, recipe["split"], seed)
        if "controls" in recipe:
            split = _with_controls(split, adata, schema, float(recipe["controls"]), seed)
        if "genes" in recipe and recipe.get("likelihood") != "normal":
            adata = top_genes(adata, int(recipe["genes"]), split=split)
    except (TypeError, FCRError) as error:
        raise BenchmarkError(
            sentence(
                "the data cannot be made",
                where=recipe["name"],
                expected="arguments, schema and split that fit them",
                got=str(error).rstrip("."),
                hint="correct the configuration",
            )
        ) from error
    keys = ("likelihood", "min_cells")
    problem = Problem(adata, schema, split)
    return replace(problem, **{key: recipe[key] for key in keys if key in recipe})


def check_recipe(recipe: Mapping[str, Any], *, where: str) -> None:
    """Refuse a recipe that cannot work, before anything is loaded.

    Raises
    ------
    BenchmarkError
        With the key that is wrong.
    """
    split = recipe.get("split", {})
    kind = split.get("kind")
    room, _, name = str(recipe.get("source", "")).partition(".")
    each, held = split.get("each"), split.get("hold_out", {})
    for wrong, key, expected, got in (
        (set(recipe) - FIELDS, "keys", f"some of {sorted(FIELDS)}",
         f"{sorted(set(recipe) - FIELDS)}"),
        (name not in getattr(ROOMS.get(room), "__all__", ()), "source",
         "a public function of pyro_fcr.datasets or pyro_fcr.simulate", repr(f"{room}.{name}")),
        ("schema" not in recipe, "schema", "the fields of a Schema", "none"),
        (kind not in SPLITS, "split.kind", f"one of {sorted(SPLITS)}", repr(kind)),
        (kind in SPLITS and set(split) - {"kind"} - SPLITS[kind], "split",
         f"some of {sorted(SPLITS.get(kind, ()))}", f"{sorted(split)}"),
        (each is not None and not isinstance(held.get(each), list), "split.each",
         "a column of hold_out with a list of values", repr(each)),
    ):  # fmt: skip
        if wrong:
            raise BenchmarkError(
                sentence("a data set that cannot be made", where=f"{where}: {key}",
                         expected=expected, got=got, hint="correct it")
            )  # fmt: skip


def _split(adata: AnnData, schema: Schema, recipe: Mapping[str, Any], seed: int) -> Split:
    options = {key: value for key, value in recipe.items() if key != "kind"}
    if recipe["kind"] == "column":
        return splits.column(adata, options["column"])
    options.setdefault("valid", 0.0)
    if recipe["kind"] == "random":
        return splits.random(adata, seed=seed, **options)
    if recipe["kind"] == "hold_out":
        return splits.hold_out(adata, options.pop("hold_out"), seed=seed, **options)
    return splits.combinations(adata, schema, seed=seed, **options)


def _with_controls(split: Split, adata: AnnData, schema: Schema, share: float, seed: int) -> Split:
    """Move a share of every covariate group's training controls to the test cells."""
    problem = Problem(adata, schema, split)
    rng, parts = np.random.default_rng(seed), np.array(split.parts, dtype=object)
    free = problem.mask("train") & (problem.treatment == schema.control)
    for x in sorted(set(problem.covariate)):
        rows = rng.permutation(np.flatnonzero(free & (problem.covariate == x)))
        parts[rows[: round(share * len(rows))]] = "test"
    return Split(split.names, tuple(parts), f"{split.recipe} with {share} of the controls")


def _thinned(adata: AnnData, schema: Schema, most: int) -> AnnData:
    """Keep at most so many cells of every condition, the same ones whatever the seed."""
    columns = [c for c in (schema.treatment, *schema.covariates, schema.batch) if c is not None]
    columns = list(dict.fromkeys(columns)) or [adata.obs.columns[0]]
    rng = np.random.default_rng(0)
    kept = [
        rng.permutation(members)[:most]
        for _, members in sorted(adata.obs.groupby(columns, observed=True).indices.items())
    ]
    return adata[np.sort(np.concatenate(kept))].copy()
