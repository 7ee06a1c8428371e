"""Fresh probes of what a latent block gives away, stratum by stratum.

Treatment and covariate are discrete, so conditional independence is tested exactly: within each
stratum, with labels permuted within strata. A p-value above 0.05 alone shows nothing; report the
excess of a fresh classifier with its interval beside it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist, pdist
from scipy.stats import rankdata

from pyro_fcr.errors import DesignError, sentence

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.floating[Any]]
    Codes = NDArray[np.integer[Any]]

__all__ = [
    "HSICTest",
    "Separability",
    "auc_within",
    "balanced_accuracy_within",
    "hsic_test",
    "separability",
]

Metric = Literal["auc", "balanced_accuracy"]


@dataclass(frozen=True, kw_only=True)
class Separability:
    """How well fresh classifiers read labels from latents, within strata.

    Attributes
    ----------
    score
        Mean over strata of the stronger classifier.
    chance
        What guessing scores, mean over strata.
    excess
        ``score - chance``.
    interval
        95 % interval of ``excess`` (bootstrap over the cells of the cross-validated predictions).
    classifier
        The stronger one, "logistic" or "boosting".
    metric
        "auc" or "balanced_accuracy".
    per_stratum
        One row per (stratum, classifier): ``score``, ``chance``, ``n_cells``, ``n_labels``.
    """

    score: float
    chance: float
    excess: float
    interval: tuple[float, float]
    classifier: str
    metric: str
    per_stratum: pd.DataFrame = field(repr=False)

    def __str__(self) -> str:
        """Score, chance, excess and interval on one line."""
        return (
            f"{self.metric} {self.score:.3f}, chance {self.chance:.3f}, excess {self.excess:+.3f} "
            f"({self.interval[0]:+.3f} to {self.interval[1]:+.3f}), {self.classifier}"
        )


@dataclass(frozen=True, kw_only=True)
class HSICTest:
    """A conditional independence test by HSIC within strata.

    Attributes
    ----------
    statistic
        HSIC, averaged over cells of all strata.
    normalised
        HSIC / sqrt(HSIC(z, z) HSIC(labels, labels)), between 0 and 1, less its mean under
        permutation.
    p_value
        (1 + permutations at least as large) / (1 + permutations).
    n_permutations, n_cells
        What it rests on.
    """

    statistic: float
    normalised: float
    p_value: float
    n_permutations: int
    n_cells: int


def separability(
    z: ArrayLike,
    labels: ArrayLike,
    strata: ArrayLike | None = None,
    *,
    metric: Metric = "balanced_accuracy",
    n_splits: int = 5,
    max_cells: int = 2000,
    seed: int = 0,
) -> Separability:
    """Cross-validate fresh classifiers of labels from latents within every stratum.

    Logistic regression on standardised latents, and histogram gradient boosting; the stronger by
    mean score is reported, so neither linear nor non-linear leakage can hide. The choice of the
    stronger lifts the score of pure noise by about one standard error.

    Parameters
    ----------
    z
        Latents (cells, d).
    labels
        What must not be readable, say the treatment (cells,).
    strata
        What is held fixed, say the covariate; one stratum unless given. Labels with fewer than
        ``n_splits`` cells in a stratum are left out of it, and strata of fewer than two labels
        are left out altogether.
    metric
        "balanced_accuracy" (chance 1 / labels) or "auc" (one against the rest, chance 1/2).
    n_splits
        Folds.
    max_cells
        Cells per stratum at most.
    seed
        Seed of folds, subsample and bootstrap.

    Raises
    ------
    DesignError
        No stratum has two labels of ``n_splits`` cells.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y, s = _inputs(z, labels, strata)
    rng = np.random.default_rng(seed)
    classifiers: dict[str, Callable[[], Any]] = {
        "logistic": lambda: make_pipeline(
            StandardScaler(),
            LogisticRegression(max_iter=1000, class_weight="balanced"),
        ),
        "boosting": lambda: HistGradientBoostingClassifier(
            max_iter=60,
            learning_rate=0.1,
            max_leaf_nodes=15,
            early_stopping=False,
            class_weight="balanced",
            random_state=seed,
        ),
    }
    rows: list[dict[str, Any]] = []
    predictions: dict[str, list[tuple[Codes, Floats]]] = {name: [] for name in classifiers}
    for stratum in np.unique(s):
        inside = np.flatnonzero(s == stratum)
        inside = np.sort(rng.permutation(inside)[:max_cells])
        names, counts = np.unique(y[inside], return_counts=True)
        inside = inside[np.isin(y[inside], names[counts >= n_splits])]
        names, codes = np.unique(y[inside], return_inverse=True)
        if len(names) < 2:
            continue
        folds = StratifiedKFold(n_splits, shuffle=True, random_state=seed)
        for name, make in classifiers.items():
            with warnings.catch_warnings():
                # A separable stratum does not converge, and is separable all the same.
                warnings.filterwarnings("ignore", message=".*lbfgs failed to converge.*")
                p = cross_val_predict(make(), x[inside], codes, cv=folds, method="predict_proba")
            predictions[name].append((codes, p))
            rows.append(
                {
                    "stratum": stratum,
                    "classifier": name,
                    "score": _score(codes, p, metric),
                    "chance": 0.5 if metric == "auc" else 1 / len(names),
                    "n_cells": len(inside),
                    "n_labels": len(names),
                }
            )
    if not rows:
        raise DesignError(
            sentence(
                "nothing to tell apart",
                where="labels, strata",
                expected=f"a stratum with two labels of at least {n_splits} cells",
                got="none",
                hint="use fewer splits, or coarser strata",
            )
        )
    table = pd.DataFrame(rows)
    means = table.groupby("classifier")["score"].mean()
    best = str(means.idxmax())
    chance = float(table.loc[table["classifier"] == best, "chance"].mean())
    boot = np.mean([_bootstrap(c, p, metric, rng) for c, p in predictions[best]], axis=0)
    low, high = np.quantile(boot, [0.025, 0.975]) - chance
    score = float(means[best])
    return Separability(
        score=score,
        chance=chance,
        excess=score - chance,
        interval=(float(low), float(high)),
        classifier=best,
        metric=metric,
        per_stratum=table,
    )


def auc_within(
    z: ArrayLike, labels: ArrayLike, strata: ArrayLike | None = None, **options: Any
) -> float:
    """Excess AUC over 1/2 of the stronger fresh classifier, mean over strata.

    Parameters
    ----------
    z, labels, strata, **options
        As in `separability`.
    """
    return separability(z, labels, strata, metric="auc", **options).excess


def balanced_accuracy_within(
    z: ArrayLike, labels: ArrayLike, strata: ArrayLike | None = None, **options: Any
) -> float:
    """Excess balanced accuracy over chance of the stronger fresh classifier, mean over strata.

    Parameters
    ----------
    z, labels, strata, **options
        As in `separability`.
    """
    return separability(z, labels, strata, metric="balanced_accuracy", **options).excess


def hsic_test(
    z: ArrayLike,
    labels: ArrayLike,
    strata: ArrayLike | None = None,
    *,
    n_permutations: int = 999,
    max_cells: int = 500,
    seed: int = 0,
) -> HSICTest:
    r"""Test z independent of labels within strata, by permuting labels within strata.

    :math:`\mathrm{HSIC} = \mathrm{tr}(K H L H) / n^2` with a Gaussian kernel on z, standardised
    within the stratum (squared width the median squared distance there), and the identity kernel
    on labels, averaged over strata by their numbers of cells (Gretton et al. 2008). Permuting
    within strata makes the test exact at any sample size.

    Parameters
    ----------
    z
        Latents (cells, d), not computed from the labels being tested.
    labels
        (cells,), say the treatment.
    strata
        (cells,), say the covariate; one stratum unless given.
    n_permutations
        Permutations; p is at least 1 / (1 + this).
    max_cells
        Cells per stratum at most (the kernel is quadratic in them).
    seed
        Seed of the subsample and the permutations.

    Raises
    ------
    DesignError
        No stratum holds two labels.
    """
    x, y, s = _inputs(z, labels, strata)
    rng = np.random.default_rng(seed)
    total = np.zeros(n_permutations + 1)
    self_z = self_y = 0.0
    cells = 0
    for stratum in np.unique(s):
        inside = rng.permutation(np.flatnonzero(s == stratum))[:max_cells]
        names, codes = np.unique(y[inside], return_inverse=True)
        n = len(inside)
        if len(names) < 2 or n < 4:
            continue
        k = _centred_kernel(x[inside])
        hot = np.eye(len(names))[codes]
        values = np.empty(n_permutations + 1)
        orders = [np.arange(n), *(rng.permutation(n) for _ in range(n_permutations))]
        for start in range(0, len(orders), 100):
            block = np.stack([hot[order] for order in orders[start : start + 100]], axis=1)
            image = (k @ block.reshape(n, -1)).reshape(block.shape)
            values[start : start + 100] = (block * image).sum((0, 2))
        share = np.bincount(codes) / n
        total += values / n
        self_z += float((k**2).sum()) / n
        # tr(LHLH) of an identity kernel, from the label frequencies alone.
        self_y += n * float((share**2).sum() - 2 * (share**3).sum() + (share**2).sum() ** 2)
        cells += n
    if not cells:
        raise DesignError(
            sentence(
                "nothing to test",
                where="labels, strata",
                expected="a stratum with two labels and four cells",
                got="none",
                hint="use coarser strata",
            )
        )
    statistic, null = total[0], total[1:]
    scale = max(np.sqrt(self_z * self_y), 1e-300)
    # Equal up to rounding counts as at least as large: with few cells permutations repeat.
    at_least = int((null >= statistic - 1e-12 * max(abs(statistic), 1.0)).sum())
    centre = float(null.mean()) if n_permutations else 0.0
    return HSICTest(
        statistic=float(statistic / cells),
        normalised=float((statistic - centre) / scale),
        p_value=(1 + at_least) / (1 + n_permutations),
        n_permutations=n_permutations,
        n_cells=cells,
    )


def _inputs(
    z: ArrayLike, labels: ArrayLike, strata: ArrayLike | None
) -> tuple[Floats, NDArray[Any], NDArray[Any]]:
    x = np.asarray(z, float)
    x = x[:, None] if x.ndim == 1 else x
    y = np.asarray(labels).astype(str)
    s = np.full(len(x), "all") if strata is None else np.asarray(strata).astype(str)
    if y.shape != (len(x),) or s.shape != (len(x),) or not np.isfinite(x).all():
        raise DesignError(
            sentence(
                "latents cannot be probed",
                where="z, labels, strata",
                expected="finite latents with one label and one stratum a cell",
                got=f"shapes {x.shape}, {y.shape}, {s.shape}",
                hint="pass arrays of the same cells, and check the latents for NaN",
            )
        )
    return x, y, s


def _centred_kernel(x: Floats) -> Floats:
    spread = x.std(0)
    x = x[:, spread > 1e-8] / spread[spread > 1e-8]
    if not x.shape[1]:
        return np.zeros((len(x), len(x)))
    width = float(np.median(pdist(x, "sqeuclidean")))
    k = np.exp(-cdist(x, x, "sqeuclidean") / max(width, 1e-12))
    return k - k.mean(0) - k.mean(1)[:, None] + k.mean()


def _score(codes: Codes, p: Floats, metric: Metric) -> float:
    if metric == "balanced_accuracy":
        hit = p.argmax(1) == codes
        return float((np.bincount(codes, hit) / np.bincount(codes)).mean())
    scores = []
    for label in [1] if p.shape[1] == 2 else range(p.shape[1]):
        positive = codes == label
        n_positive, n_negative = positive.sum(), (~positive).sum()
        # Mann-Whitney's U over the number of pairs is the area under the curve.
        u = rankdata(p[:, label])[positive].sum() - n_positive * (n_positive + 1) / 2
        scores.append(u / (n_positive * n_negative))
    return float(np.mean(scores))


def _bootstrap(
    codes: Codes, p: Floats, metric: Metric, rng: np.random.Generator, n_boot: int = 200
) -> Floats:
    """Scores of resampled cells, resampled within label so that no label vanishes."""
    members = [np.flatnonzero(codes == c) for c in np.unique(codes)]
    out = np.empty(n_boot)
    for i in range(n_boot):
        rows = np.concatenate([rng.choice(m, len(m)) for m in members])
        out[i] = _score(codes[rows], p[rows], metric)
    return out
