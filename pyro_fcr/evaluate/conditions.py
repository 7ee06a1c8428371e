"""Cells by their conditions: residuals within these, and even shares of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pyro_fcr.errors import DesignError, sentence

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.floating[Any]]
    Rows = NDArray[np.integer[Any]]

__all__ = [
    "Halves",
    "condition_codes",
    "even_halves",
    "latent_matrix",
    "ranks_within",
    "thinned",
    "within_condition",
]


def within_condition(a: ArrayLike, condition: ArrayLike) -> Floats:
    """Residuals a - E[a | condition], the means taken over the cells given.

    Parameters
    ----------
    a
        (cells, d) or (cells,).
    condition
        Labels (cells,).

    Returns
    -------
    residual
        In the shape of ``a``.

    Examples
    --------
    >>> within_condition([1.0, 3.0, 10.0], ["a", "a", "b"])
    array([-1.,  1.,  0.])
    """
    a = np.asarray(a, float)
    codes = condition_codes(condition, len(a))
    flat = a.reshape(len(a), -1)
    counts = np.bincount(codes)
    sums = np.zeros((len(counts), flat.shape[1]))
    np.add.at(sums, codes, flat)
    return (flat - (sums / counts[:, None])[codes]).reshape(a.shape)


def latent_matrix(name: str, a: ArrayLike) -> Floats:
    """Return a block as a finite array (cells, d).

    Raises
    ------
    DesignError
        If it is none.
    """
    out = np.asarray(a, float)
    out = out[:, None] if out.ndim == 1 else out
    if out.ndim != 2 or not np.isfinite(out).all():
        raise DesignError(
            sentence(
                "latents cannot be scored",
                where=name,
                expected="a finite array (cells, d)",
                got=f"shape {out.shape}, {int((~np.isfinite(out)).sum())} values not finite",
                hint="check the model's latents for NaN",
            )
        )
    return out


def condition_codes(condition: ArrayLike, n: int) -> Rows:
    """Return a code for the condition of each of n cells.

    Raises
    ------
    DesignError
        If there is not one label a cell.
    """
    labels = np.asarray(condition)
    if labels.shape != (n,):
        raise DesignError(
            sentence(
                "conditions do not describe these cells",
                where="condition",
                expected=f"{n} labels",
                got=f"shape {labels.shape}",
                hint="join treatment and covariate into one label a cell",
            )
        )
    return np.unique(labels.astype(str), return_inverse=True)[1]


def ranks_within(codes: Rows, rng: np.random.Generator) -> Floats:
    """Random ranks in (0, 1) within each condition: a threshold then takes an even share."""
    out = np.empty(len(codes))
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        out[rows] = (rng.permutation(len(rows)) + 0.5) / len(rows)
    return out


class Halves(NamedTuple):
    """Row numbers of two sets of cells."""

    first: Rows
    second: Rows


def even_halves(codes: Rows, rng: np.random.Generator) -> Halves:
    """Halve the cells at random, every condition by itself.

    Raises
    ------
    DesignError
        If a condition has fewer than four cells.
    """
    if np.bincount(codes).min() < 4:
        raise DesignError(
            sentence(
                "a condition has too few cells to halve",
                where="condition",
                expected="at least 4 cells in every condition",
                got=str(int(np.bincount(codes).min())),
                hint="drop that condition, or hold out more cells",
            )
        )
    low = ranks_within(codes, rng) < 0.5
    return Halves(np.flatnonzero(low), np.flatnonzero(~low))


def thinned(halves: Halves, codes: Rows, n: int, rng: np.random.Generator) -> Halves:
    """Keep about n cells of each half, evenly over conditions."""
    kept = []
    for rows in halves:
        order = np.argsort(ranks_within(codes[rows], rng), kind="stable")
        kept.append(np.sort(rows[order[:n]]))
    return Halves(*kept)
