"""Recovery of known latents, measured within condition, where labels cannot help.

Pooled over conditions, a representation that carries only the (treatment, covariate) label
already correlates strongly with the truth. So every score is taken on residuals
``R(a) = a - E[a | condition]``, with the condition means of the very cells being scored; pooled
scores are given too, never without the label-only null beside them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy.linalg import eigh
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist, pdist

from pyro_fcr.errors import DesignError, sentence
from pyro_fcr.evaluate.prediction import cell_values, principal_components

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.floating[Any]]
    Rows = NDArray[np.integer[Any]]

__all__ = ["ceiling", "kernel_r2", "mcc", "null_latents", "recovery", "within_condition"]

GAMMAS = (0.25, 1.0, 4.0)
RIDGES = (0.01, 0.1, 1.0)


class _Halves(NamedTuple):
    first: Rows
    second: Rows


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
    codes = _codes(condition, len(a))
    flat = a.reshape(len(a), -1)
    counts = np.bincount(codes)
    sums = np.zeros((len(counts), flat.shape[1]))
    np.add.at(sums, codes, flat)
    return (flat - (sums / counts[:, None])[codes]).reshape(a.shape)


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
    estimated = {name: _matrix(name, a) for name, a in latents.items()}
    true = {name: _matrix(name, a) for name, a in truth.items()}
    n = len(next(iter(true.values())))
    codes = _codes(condition, n)
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
    halves = _halve(codes, rng)
    probe = _thin(halves, codes, max_cells // 2, rng)
    small = _thin(probe, codes, max_cells // 4, rng)

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
    x, y = _matrix("a", a), _matrix("b", b)
    codes = np.zeros(len(y), int) if condition is None else _codes(condition, len(y))
    rng = np.random.default_rng(seed)
    halves = _halve(codes, rng)
    nonlinear = kind == "nonlinear"
    if nonlinear:
        halves = _thin(halves, codes, 500, rng)
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
    x, y = _matrix("a", a), _matrix("b", b)
    codes = np.zeros(len(y), int) if condition is None else _codes(condition, len(y))
    rng = np.random.default_rng(seed)
    halves = _thin(_halve(codes, rng), codes, max_cells // 2, rng)
    owners = np.zeros(y.shape[1], int)
    return float(_r2(x, y, owners, codes, halves, within=condition is not None)[0])


def null_latents(
    counts: Any,
    truth: Mapping[str, ArrayLike],
    condition: ArrayLike,
    *,
    log_normalise: bool = True,
    seed: int = 0,
) -> dict[str, dict[str, Floats]]:
    """Latents that deserve no credit, to be scored beside a model's.

    Parameters
    ----------
    counts
        (cells, genes), dense or sparse.
    truth
        True blocks (cells, d) by name.
    condition
        Labels (cells,).
    log_normalise
        log1p of counts per 10,000 first; off for Gaussian observations.
    seed
        Seed of the noise.

    Returns
    -------
    nulls
        ``noise`` (independent N(0, 1)), ``label_only`` (the true condition means) and ``pca``
        (every block given as many components as all true blocks together).
    """
    true = {name: _matrix(name, a) for name, a in truth.items()}
    codes = _codes(condition, len(next(iter(true.values()))))
    rng = np.random.default_rng(seed)
    values = cell_values(counts, log_normalise=log_normalise)
    total = min(sum(a.shape[1] for a in true.values()), min(values.shape) - 1)
    components = principal_components(values, total, log_normalise=False).transform(values)
    return {
        "noise": {name: rng.standard_normal(a.shape) for name, a in true.items()},
        "label_only": {name: a - within_condition(a, codes) for name, a in true.items()},
        "pca": dict.fromkeys(true, components),
    }


def ceiling(
    counts: Any,
    truth: Mapping[str, ArrayLike],
    condition: ArrayLike,
    *,
    test: ArrayLike | None = None,
    log_normalise: bool = True,
    hidden: int = 128,
    max_epochs: int = 200,
    patience: int = 15,
    seed: int = 0,
    max_cells: int = 2000,
) -> pd.DataFrame:
    """Score a network trained on the true latents: what the counts can tell at all.

    Parameters
    ----------
    counts
        (cells, genes), dense or sparse.
    truth, condition
        As in `recovery`.
    test
        Boolean mask of the cells to score, which the network never sees; 30 % within condition
        unless given. A tenth of the others decides when to stop.
    log_normalise
        log1p of counts per 10,000 first; off for Gaussian observations.
    hidden, max_epochs, patience
        Width of the two hidden layers, and when to stop.
    seed
        Seed of everything drawn here.
    max_cells
        As in `recovery`.

    Returns
    -------
    scores
        As `recovery` gives them for the network's predictions on the test cells.
    """
    import torch

    true = {name: _matrix(name, a) for name, a in truth.items()}
    y_nd = np.concatenate(list(true.values()), axis=1)
    codes = _codes(condition, len(y_nd))
    rng = np.random.default_rng(seed)
    order = _ranks_within(codes, rng)
    test_n = order < 0.3 if test is None else np.asarray(test, bool)
    # Condition-stratified ranks again: a test mask may have taken some conditions apart.
    valid_n = ~test_n & (_ranks_within(codes, rng) < 0.1)
    train_n = ~test_n & ~valid_n
    if min(test_n.sum(), valid_n.sum(), train_n.sum()) < 2:
        raise DesignError(
            sentence(
                "too few cells for a supervised ceiling",
                where="test",
                expected="train, validation and test cells",
                got=f"{train_n.sum()}, {valid_n.sum()} and {test_n.sum()}",
                hint="pass more cells, or a smaller test mask",
            )
        )
    x_ng = cell_values(counts, log_normalise=log_normalise)
    x_center, x_spread = x_ng[train_n].mean(0), x_ng[train_n].std(0)
    y_center, y_spread = y_nd[train_n].mean(0), y_nd[train_n].std(0)
    x_ng = (x_ng - x_center) / np.where(x_spread > 1e-8, x_spread, 1.0)
    y_scaled = (y_nd - y_center) / np.where(y_spread > 1e-8, y_spread, 1.0)
    x = torch.as_tensor(x_ng, dtype=torch.float32)
    y = torch.as_tensor(y_scaled, dtype=torch.float32)

    # The caller's random state is put back: a metric must not change what is trained after it.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = torch.nn.Sequential(
            torch.nn.Linear(x.shape[1], hidden),
            torch.nn.GELU(),
            torch.nn.Dropout(0.1),
            torch.nn.Linear(hidden, hidden),
            torch.nn.GELU(),
            torch.nn.Linear(hidden, y.shape[1]),
        )
        optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
        rows = torch.as_tensor(np.flatnonzero(train_n))
        valid = torch.as_tensor(np.flatnonzero(valid_n))
        best, waited = float("inf"), 0
        kept = {key: value.clone() for key, value in net.state_dict().items()}
        for _ in range(max_epochs):
            net.train()
            for batch in rows[torch.randperm(len(rows))].split(256):
                optimiser.zero_grad()
                torch.nn.functional.mse_loss(net(x[batch]), y[batch]).backward()
                optimiser.step()
            net.eval()
            with torch.no_grad():
                loss = torch.nn.functional.mse_loss(net(x[valid]), y[valid]).item()
            waited += 1
            if loss < best:
                best, waited = loss, 0
                kept = {key: value.clone() for key, value in net.state_dict().items()}
            if waited >= patience:
                break
        net.load_state_dict(kept)
        net.eval()
        with torch.no_grad():
            predicted = net(x[torch.as_tensor(np.flatnonzero(test_n))]).numpy()
    predicted = predicted * y_spread + y_center
    edges = np.cumsum([a.shape[1] for a in true.values()])[:-1]
    blocks = dict(zip(true, np.split(predicted, edges, axis=1), strict=True))
    return recovery(
        blocks,
        {name: a[test_n] for name, a in true.items()},
        codes[test_n],
        max_cells=max_cells,
        seed=seed,
    )


def _matrix(name: str, a: ArrayLike) -> Floats:
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


def _codes(condition: ArrayLike, n: int) -> Rows:
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


def _ranks_within(codes: Rows, rng: np.random.Generator) -> Floats:
    """Random ranks in (0, 1) within each condition: a threshold then takes an even share."""
    out = np.empty(len(codes))
    for code in np.unique(codes):
        rows = np.flatnonzero(codes == code)
        out[rows] = (rng.permutation(len(rows)) + 0.5) / len(rows)
    return out


def _halve(codes: Rows, rng: np.random.Generator) -> _Halves:
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
    low = _ranks_within(codes, rng) < 0.5
    return _Halves(np.flatnonzero(low), np.flatnonzero(~low))


def _thin(halves: _Halves, codes: Rows, n: int, rng: np.random.Generator) -> _Halves:
    """Keep about n cells of each half, evenly over conditions."""
    thinned = []
    for rows in halves:
        order = np.argsort(_ranks_within(codes[rows], rng), kind="stable")
        thinned.append(np.sort(rows[order[:n]]))
    return _Halves(*thinned)


def _condition_means(a: Floats, codes: Rows, halves: _Halves) -> Floats:
    """Condition means of the other half, so that the label-only null fits nothing it is told."""
    out = np.empty_like(a)
    for fit, score in (halves, halves[::-1]):
        counts = np.bincount(codes[fit], minlength=codes.max() + 1)
        sums = np.zeros((len(counts), a.shape[1]))
        np.add.at(sums, codes[fit], a[fit])
        out[score] = (sums / np.maximum(counts, 1)[:, None])[codes[score]]
    return out


def _pair(a: Floats, codes: Rows, halves: _Halves, within: bool) -> tuple[Floats, Floats]:
    """Split a block into its halves, each by itself turned into residuals if asked."""
    first, second = (
        within_condition(a[rows], codes[rows]) if within else a[rows] for rows in halves
    )
    return first, second


def _mcc(
    a: Floats, b: Floats, codes: Rows, halves: _Halves, within: bool, nonlinear: bool
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
        out[i] = np.sqrt(np.maximum(_cross_fitted(columns, ys, np.arange(e)), 0.0))
    return out, out


def _r2(
    a: Floats, b: Floats, owners: Rows, codes: Rows, halves: _Halves, *, within: bool
) -> Floats:
    return _cross_fitted(_pair(a, codes, halves, within), _pair(b, codes, halves, within), owners)


def _cross_fitted(xs: tuple[Floats, ...], ys: tuple[Floats, ...], owners: Rows) -> Floats:
    """R^2 per group of target columns: fitted on one half, scored on the other, both ways."""
    residual = np.zeros(owners.max() + 1)
    total = np.zeros(owners.max() + 1)
    for fit, score in ((0, 1), (1, 0)):
        center = ys[fit].mean(0)
        predicted = _kernel_ridge(xs[fit], ys[fit] - center, xs[score], owners) + center
        np.add.at(residual, owners, ((ys[score] - predicted) ** 2).sum(0))
        np.add.at(total, owners, ((ys[score] - ys[score].mean(0)) ** 2).sum(0))
    return np.where(total > 1e-12, 1 - residual / np.maximum(total, 1e-12), 0.0)


def _kernel_ridge(x: Floats, y: Floats, x_new: Floats, owners: Rows) -> Floats:
    """RBF kernel ridge; width and ridge chosen per group of targets by leave-one-out error.

    One eigendecomposition per width serves every ridge, every target and the leave-one-out
    residuals (y - Hy) / (1 - diag H).
    """
    spread = x.std(0)
    live = spread > 1e-8
    if not live.any():
        return np.zeros((len(x_new), y.shape[1]))
    center = x[:, live].mean(0)
    x, x_new = ((a[:, live] - center) / spread[live] for a in (x, x_new))
    median = float(np.median(pdist(x)))
    distance, distance_new = cdist(x, x, "sqeuclidean"), cdist(x_new, x, "sqeuclidean")
    groups = owners.max() + 1
    best = np.full(groups, np.inf)
    out = np.zeros((len(x_new), y.shape[1]))
    for gamma in GAMMAS:
        # One-hot codes can have a median distance of 0 when one condition dominates.
        width = gamma / max(median, 1e-6) ** 2
        values, vectors = eigh(np.exp(-width * distance), driver="evd", check_finite=False)
        projected = vectors.T @ y
        kernel_new = np.exp(-width * distance_new) @ vectors
        for ridge in RIDGES:
            shrink = 1 / (np.maximum(values, 0.0) + ridge)
            # y - Hy = ridge * alpha and 1 - diag H = ridge * diag (K + ridge)^-1.
            alpha = vectors @ (shrink[:, None] * projected)
            loo = alpha / ((vectors**2) @ shrink)[:, None]
            error = np.bincount(owners, (loo**2).sum(0), minlength=groups)
            better = error < best
            best = np.where(better, error, best)
            columns = better[owners]
            out[:, columns] = kernel_new @ (shrink[:, None] * projected[:, columns])
    return out
