"""Names and labels of an AnnData, read with suspicion; the words that refusals share."""

from __future__ import annotations

import difflib
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyro_fcr.errors import (
    CategoryError,
    DesignWarning,
    GeneError,
    SchemaError,
    sentence,
)
from pyro_fcr.reading import first_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

__all__ = [
    "cell_names",
    "column",
    "first",
    "gene_columns",
    "labels",
    "nearest",
    "numbers",
    "quoted",
    "size_factors",
    "unknown_category",
    "warn",
]


def quoted(name: Any, longest: int = 80) -> str:
    """Quote a name on one line, a very long one up to a point."""
    text = repr(str(name))
    return text if len(text) <= longest else f"{text[:longest]}…'"


def first(names: Iterable[Any], limit: int = 5) -> str:
    """Quote the first few names and say how many more there are."""
    every = list(names)
    shown = ", ".join(quoted(name) for name in every[:limit])
    return shown + (f" and {len(every) - limit} more" if len(every) > limit else "")


def warn(message: str, *, level: int = 5) -> None:
    """Say that a design is weak, at the line of the user's call ``level`` frames up."""
    warnings.warn(message, DesignWarning, stacklevel=level)


def nearest(name: str, known: Iterable[str], otherwise: str) -> str:
    """Say which known name is spelt most like ``name``, or else ``otherwise``."""
    every = [str(known_name) for known_name in known]
    folded = {known_name.casefold(): known_name for known_name in reversed(every)}
    close = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.6)
    # No question mark: a sentence goes on after its hint with a full stop.
    return f"did you mean {folded[close[0]]!r}" if close else otherwise


def unknown_category(
    value: str,
    known: Sequence[str],
    *,
    where: str,
    role: str,
    otherwise: str = "leave those cells out, or train with them",
) -> CategoryError:
    """Compose the refusal of a value that the training data did not hold."""
    return CategoryError(
        sentence(
            f"unknown {role} {quoted(value)}",
            where=where,
            expected=f"one of {first(known, 12)}",
            got=quoted(value),
            hint=nearest(value, known, otherwise),
        )
    )


def column(obs: pd.DataFrame, name: str, *, role: str) -> pd.Series:
    """Return a column of ``obs`` that exists once.

    Raises
    ------
    SchemaError
        If there is no such column, or more than one.
    """
    if name not in obs.columns:
        raise SchemaError(
            sentence(
                f"no {role} column {name!r}",
                where="adata.obs",
                expected=f"one of {first(obs.columns, 12) or 'its columns (there are none)'}",
                got=repr(name),
                hint=nearest(name, obs.columns, f"name the {role} column in the schema"),
            )
        )
    values = obs[name]
    if isinstance(values, pd.DataFrame):
        raise SchemaError(
            sentence(
                f"more than one column {name!r}",
                where="adata.obs",
                expected="one",
                got=str(values.shape[1]),
                hint="rename all but one",
            )
        )
    return values


def labels(obs: pd.DataFrame, name: str, *, role: str) -> tuple[NDArray[np.int64], list[str]]:
    """Read a column of labels as codes into sorted strings, whatever its dtype.

    Returns
    -------
    codes
        Shape (N,), int64.
    levels
        The labels that occur, as strings in sorted order; unused categories are none of them.

    Raises
    ------
    SchemaError
        If the column is missing or has missing values.
    """
    values = column(obs, name, role=role)
    try:
        codes, uniques = pd.factorize(values, use_na_sentinel=True)
    except TypeError as error:
        raise SchemaError(
            sentence(
                f"the {role} column {name!r} holds no labels",
                where="adata.obs",
                expected="strings, numbers or booleans",
                got=first_line(error),
                hint="give each cell one label",
            )
        ) from error
    texts = np.asarray([str(value) for value in uniques], dtype=object)
    blank = np.asarray([not text.strip() for text in texts], dtype=bool)
    missing = codes < 0
    if blank.any():
        missing |= np.append(blank, False)[codes]
    if missing.any():
        cells = obs.index[np.flatnonzero(missing)]
        raise SchemaError(
            sentence(
                f"missing values in the {role} column {name!r}",
                where="adata.obs",
                expected="a label for every cell",
                got=f"none for {len(cells)} of {len(obs)} cells ({first(cells)})",
                hint="leave those cells out or fill the column in",
            )
        )
    # Raw values may share a text (1 and "1"), so codes are made again from the texts.
    levels, recoded = np.unique(texts.astype(str), return_inverse=True)
    return recoded.astype(np.int64)[codes], [str(level) for level in levels]


def size_factors(obs: pd.DataFrame, name: str) -> NDArray[np.float32]:
    """Read the size factors, shape (N,): positive and finite.

    Raises
    ------
    SchemaError
        If the column is missing or a value is not a positive finite number.
    """
    hint = "mend the column, or leave size_factor out to use total counts"
    return _numbers(obs, name, role="size factor", positive=True, hint=hint).astype(np.float32)


def numbers(obs: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """Read a continuous covariate, shape (N,): finite.

    Raises
    ------
    SchemaError
        If the column is missing or a value is not a finite number.
    """
    hint = "mend the column, or name it among covariates if it holds labels"
    return _numbers(obs, name, role="continuous covariate", positive=False, hint=hint)


def _numbers(
    obs: pd.DataFrame, name: str, *, role: str, positive: bool, hint: str
) -> NDArray[np.float64]:
    values = pd.to_numeric(column(obs, name, role=role), errors="coerce")
    # What the model will hold must be finite too, in its own precision.
    found = values.to_numpy(dtype=np.float64, na_value=np.nan)
    single = found.astype(np.float32)
    bad = np.flatnonzero(~(np.isfinite(single) & (single > 0 if positive else True)))
    if bad.size:
        raise SchemaError(
            sentence(
                f"unusable {role}s in column {name!r}",
                where="adata.obs",
                expected=f"a {'positive ' * positive}finite number for every cell",
                got=f"{_plain(obs[name].iloc[bad[0]])!r} for cell {str(obs.index[bad[0]])!r} "
                f"({bad.size} such cells)",
                hint=hint,
            )
        )
    return found


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _repeated(names: pd.Index) -> list[str]:
    return [str(name) for name in names[names.duplicated()].unique()]


def cell_names(adata: AnnData) -> NDArray[np.object_]:
    """Return the cells' names, of which there is at least one and none twice.

    Raises
    ------
    SchemaError
        If there are no cells, or a name repeats.
    """
    if adata.n_obs == 0:
        raise SchemaError(
            sentence(
                "no cells",
                where="adata",
                expected="at least one",
                got="0",
                hint="look at the filter that made this AnnData",
            )
        )
    repeated = _repeated(adata.obs_names)
    if repeated:
        raise SchemaError(
            sentence(
                "cell names repeat",
                where="adata.obs_names",
                expected="a name of its own for every cell",
                got=f"{first(repeated)} more than once",
                hint="call adata.obs_names_make_unique()",
            )
        )
    return np.asarray([str(name) for name in adata.obs_names], dtype=object)


def gene_columns(
    adata: AnnData, genes: Sequence[str] | None = None
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Find the model's genes in ``adata``, by name; all of its genes if ``genes`` is None.

    Returns
    -------
    genes
        The names in the model's order.
    columns
        Shape (G,), int64: where each stands in ``adata``.

    Raises
    ------
    GeneError
        If ``adata`` has no genes, names repeat, or some of ``genes`` are missing.
    """
    if adata.n_vars == 0:
        raise GeneError(
            sentence(
                "no genes",
                where="adata",
                expected="at least one",
                got="0",
                hint="look at the filter that made this AnnData",
            )
        )
    repeated = _repeated(adata.var_names)
    if repeated:
        raise GeneError(
            sentence(
                "gene names repeat",
                where="adata.var_names",
                expected="a name of its own for every gene",
                got=f"{first(repeated)} more than once",
                hint="call adata.var_names_make_unique()",
            )
        )
    present = pd.Index([str(name) for name in adata.var_names])
    if genes is None:
        return tuple(present), np.arange(len(present))
    columns = np.asarray(present.get_indexer(pd.Index(list(genes))), dtype=np.int64)
    missing = [gene for gene, where in zip(genes, columns, strict=True) if where < 0]
    if missing:
        raise GeneError(
            sentence(
                f"{len(missing)} of the model's {len(genes)} genes are missing",
                where="adata.var_names",
                expected="every gene the model was trained on",
                got=f"no {first(missing)}",
                hint="add them (as zeros if they were not measured), or check the kind of gene "
                "names",
            )
        )
    return tuple(genes), columns
