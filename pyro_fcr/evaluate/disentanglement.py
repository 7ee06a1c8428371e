"""The disentanglement scores of the literature: DCI, MIG and SAP.

They are pooled scores: a representation that holds only the condition's labels does well on them
wherever factors move with the labels. Give residuals of `within_condition` for a score that labels
cannot help, and read `recovery` first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_fcr.errors import DesignError, sentence

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.floating[Any]]

__all__ = ["DCI", "dci", "mig", "sap"]


@dataclass(frozen=True, kw_only=True)
class DCI:
    """Disentanglement, completeness and informativeness, each from 0 to 1.

    Attributes
    ----------
    disentanglement
        1 where every latent component tells of one factor only; weighted by what it tells.
    completeness
        1 where every factor is told by one component only.
    informativeness
        Mean held-out R^2 of the factors (balanced accuracy for discrete ones), at least 0.
    importance
        (d, k): what each component contributes to each factor, columns summing to 1.
    """

    disentanglement: float
    completeness: float
    informativeness: float
    importance: Floats = field(repr=False)

    @classmethod
    def of(cls, importance: ArrayLike, informativeness: float = float("nan")) -> DCI:
        """Score a matrix of importances (d, k), whatever model they come from."""
        weight = np.abs(np.asarray(importance, float))
        total = max(float(weight.sum()), 1e-300)
        rows, columns = weight.sum(1) / total, weight.sum(0) / total
        return cls(
            disentanglement=float(rows @ _purity(weight)),
            completeness=float(columns @ _purity(weight.T)),
            informativeness=informativeness,
            importance=weight / np.maximum(weight.sum(0), 1e-300),
        )


def dci(z: ArrayLike, factors: ArrayLike, *, max_cells: int = 5000, seed: int = 0) -> DCI:
    """Score latents by the importances of random forests that predict each factor.

    Eastwood and Williams, ICLR 2018. Forests are fitted on half of the cells, informativeness is
    scored on the other.

    Parameters
    ----------
    z
        Latents (cells, d).
    factors
        True factors (cells, k); columns of integers with at most 20 values count as discrete.
    max_cells
        Cells drawn at random, where there are more.
    seed
        Seed of the subsample, the halves and the forests.

    Raises
    ------
    DesignError
        Latents and factors do not describe the same cells.
    """
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
    from sklearn.metrics import balanced_accuracy_score, r2_score

    x, v = _inputs(z, factors, max_cells, seed)
    half = len(x) // 2
    importance, told = np.zeros((x.shape[1], v.shape[1])), []
    for j in range(v.shape[1]):
        discrete = _is_discrete(v[:, j])
        make = RandomForestClassifier if discrete else RandomForestRegressor
        forest = make(100, min_samples_leaf=5, max_features=1.0, random_state=seed)
        forest.fit(x[:half], v[:half, j])
        predicted = forest.predict(x[half:])
        if discrete:
            told.append(balanced_accuracy_score(v[half:, j], predicted))
        else:
            told.append(max(0.0, r2_score(v[half:, j], predicted)))
        # A factor that cannot be told says nothing of the components.
        importance[:, j] = forest.feature_importances_
    return DCI.of(importance, float(np.mean(told)))


def mig(
    z: ArrayLike, factors: ArrayLike, *, bins: int = 20, max_cells: int = 20_000, seed: int = 0
) -> float:
    r"""Mutual information gap: :math:`\frac1k \sum_j (I_{(1)j} - I_{(2)j}) / H(v_j)`.

    Chen et al., NeurIPS 2018. :math:`I_{(1)j}, I_{(2)j}` are the two largest mutual informations
    of factor j with a latent component, by histograms of equal width.

    Parameters
    ----------
    z, factors, seed
        As in `dci`.
    bins
        Bins of every continuous column.
    max_cells
        Cells drawn at random, where there are more.

    Returns
    -------
    mig
        1 where each factor is in exactly one component; about 0 where two share it.
    """
    from sklearn.metrics import mutual_info_score

    x, v = _inputs(z, factors, max_cells, seed)
    x, v = (np.stack([_binned(c, bins) for c in a.T], axis=1) for a in (x, v))
    gaps = []
    for j in range(v.shape[1]):
        entropy = mutual_info_score(v[:, j], v[:, j])
        told = sorted(
            (mutual_info_score(x[:, i], v[:, j]) for i in range(x.shape[1])), reverse=True
        )
        if entropy > 0:
            gaps.append((told[0] - (told[1] if len(told) > 1 else 0.0)) / entropy)
    return float(np.mean(gaps)) if gaps else float("nan")


def sap(z: ArrayLike, factors: ArrayLike, *, max_cells: int = 5000, seed: int = 0) -> float:
    """Separated attribute predictability: the gap between the two best single components.

    Kumar et al., ICLR 2018. A component's score is its squared correlation with a continuous
    factor, and the balanced accuracy of the nearest class mean, on the other half of the cells,
    for a discrete one.

    Parameters
    ----------
    z, factors, max_cells, seed
        As in `dci`.

    Returns
    -------
    sap
        Mean gap over factors, from 0 to 1.
    """
    from sklearn.metrics import balanced_accuracy_score

    x, v = _inputs(z, factors, max_cells, seed)
    half = len(x) // 2
    gaps = []
    for target in v.T:
        scores = []
        for column in x.T:
            if column.std() < 1e-12 or target.std() < 1e-12:
                scores.append(0.0)
            elif _is_discrete(target):
                names = np.unique(target[:half])
                means = np.array([column[:half][target[:half] == name].mean() for name in names])
                predicted = names[np.abs(column[half:, None] - means).argmin(1)]
                scores.append(balanced_accuracy_score(target[half:], predicted))
            else:
                scores.append(np.corrcoef(column, target)[0, 1] ** 2)
        ordered = sorted(scores, reverse=True)
        gaps.append(ordered[0] - (ordered[1] if len(ordered) > 1 else 0.0))
    return float(np.mean(gaps))


def _inputs(z: ArrayLike, factors: ArrayLike, max_cells: int, seed: int) -> tuple[Floats, Floats]:
    x, v = np.asarray(z, float), np.asarray(factors, float)
    x, v = (a[:, None] if a.ndim == 1 else a for a in (x, v))
    if len(x) != len(v) or len(x) < 10 or not (np.isfinite(x).all() and np.isfinite(v).all()):
        raise DesignError(
            sentence(
                "disentanglement cannot be scored",
                where="z, factors",
                expected="finite latents and factors of the same ten cells or more",
                got=f"shapes {x.shape} and {v.shape}",
                hint="pass arrays of the same cells, and check them for NaN",
            )
        )
    # Shuffled, so that halves by position are halves at random.
    rows = np.random.default_rng(seed).permutation(len(x))[:max_cells]
    return x[rows], v[rows]


def _is_discrete(column: Floats) -> bool:
    return bool((column == np.round(column)).all() and len(np.unique(column)) <= 20)


def _binned(column: Floats, bins: int) -> NDArray[np.integer[Any]]:
    if _is_discrete(column):
        return np.unique(column, return_inverse=True)[1]
    return np.digitize(column, np.histogram_bin_edges(column, bins)[1:-1])


def _purity(weight: Floats) -> Floats:
    """1 - entropy of each row in units of its largest, log of the number of columns."""
    if weight.shape[1] == 1:
        return np.ones(len(weight))
    p = weight / np.maximum(weight.sum(1, keepdims=True), 1e-300)
    entropy = -(p * np.log(np.where(p > 0, p, 1.0))).sum(1)
    return 1 - entropy / np.log(weight.shape[1])
