"""Recovery of known latents, measured within condition, where labels cannot help.

Pooled over conditions, a representation that carries only the (treatment, covariate) label
already correlates strongly with the truth. So every score is taken on residuals
``R(a) = a - E[a | condition]``, with the condition means of the very cells being scored; pooled
scores are given too, never without the label-only null beside them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from pyro_fcr.errors import DesignError, sentence
from pyro_fcr.evaluate.conditions import (
    condition_codes,
    even_halves,
    latent_matrix,
    thinned,
    within_condition,
)
from pyro_fcr.evaluate.kernel_ridge import cross_fitted_r2

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

    from pyro_fcr.evaluate.conditions import Halves

    Floats = NDArray[np.floating[Any]]
    Rows = NDArray[np.integer[Any]]

__all__ = ["kernel_r2", "mcc", "recovery"]


def recovery(
    latents: Mapping[str, ArrayLike],
    truth: Mapping[str, ArrayLike],
    condition: ArrayLike,
    *,
    max_cells: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Score estimated latent blocks against the true ones, within condition and pooled.

    * ``mcc``: absolute Pearson correlation, components matched by the Hungarian method on one
      half of the cells and scored on the other; mean over the true components (a component that
      finds no partner scores 0). For blocks of the same name.
    * ``mcc_nl``: the same with :math:`\sqrt{\max(0, R^2)}` of one-dimensional kernel ridge, whose
      cross-fitted values serve the matching and the score alike.
    * ``r2``: kernel ridge from an estimated block to a true one, variance-weighted. The diagonal
      is recovery, what lies off it is leakage.

    Parameters
    ----------
    latents, truth
        Blocks (cells, d) by name, of held-out cells.
    condition
        The condition of each cell, (treatment, covariate) as one label.
    max_cells
        Kernel probes see at most this many cells, and the one-dimensional ones of ``mcc_nl`` at
        most half as many; drawn evenly over conditions.
    seed
        Seed of the subsample and of the halves.

    Returns
    -------
    scores
        One row per (metric, estimated block, true block): ``within``, ``pooled``, and
        ``label_only``, the pooled score of a representation that knows the condition and
        nothing else (within condition it scores 0).

    Raises
    ------
    DesignError
        Lengths disagree, latents are not finite, or a condition has too few cells to halve.
    """
    estimated = {name: latent_matrix(name, a) for name, a in latents.items()}
    true = {name: latent_matrix(name, a) for name, a in truth.items()}
    n = len(next(iter(true.values())))
    codes = condition_codes(condition, n)
    for name, a in [*estimated.items(), *true.items()]:
        if len(a) != n:
            raise DesignError(
                sentence(
                    "latents and truth describe different cells",
                    where=name,
                    expected=f"{n} rows",
                    got=str(len(a)),
                    hint="pass the same held-out cells to both",
                )
            )
    rng = np.random.default_rng(seed)
    halves = even_halves(codes, rng)
    probe = thinned(halves, codes, max_cells // 2, rng)
    small = thinned(probe, codes, max_cells // 4, rng)

    label = {name: _condition_means(a, codes, halves) for name, a in true.items()}
    rows: list[dict[str, Any]] = []
    for name in estimated:
        if name in true:
            for metric, cells, nonlinear in (("mcc", halves, False), ("mcc_nl", small, True)):
                row: dict[str, Any] = {"metric": metric, "latent": name, "truth": name}
                for column, a, within in (
                    ("within", estimated[name], True),
                    ("pooled", estimated[name], False),
                    ("label_only", label[name], False),
                ):
                    row[column] = _mcc(a, true[name], codes, cells, within, nonlinear)
                rows.append(row)
    names = list(true)
    # All true blocks are targets of one factorisation of the source's kernel.
    targets = np.concatenate([true[name] for name in names], axis=1)
    owners = np.concatenate([np.full(true[name].shape[1], i) for i, name in enumerate(names)])
    one_hot = np.eye(codes.max() + 1)[codes]
    label_r2 = _r2(one_hot, targets, owners, codes, probe, within=False)
    for source, a in estimated.items():
        inside = _r2(a, targets, owners, codes, probe, within=True)
        pooled = _r2(a, targets, owners, codes, probe, within=False)
        rows.extend(
            {
                "metric": "r2",
                "latent": source,
                "truth": target,
                "within": inside[i],
                "pooled": pooled[i],
                "label_only": label_r2[i],
            }
            for i, target in enumerate(names)
        )
    return pd.DataFrame(
        rows, columns=["metric", "latent", "truth", "within", "pooled", "label_only"]
    )


def mcc(
    a: ArrayLike,
    b: ArrayLike,
    condition: ArrayLike | None = None,
    *,
    kind: Literal["linear", "nonlinear"] = "linear",
    seed: int = 0,
) -> float:
    """Mean correlation coefficient of two blocks, for the agreement of restarts too.

    Parameters
    ----------
    a, b
        (cells, d) and (cells, e); the mean is over the components of ``b``.
    condition
        Labels to take residuals within; pooled if not given.
    kind
        Absolute Pearson, or the root of a one-dimensional kernel ridge's R^2 (at most 1,000
        cells).
    seed
        Seed of the halves.
    """
    x, y = latent_matrix("a", a), latent_matrix("b", b)
    codes = np.zeros(len(y), int) if condition is None else condition_codes(condition, len(y))
    rng = np.random.default_rng(seed)
    halves = even_halves(codes, rng)
    nonlinear = kind == "nonlinear"
    if nonlinear:
        halves = thinned(halves, codes, 500, rng)
    return _mcc(x, y, codes, halves, condition is not None, nonlinear)


def kernel_r2(
    a: ArrayLike,
    b: ArrayLike,
    condition: ArrayLike | None = None,
    *,
    max_cells: int = 2000,
    seed: int = 0,
) -> float:
    """Variance-weighted R^2 of cross-fitted kernel ridge from block ``a`` to block ``b``.

    Parameters
    ----------
    a, b
        (cells, d) and (cells, e).
    condition
        Labels to take residuals within; pooled if not given.
    max_cells
        Cells the probe sees.
    seed
        Seed of the subsample and of the halves.
    """
    x, y = latent_matrix("a", a), latent_matrix("b", b)
    codes = np.zeros(len(y), int) if condition is None else condition_codes(condition, len(y))
    rng = np.random.default_rng(seed)
    halves = thinned(even_halves(codes, rng), codes, max_cells // 2, rng)
    owners = np.zeros(y.shape[1], int)
    return float(_r2(x, y, owners, codes, halves, within=condition is not None)[0])


def _condition_means(a: Floats, codes: Rows, halves: Halves) -> Floats:
    """Condition means of the other half, so that the label-only null fits nothing it is told."""
    out = np.empty_like(a)
    for fit, score in (halves, halves[::-1]):
        counts = np.bincount(codes[fit], minlength=codes.max() + 1)
        sums = np.zeros((len(counts), a.shape[1]))
        np.add.at(sums, codes[fit], a[fit])
        out[score] = (sums / np.maximum(counts, 1)[:, None])[codes[score]]
    return out


def _pair(a: Floats, codes: Rows, halves: Halves, within: bool) -> tuple[Floats, Floats]:
    """Split a block into its halves, each by itself turned into residuals if asked."""
    first, second = (
        within_condition(a[rows], codes[rows]) if within else a[rows] for rows in halves
    )
    return first, second


def _mcc(
    a: Floats, b: Floats, codes: Rows, halves: Halves, within: bool, nonlinear: bool
) -> float:
    xs, ys = _pair(a, codes, halves, within), _pair(b, codes, halves, within)
    scores = [_nonlinear(xs, ys) if nonlinear else _linear(xs, ys, which) for which in (0, 1)]
    if nonlinear:
        # Cross-fitted already: no score of a cell comes from a probe that saw it.
        scores = scores[:1]
    total = []
    for fit, score in scores:
        i, j = linear_sum_assignment(-fit)
        total.append(score[i, j].sum() / b.shape[1])
    return float(np.mean(total))


def _correlation(x: Floats, y: Floats) -> Floats:
    x, y = x - x.mean(0), y - y.mean(0)
    sd_x, sd_y = x.std(0), y.std(0)
    # A component without variance correlates with nothing, whatever rounding left of it.
    live = (sd_x > 1e-8)[:, None] & (sd_y > 1e-8)[None]
    norm = np.where(live, len(x) * sd_x[:, None] * sd_y[None], 1.0)
    return np.where(live, np.abs(x.T @ y) / norm, 0.0)


def _linear(
    xs: tuple[Floats, Floats], ys: tuple[Floats, Floats], which: int
) -> tuple[Floats, Floats]:
    return _correlation(xs[which], ys[which]), _correlation(xs[1 - which], ys[1 - which])


def _nonlinear(xs: tuple[Floats, Floats], ys: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    d, e = xs[0].shape[1], ys[0].shape[1]
    out = np.zeros((d, e))
    for i in range(d):
        columns = tuple(x[:, i : i + 1] for x in xs)
        out[i] = np.sqrt(np.maximum(cross_fitted_r2(columns, ys, np.arange(e)), 0.0))
    return out, out


def _r2(
    a: Floats, b: Floats, owners: Rows, codes: Rows, halves: Halves, *, within: bool
) -> Floats:
    return cross_fitted_r2(
        _pair(a, codes, halves, within), _pair(b, codes, halves, within), owners
    )
