"""Which cells train, validate and test: by name, so that a split outlives a reordering."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_fcr import arguments
from pyro_fcr.data import checks
from pyro_fcr.errors import CategoryError, DesignError, LoadError, SchemaError, sentence

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from pyro_fcr.data.cells import Cells
    from pyro_fcr.data.schema import Schema

__all__ = ["PARTS", "Split", "column", "combinations", "hold_out", "random"]

PARTS = ("train", "valid", "test")
"""The parts of a split."""


@dataclass(frozen=True)
class Split:
    """Which part every cell belongs to.

    Parameters
    ----------
    names
        The cells' names.
    parts
        ``"train"``, ``"valid"`` or ``"test"`` for each of them.
    recipe
        How the split was made, in words.

    Raises
    ------
    DesignError
        If no cell is left to train on, or none to test on.
    """

    names: tuple[str, ...]
    parts: tuple[str, ...]
    recipe: str = ""

    def __post_init__(self) -> None:
        """Check the fields."""
        object.__setattr__(self, "names", tuple(str(name) for name in self.names))
        object.__setattr__(self, "parts", tuple(str(part) for part in self.parts))
        if len(self.names) != len(self.parts) or len(set(self.names)) != len(self.names):
            raise DesignError(
                sentence(
                    "names and parts do not match",
                    where="Split",
                    expected="one part for every name, no name twice",
                    got=f"{len(self.names)} names ({len(set(self.names))} distinct) and "
                    f"{len(self.parts)} parts",
                    hint="make the split with pyro_fcr.splits",
                )
            )
        _known_parts(self.parts, where="Split")
        counts = self.counts()
        for part in ("train", "test"):
            if not counts[part]:
                raise DesignError(
                    sentence(
                        f"an empty {part} part",
                        where=f"split {self.recipe}" if self.recipe else "split",
                        expected=f"at least one {part} cell",
                        got=", ".join(f"{n} {name}" for name, n in counts.items()),
                        hint="hold out fewer cells" if part == "train" else "hold out more cells",
                    )
                )

    def __repr__(self) -> str:
        """Return :meth:`describe`: the cells' names would fill pages."""
        return f"Split({self.describe()})"

    @cached_property
    def _part_of(self) -> dict[str, str]:
        return dict(zip(self.names, self.parts, strict=True))

    def mask(self, adata: AnnData | Cells, part: str) -> NDArray[np.bool_]:
        """Say which cells belong to a part, whatever their order.

        Parameters
        ----------
        adata
            The split's cells or some of them: an AnnData, or encoded cells.
        part
            ``"train"``, ``"valid"`` or ``"test"``.

        Returns
        -------
        Shape (N,), bool.

        Raises
        ------
        CategoryError
            If there is no such part.
        DesignError
            If a cell is none of the split's.
        """
        _known_parts([part], where="Split.mask")
        names = [str(name) for name in getattr(adata, "obs_names", getattr(adata, "names", ()))]
        unknown = [name for name in names if name not in self._part_of]
        if unknown:
            raise DesignError(
                sentence(
                    f"{len(unknown)} cells are not in the split",
                    where="Split.mask",
                    expected="cells that the split was made from",
                    got=checks.first(unknown),
                    hint="make the split anew from these data",
                )
            )
        return np.asarray([self._part_of[name] == part for name in names], dtype=bool)

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the names, sorted, with their parts; the cells' order does not matter."""
        digest = hashlib.sha256()
        for pair in sorted(zip(self.names, self.parts, strict=True)):
            digest.update(json.dumps(pair).encode() + b"\n")
        return digest.hexdigest()

    def counts(self) -> dict[str, int]:
        """Return the number of cells in every part."""
        return {part: self.parts.count(part) for part in PARTS}

    def describe(self) -> str:
        """Return one line: how the split was made, how large its parts are, its hash."""
        sizes = ", ".join(f"{part} {n}" for part, n in self.counts().items())
        return f"{self.recipe or 'split'}: {sizes}; sha256 {self.hash[:12]}"

    def to_dict(self) -> dict[str, Any]:
        """Return the split as JSON-able values."""
        return {
            "recipe": self.recipe,
            "names": list(self.names),
            "parts": list(self.parts),
            "hash": self.hash,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Split:
        """Build a split from :meth:`to_dict`'s values.

        Raises
        ------
        LoadError
            If a value is missing, or the cells do not have the hash beside them.
        """
        try:
            split = cls(tuple(values["names"]), tuple(values["parts"]), values.get("recipe", ""))
        except (KeyError, TypeError) as error:
            raise LoadError(
                sentence(
                    "a split that cannot be read",
                    where="Split.from_dict",
                    expected="the values that Split.to_dict made",
                    got=f"{type(error).__name__}: {error}",
                    hint="save the split again",
                )
            ) from error
        if values.get("hash", split.hash) != split.hash:
            raise LoadError(
                sentence(
                    "the split was changed after it was saved",
                    where="Split.from_dict",
                    expected=f"hash {str(values['hash'])[:12]}",
                    got=split.hash[:12],
                    hint="save the split again",
                )
            )
        return split


def random(
    adata: AnnData,
    *,
    test: float = 0.2,
    valid: float = 0.1,
    stratify: str | Sequence[str] | None = None,
    seed: int = 0,
) -> Split:
    """Split the cells at random, a function of their names and the seed alone.

    Parameters
    ----------
    adata
        The cells.
    test, valid
        Fractions of all the cells.
    stratify
        One column of ``obs`` or several: each of their combinations is split in the same
        proportions, to within one cell.
    seed
        Seed of the draw.

    Raises
    ------
    DesignError
        If the fractions leave nothing to train or test on.
    SchemaError
        If a column is missing or has missing values.
    """
    _fraction("test", test)
    _fraction("valid", valid)
    names = checks.cell_names(adata)
    columns = [stratify] if isinstance(stratify, str) else list(stratify or ())
    codes = [checks.labels(adata.obs, name, role="stratification")[0] for name in columns]
    strata = np.zeros(len(names), np.int64)
    if codes:
        strata = np.unique(np.stack(codes, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    order = _shuffled(names, np.arange(len(names)), seed)
    order = order[np.argsort(strata[order], kind="stable")]
    parts = np.full(len(names), "train", dtype=object)
    is_test = _every(len(order), test)
    parts[order[is_test]] = "test"
    # What is left is as well mixed as before, so the same rule gives valid its share of it.
    rest = order[~is_test]
    parts[rest[_every(len(rest), min(1.0, valid / (1 - test)))]] = "valid"
    told = f", stratify={columns}" if columns else ""
    return Split(
        tuple(names), tuple(parts), f"random(test={test}, valid={valid}{told}, seed={seed})"
    )


def hold_out(
    adata: AnnData,
    held_out: Mapping[str, Any],
    *,
    valid: float = 0.1,
    seed: int = 0,
) -> Split:
    """Hold out the cells that match every one of some columns.

    One column makes a test of unseen treatments or covariate levels; two make one of an unseen
    combination, whose parts the training cells still have.

    Parameters
    ----------
    adata
        The cells.
    held_out
        For each column of ``obs``, a value or a list of them.
    valid
        Fraction of the other cells, drawn at random.
    seed
        Seed of that draw.

    Raises
    ------
    SchemaError
        If a column is missing.
    CategoryError
        If a value does not occur in its column.
    DesignError
        If no cell matches, or no cell is left.
    """
    _fraction("valid", valid)
    if not arguments.mapping(held_out, "hold_out", of="values of columns"):
        raise DesignError(
            sentence(
                "nothing to hold out",
                where="hold_out",
                expected="at least one column with its values",
                got="{}",
                hint="for example {'cell_line': ['A172']}",
            )
        )
    names = checks.cell_names(adata)
    is_test = np.ones(len(names), dtype=bool)
    told = []
    for name, wanted in held_out.items():
        series = checks.column(adata.obs, name, role="hold-out")
        texts = np.asarray(
            [
                "" if missing else str(value)
                for value, missing in zip(series, series.isna(), strict=True)
            ],
            dtype=object,
        )
        known = sorted(set(texts) - {""})
        several = isinstance(wanted, (list, tuple, set, frozenset, np.ndarray))
        values = [str(value) for value in (wanted if several else [wanted])]
        for value in values:
            if value not in known:
                raise checks.unknown_category(
                    value, known, where=f"adata.obs[{name!r}]", role="value"
                )
        is_test &= np.isin(texts, np.asarray(values, dtype=object))
        told.append(f"{name} in {sorted(values)}")
    parts = np.where(is_test, "test", "train").astype(object)
    rest = _shuffled(names, np.flatnonzero(~is_test), seed)
    parts[rest[_every(len(rest), valid)]] = "valid"
    recipe = f"hold_out({' and '.join(told)}, valid={valid}, seed={seed})"
    return Split(tuple(names), tuple(parts), recipe)


def combinations(
    adata: AnnData, schema: Schema, *, share: float = 0.2, valid: float = 0.1, seed: int = 0
) -> Split:
    """Hold out a share of the treated combinations of treatment and covariates, drawn at random.

    Controls always train. Every treatment keeps a combination, and every covariate group its
    control or a combination, so that the parts of each unseen combination are known; where that
    leaves too few to draw from, fewer are held out.

    Parameters
    ----------
    adata
        The cells.
    schema
        Names treatment, control and covariates.
    share
        Fraction of the treated combinations.
    valid
        Fraction of the other cells, drawn at random.
    seed
        Seed of both draws.

    Raises
    ------
    SchemaError
        If the schema names no treatment, control or covariate, or a column is missing.
    DesignError
        If no combination can be spared.
    """
    _fraction("share", share)
    _fraction("valid", valid)
    if schema.treatment is None or schema.control is None or not schema.covariates:
        raise SchemaError(
            sentence(
                "nothing to combine",
                where="combinations(schema)",
                expected="treatment, control and covariates",
                got=repr(schema),
                hint="name them all",
            )
        )
    names = checks.cell_names(adata)
    codes, levels = checks.labels(adata.obs, schema.treatment, role="treatment")
    groups = np.stack(
        [checks.labels(adata.obs, name, role="covariate")[0] for name in schema.covariates], axis=1
    )
    group = np.unique(groups, axis=0, return_inverse=True)[1].reshape(-1)
    treated = np.asarray(levels, dtype=object)[codes] != schema.control
    pairs, of_cell = np.unique(np.stack([codes, group], axis=1), axis=0, return_inverse=True)
    free = np.zeros(len(pairs), bool)
    free[of_cell.reshape(-1)[treated]] = True
    left = [np.bincount(pairs[free, 0]), np.bincount(pairs[:, 1])]
    wanted, held = round(share * int(free.sum())), np.zeros(len(pairs), bool)
    for pair in np.random.default_rng(seed).permutation(np.flatnonzero(free)):
        t, x = pairs[pair]
        if held.sum() < wanted and left[0][t] > 1 and left[1][x] > 1:
            held[pair] = True
            left[0][t] -= 1
            left[1][x] -= 1
    is_test = held[of_cell.reshape(-1)]
    parts = np.where(is_test, "test", "train").astype(object)
    rest = _shuffled(names, np.flatnonzero(~is_test), seed)
    parts[rest[_every(len(rest), valid)]] = "valid"
    recipe = f"combinations(share={share}, valid={valid}, seed={seed})"
    return Split(tuple(names), tuple(parts), recipe)


def column(adata: AnnData, name: str) -> Split:
    """Read a split from a column of ``obs`` with the values train, valid and test.

    Raises
    ------
    SchemaError
        If the column is missing or has missing values.
    CategoryError
        If it has other values.
    DesignError
        If no cell trains, or none tests.
    """
    names = checks.cell_names(adata)
    codes, levels = checks.labels(adata.obs, name, role="split")
    _known_parts(levels, where=f"adata.obs[{name!r}]")
    return Split(tuple(names), tuple(levels[code] for code in codes.tolist()), f"column({name!r})")


def _known_parts(parts: Sequence[str], *, where: str) -> None:
    for part in sorted(set(parts) - set(PARTS)):
        raise CategoryError(
            sentence(
                "an unknown part",
                where=where,
                expected="'train', 'valid' or 'test'",
                got=repr(part),
                hint=checks.nearest(part, PARTS, "rename it"),
            )
        )


def _fraction(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise DesignError(
            sentence(
                "not a fraction",
                where=name,
                expected="a number from 0 to below 1",
                got=repr(value),
                hint="0.1 stands for a tenth of the cells",
            )
        )


def _shuffled(names: NDArray[np.object_], rows: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    # Names are sorted first: the same cells in another order get the same parts.
    ordered = rows[np.argsort(names[rows].astype(str), kind="stable")]
    return np.random.default_rng(seed).permutation(ordered)


def _every(n: int, fraction: float) -> NDArray[np.bool_]:
    """Choose floor(n * fraction) of n places, spread as evenly as can be."""
    # The small number keeps 0.29 * 100 from falling below 29.
    steps = np.floor(np.arange(n + 1) * fraction + 1e-9)
    return np.diff(steps) > 0
