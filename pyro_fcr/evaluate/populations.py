"""Predicted cells against real ones: whether the two can be told apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from pyro_fcr.errors import DesignError, sentence

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["TwoSampleTest", "two_sample_test"]


@dataclass(frozen=True, kw_only=True)
class TwoSampleTest:
    """A classifier two-sample test.

    Attributes
    ----------
    auc
        Area under the curve on the other half of the cells; 0.5 where nothing tells them apart.
    accuracy
        Accuracy there, of equally many cells of each kind.
    p_value
        Of that accuracy under a fair coin (binomial, one-sided).
    n_cells
        Cells of the scored half.
    """

    auc: float
    accuracy: float
    p_value: float
    n_cells: int


def two_sample_test(
    a: ArrayLike, b: ArrayLike, *, max_cells: int = 2000, seed: int = 0
) -> TwoSampleTest:
    """Train gradient boosting to tell two clouds of cells apart, and score it on fresh cells.

    Lopez-Paz and Oquab, ICLR 2017. Unlike a distance of means it sees spread and dependence; with
    enough cells it sees any difference, so compare its AUC with that of real halves.

    Parameters
    ----------
    a, b
        (cells, d), say scores of predicted and of real cells on fixed principal components.
    max_cells
        Cells of each kind at most; the larger cloud is always cut to the smaller.
    seed
        Seed of subsample, halves and classifier.

    Raises
    ------
    DesignError
        Fewer than ten cells of a kind.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score

    x, y = np.asarray(a, float), np.asarray(b, float)
    n = min(len(x), len(y), max_cells)
    if n < 10:
        raise DesignError(
            sentence(
                "too few cells for a two-sample test",
                where="a, b",
                expected="at least 10 cells each",
                got=f"{len(x)} and {len(y)}",
                hint="leave this condition out",
            )
        )
    rng = np.random.default_rng(seed)
    clouds = [rng.permutation(cloud)[:n] for cloud in (x, y)]
    half = n // 2
    fit, score = (np.concatenate([c[s] for c in clouds]) for s in (np.s_[:half], np.s_[half:]))
    labels, truth = (np.repeat([0, 1], k) for k in (half, n - half))
    rule = HistGradientBoostingClassifier(
        max_iter=60, max_leaf_nodes=15, min_samples_leaf=5, early_stopping=False, random_state=seed
    ).fit(fit, labels)
    p = rule.predict_proba(score)[:, 1]
    # A tie at one half is no evidence: it is given to a coin.
    called = np.where(p == 0.5, rng.random(len(p)) < 0.5, p > 0.5)
    hits = int((called == truth).sum())
    return TwoSampleTest(
        auc=float(roc_auc_score(truth, p)),
        accuracy=hits / len(truth),
        p_value=float(stats.binomtest(hits, len(truth), alternative="greater").pvalue),
        n_cells=len(truth),
    )
