"""How good a predicted response is: pseudobulk profiles, changes, interactions, ranks.

The unit of every profile is log1p of counts per 10,000 of the summed counts of a condition, or the
plain mean of values that are no counts (``log_normalise=False``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.spatial.distance import cdist

from pyro_fcr.errors import CountsError, DesignError, sentence

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.floating[Any]]

__all__ = [
    "InteractionScore",
    "PrincipalComponents",
    "cell_values",
    "centroid_accuracy",
    "energy_distance",
    "interaction_r2",
    "log_normalised",
    "pearson_change",
    "principal_components",
    "profile",
    "profiles",
    "r2",
]

_TARGET = 1e4


def log_normalised(counts: Any) -> Floats:
    """log1p of counts per 10,000 of each cell.

    Parameters
    ----------
    counts
        (cells, genes), dense or sparse, not negative. A cell without counts stays at 0.

    Returns
    -------
    x_ng
        Dense (cells, genes).
    """
    dense = counts.toarray() if sp.issparse(counts) else np.asarray(counts)
    dense = np.array(dense, dtype=float, ndmin=2)
    if dense.min(initial=0.0) < 0 or not np.isfinite(dense).all():
        raise CountsError(
            sentence(
                "counts cannot be normalised",
                where="counts",
                expected="finite values >= 0",
                got=f"a minimum of {dense.min():.3g}",
                hint="pass raw or expected counts, not log or scaled values",
            )
        )
    total = dense.sum(1, keepdims=True)
    return np.log1p(dense * (_TARGET / np.where(total > 0, total, 1.0)))


def cell_values(counts: Any, *, log_normalise: bool = True) -> Floats:
    """Dense values of cells to compare: log1p of counts per 10,000, or what was measured.

    Parameters
    ----------
    counts
        (cells, genes), dense or sparse.
    log_normalise
        Off for values that are no counts, which stay as they are.
    """
    if log_normalise:
        return log_normalised(counts)
    return np.asarray(counts.toarray() if sp.issparse(counts) else counts, float)


def profile(counts: Any, *, log_normalise: bool = True) -> Floats:
    """Pseudobulk of a set of cells: log1p of counts per 10,000 of their summed counts.

    Parameters
    ----------
    counts
        (cells, genes), dense or sparse; expected counts are welcome.
    log_normalise
        Off for values that are no counts: their mean.

    Returns
    -------
    profile_g
        (genes,).

    Examples
    --------
    >>> profile([[1, 0], [0, 3]]).round(3)
    array([7.824, 8.923])
    """
    counts = counts if sp.issparse(counts) else np.asarray(counts)
    if not log_normalise:
        return np.asarray(counts.mean(0), float).ravel()
    return log_normalised(np.asarray(counts.sum(0)))[0]


def profiles(
    counts: Any,
    treatment: ArrayLike,
    covariate: ArrayLike,
    genes: ArrayLike | None = None,
    *,
    log_normalise: bool = True,
) -> pd.DataFrame:
    """Pseudobulk of every condition present.

    Parameters
    ----------
    counts
        (cells, genes), dense or sparse.
    treatment, covariate
        Labels (cells,).
    genes
        Column names; numbers unless given.
    log_normalise
        Off for values that are no counts: their means.

    Returns
    -------
    profiles
        One row a condition, indexed by (treatment, covariate).
    """
    t, x = np.asarray(treatment).astype(str), np.asarray(covariate).astype(str)
    index = pd.MultiIndex.from_arrays([t, x], names=["treatment", "covariate"])
    codes, levels = index.factorize(sort=True)
    members = sp.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))))
    sums = members @ counts
    sums = sums.toarray() if sp.issparse(sums) else np.asarray(sums)
    columns = pd.RangeIndex(sums.shape[1]) if genes is None else pd.Index(np.asarray(genes))
    values = log_normalised(sums) if log_normalise else sums / np.bincount(codes)[:, None]
    return pd.DataFrame(values, index=levels, columns=columns)


def r2(predicted: ArrayLike, observed: ArrayLike, genes: ArrayLike | None = None) -> float:
    """Coefficient of determination of a predicted profile, about the observed mean over genes.

    Parameters
    ----------
    predicted, observed
        (genes,).
    genes
        Indices or mask of the genes to score, say the top differentially expressed.

    Returns
    -------
    r2
        1 - SS_res / SS_tot; nan where the observed genes do not vary.
    """
    p, o = _paired(predicted, observed)
    if genes is not None:
        p, o = p[np.asarray(genes)], o[np.asarray(genes)]
    total = ((o - o.mean()) ** 2).sum()
    return float(1 - ((o - p) ** 2).sum() / total) if total > 0 else float("nan")


def pearson_change(
    predicted: ArrayLike,
    observed: ArrayLike,
    reference: ArrayLike,
    genes: ArrayLike | None = None,
) -> float:
    """Pearson correlation of predicted and observed change from a reference profile.

    Parameters
    ----------
    predicted, observed, reference
        (genes,); the reference is the own control, or the mean of all treated.
    genes
        Indices or mask of the genes to score.

    Returns
    -------
    r
        nan when one of the changes is constant (predicting no change earns no correlation).
    """
    p, o = _paired(predicted, observed)
    p, o = p - np.asarray(reference, float), o - np.asarray(reference, float)
    if genes is not None:
        p, o = p[np.asarray(genes)], o[np.asarray(genes)]
    p, o = p - p.mean(), o - o.mean()
    norm = np.sqrt((p**2).sum() * (o**2).sum())
    # Rounding leaves a constant change with a norm of about 1e-16.
    return float(p @ o / norm) if norm > 1e-14 else float("nan")


@dataclass(frozen=True)
class PrincipalComponents:
    """Fixed principal components, fitted once on training cells.

    Attributes
    ----------
    center_g
        (genes,).
    components_kg
        (k, genes), orthonormal rows by falling variance.
    log_normalise
        Whether counts are turned into log1p of counts per 10,000 first.
    """

    center_g: Floats
    components_kg: Floats
    log_normalise: bool = True

    def transform(self, counts: Any) -> Floats:
        """Scores (cells, k) of cells."""
        x = cell_values(counts, log_normalise=self.log_normalise)
        return (x - self.center_g) @ self.components_kg.T


def principal_components(
    counts: Any, n_components: int = 50, *, log_normalise: bool = True
) -> PrincipalComponents:
    """Principal components of cells, by the covariance of genes.

    Parameters
    ----------
    counts
        (cells, genes) of training cells.
    n_components
        Components wanted.
    log_normalise
        log1p of counts per 10,000 first.
    """
    # Imported here: scikit-learn changes environment variables when it is imported.
    from sklearn.decomposition import PCA

    x = cell_values(counts, log_normalise=log_normalise)
    n = min(n_components, *x.shape)
    # Randomised: an exact decomposition of 9,000 genes takes a minute, this takes a second.
    fitted = PCA(n, svd_solver="randomized" if n < min(x.shape) else "full", random_state=0).fit(x)
    components = fitted.components_
    # The sign of an eigenvector is arbitrary: the largest loading is made positive.
    largest = np.abs(components).argmax(1)
    components = components * np.sign(components[np.arange(n), largest])[:, None]
    return PrincipalComponents(fitted.mean_, components, log_normalise)


def energy_distance(a: ArrayLike, b: ArrayLike, *, max_cells: int = 5000, seed: int = 0) -> float:
    """Energy distance 2 E|A - B| - E|A - A'| - E|B - B'| of two clouds of points.

    Parameters
    ----------
    a, b
        (cells, d), say scores on fixed principal components. Pairs of a cloud with itself
        exclude the point itself, so that the distance of equal distributions averages 0 (and can
        fall below).
    max_cells
        Points of each cloud drawn at random, where there are more (time is quadratic in them).
    seed
        Seed of that draw.

    Returns
    -------
    distance
        Székely and Rizzo's statistic, unbiased form.
    """
    x, y = np.asarray(a, float), np.asarray(b, float)
    if min(len(x), len(y)) < 2:
        raise DesignError(
            sentence(
                "too few cells for an energy distance",
                where="a, b",
                expected="at least 2 cells each",
                got=f"{len(x)} and {len(y)}",
                hint="leave this condition out",
            )
        )
    rng = np.random.default_rng(seed)
    x, y = (c if len(c) <= max_cells else rng.permutation(c)[:max_cells] for c in (x, y))
    inside = sum(cdist(c, c).sum() / (len(c) * (len(c) - 1)) for c in (x, y))
    return float(2 * cdist(x, y).mean() - inside)


@dataclass(frozen=True, kw_only=True)
class InteractionScore:
    """How much of the held-out interaction a prediction explains.

    Attributes
    ----------
    r2
        Corrected for noise by the two halves; nan when the halves share no interaction.
    r2_raw
        Against the observed profiles as they are.
    reliability
        Split-half reliability of the observed interactions (Spearman-Brown).
    n_conditions
        Held-out conditions scored.
    """

    r2: float
    r2_raw: float
    reliability: float
    n_conditions: int


def interaction_r2(
    predicted: pd.DataFrame,
    halves: tuple[pd.DataFrame, pd.DataFrame],
    reference: pd.DataFrame,
    *,
    control: str,
) -> InteractionScore:
    r"""R^2 of the interaction y(t,x) - y(t0,x) - mean_x' [y(t,x') - y(t0,x')].

    The mean runs over the covariates x' != x in which t was trained, so a prediction that is
    additive in treatment and covariate has an interaction of exactly 0 and scores 0. With the
    interactions :math:`I_1, I_2` of two disjoint halves of the held-out cells and the predicted
    :math:`\hat I`, the noise-corrected score is
    :math:`1 - \sum (I_1 - \hat I)(I_2 - \hat I) / \sum I_1 I_2`.

    Parameters
    ----------
    predicted
        Profiles of the held-out conditions, indexed by (treatment, covariate).
    halves
        Two data frames of profiles of the same conditions, each from one half of the real cells.
    reference
        Training profiles, the controls of every covariate among them. Their noise is shared by
        the halves: use conditions of many cells.
    control
        Label of the control.

    Raises
    ------
    DesignError
        A condition is missing from a half, or its control or treatment from the reference.
    """
    held = predicted.index
    missing = [key for half in halves for key in held if key not in half.index]
    missing += [(control, x) for _, x in held if (control, x) not in reference.index]
    for t, x in held:
        others = _elsewhere(reference, t, x, control)
        missing += [] if others else [(t, "another covariate")]
    if missing or _has_control(held, control):
        raise DesignError(
            sentence(
                "an interaction cannot be formed",
                where="halves, reference",
                expected="every held-out treated condition in both halves, its control and its "
                "treatment in the reference",
                got=f"missing {missing[:3]}" if missing else "a control among the held-out",
                hint="score only conditions whose row and column were trained",
            )
        )
    base = np.stack([_additive_part(reference, t, x, control) for t, x in held])
    hat = predicted.to_numpy(float) - base
    one, two = (half.loc[held].to_numpy(float) - base for half in halves)
    both = (one + two) / 2
    shared = float((one * two).sum())
    raw = 1 - ((both - hat) ** 2).sum() / max(float((both**2).sum()), 1e-300)
    r = float((one * two).sum() / max(np.sqrt((one**2).sum() * (two**2).sum()), 1e-300))
    corrected = 1 - ((one - hat) * (two - hat)).sum() / shared if shared > 0 else float("nan")
    return InteractionScore(
        r2=float(corrected),
        r2_raw=float(raw),
        reliability=2 * r / (1 + r) if r > -1 else float("nan"),
        n_conditions=len(held),
    )


def centroid_accuracy(predicted: pd.DataFrame, observed: pd.DataFrame) -> pd.DataFrame:
    """Whether a predicted profile lies nearer its own treatment than to the others.

    Parameters
    ----------
    predicted
        Profiles indexed by (treatment, covariate).
    observed
        Real profiles of every treatment to tell apart, in the same covariates.

    Returns
    -------
    scores
        Indexed as ``predicted``: ``rank`` of the true treatment by Euclidean distance (1 is best,
        ties count against), ``n`` candidates, and ``accuracy``, the share of the others that
        lie farther (chance 0.5; Viñas Torné et al. 2025, Systema).
    """
    rows = []
    for (t, x), row in predicted.iterrows():
        pool = observed[observed.index.get_level_values(1) == x]
        names = pool.index.get_level_values(0)
        if t not in names or len(pool) < 2:
            raise DesignError(
                sentence(
                    "a prediction has nothing to be ranked among",
                    where="observed",
                    expected=f"({t!r}, {x!r}) and another treatment of that covariate",
                    got=f"treatments {list(names)[:5]}",
                    hint="pass the real profiles of all treatments",
                )
            )
        distance = np.sqrt(((pool.to_numpy(float) - row.to_numpy(float)) ** 2).sum(1))
        own = distance[np.asarray(names == t)].min()
        ahead = int((distance[np.asarray(names != t)] <= own).sum())
        n = len(pool)
        rows.append({"rank": 1 + ahead, "n": n, "accuracy": 1 - ahead / (n - 1)})
    return pd.DataFrame(rows, index=predicted.index)


def _has_control(index: pd.Index, control: str) -> bool:
    """Whether a control stands among the conditions of an index."""
    return bool((index.get_level_values(0) == control).any())


def _elsewhere(reference: pd.DataFrame, t: str, x: str, control: str) -> list[str]:
    """Covariates other than x in which both t and the control were trained."""
    return [b for a, b in reference.index if a == t and b != x and (control, b) in reference.index]


def _additive_part(reference: pd.DataFrame, t: str, x: str, control: str) -> Floats:
    others = _elsewhere(reference, t, x, control)
    treated = reference.loc[[(t, b) for b in others]].to_numpy(float)
    untreated = reference.loc[[(control, b) for b in others]].to_numpy(float)
    own = reference.loc[[(control, x)]].to_numpy(float)[0]
    return own + (treated - untreated).mean(0)


def _paired(predicted: ArrayLike, observed: ArrayLike) -> tuple[Floats, Floats]:
    p, o = np.asarray(predicted, float), np.asarray(observed, float)
    if p.ndim != 1 or p.shape != o.shape:
        raise DesignError(
            sentence(
                "profiles do not match",
                where="predicted, observed",
                expected="two arrays of one value a gene",
                got=f"{p.shape} and {o.shape}",
                hint="pass profile(counts) of the same genes",
            )
        )
    return p, o
