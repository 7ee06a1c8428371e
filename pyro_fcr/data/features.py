"""Reading what is known of treatments: a vector for each, from ``uns`` or ``varm``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from pyro_fcr.data import checks
from pyro_fcr.errors import SchemaError, sentence

if TYPE_CHECKING:
    from collections.abc import Collection

    from anndata import AnnData
    from numpy.typing import NDArray

    from pyro_fcr.data.schema import Schema

__all__ = ["read_features"]


def read_features(
    adata: AnnData, schema: Schema, parts: Collection[str]
) -> tuple[list[str], NDArray[np.float32]]:
    """Return the treatments that have features, in sorted order, and the features.

    Parameters
    ----------
    adata
        ``uns[key]`` is a DataFrame with a row per treatment or a mapping from treatments to
        vectors; ``varm[key]`` has a row per gene, for treatments that are named after genes.
    schema
        Names the key; the control needs no features.
    parts
        Single treatments of the cells, each of which must have features.

    Returns
    -------
    names, features
        Shape (T,) and (T, F), float32. In ``varm`` a gene whose features are not all finite has
        none, unless it is a treatment of the cells.

    Raises
    ------
    SchemaError
        If the key is missing or ambiguous, the values are no numbers of one length, or a
        treatment has no features or some that are not finite.
    """
    key = str(schema.treatment_features)
    places = [place for place in ("uns", "varm") if key in getattr(adata, place)]
    if len(places) != 1:
        known = checks.first([*adata.uns.keys(), *adata.varm.keys()])
        raise _refuse(
            "no features of treatments" if not places else "two sets of treatment features",
            where="Schema.treatment_features",
            expected="a key of adata.uns or of adata.varm",
            got=f"{key!r}, which is in {'both' if places else 'neither'}",
            hint="rename one of them" if places else f"known keys: {known or 'none'}",
        )
    where = f"{places[0]}[{key!r}]"
    if places[0] == "varm":
        names, values = [str(name) for name in adata.var_names], adata.varm[key]
        values = values.toarray() if sparse.issparse(values) else values
    else:
        names, values = _rows(adata.uns[key], where)
    features = _numbers(values, where)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise _refuse(
            "a treatment's features are given twice",
            where=where,
            expected="one vector per treatment",
            got=f"{twice!r} more than once",
            hint="keep one of them",
        )
    if missing := sorted(set(parts) - set(names)):
        raise _refuse(
            f"{len(missing)} treatments have no features",
            where=where,
            expected=f"a vector for each of the {len(parts)} treatments",
            got=f"none for {checks.first(missing)}",
            hint=checks.nearest(missing[0], names, "add them, or leave the cells out"),
        )
    finite = np.isfinite(features.sum(axis=1, dtype=np.float64)).tolist()
    bad = [n for n, ok in zip(names, finite, strict=True) if not ok]
    if places[0] == "varm":
        bad = [name for name in bad if name in parts]
    if bad:
        raise _refuse(
            "features that are not finite",
            where=where,
            expected="finite numbers",
            got=f"nan or inf for {checks.first(bad)}",
            hint="fill them in, or leave the treatment out",
        )
    position = {name: row for row, name in enumerate(names) if finite[row]}
    kept = sorted(set(position) - {str(schema.control)})
    return kept, features[[position[name] for name in kept]]


def _rows(given: Any, where: str) -> tuple[list[str], Any]:
    if isinstance(given, pd.DataFrame):
        return [str(name).strip() for name in given.index], given
    if isinstance(given, Mapping) and given:
        rows = [np.asarray(value) for value in given.values()]
        shapes = sorted({row.shape for row in rows})
        if len(shapes) == 1 and len(shapes[0]) == 1:
            return [str(name).strip() for name in given], np.stack(rows)
        got = f"shapes {', '.join(map(str, shapes[:3]))}"
    else:
        got = f"an empty {type(given).__name__}" if given == {} else type(given).__name__
    raise _refuse(
        "features of treatments in the wrong form",
        where=where,
        expected="a DataFrame with a row per treatment, or vectors of one length by treatment",
        got=got,
        hint="pandas.DataFrame(values, index=treatments)",
    )


def _numbers(values: Any, where: str) -> NDArray[np.float32]:
    try:
        features = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError):
        features = np.empty(0, np.float32)
    if features.ndim != 2 or not features.size:
        raise _refuse(
            "features of treatments that are no table of numbers",
            where=where,
            expected="treatments times at least one number",
            got=f"{type(values).__name__} of shape {np.shape(values)}",
            hint="encode categories as numbers first",
        )
    return features


def _refuse(what: str, **told: str) -> SchemaError:
    return SchemaError(sentence(what, **told))
