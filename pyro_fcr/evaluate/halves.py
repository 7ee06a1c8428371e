"""What sampling noise allows: split halves, and the best guess from a noisy duplicate.

Unweighted errors are badly calibrated on their own: a metric is worth reading only where its
positive control (a duplicate of the truth) scores well above its negative one (a mean).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyro_fcr.errors import DesignError, sentence
from pyro_fcr.evaluate.prediction import profiles

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.floating[Any]]

__all__ = ["halve", "half_profiles", "interpolated_duplicate"]


def halve(n: int | ArrayLike, *, seed: int = 0) -> NDArray[np.bool_]:
    """Flag a random half of cells.

    Parameters
    ----------
    n
        How many cells, or a label (cells,) within which to halve.
    seed
        Seed of the draw.

    Returns
    -------
    first
        (cells,); each label's halves differ by one cell at most.
    """
    labels = np.zeros(n, int) if isinstance(n, int) else np.asarray(n).astype(str)
    rng = np.random.default_rng(seed)
    first = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        first[rows[: len(rows) // 2]] = True
    return first


def half_profiles(
    counts: Any,
    treatment: ArrayLike,
    covariate: ArrayLike,
    genes: ArrayLike | None = None,
    *,
    log_normalise: bool = True,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Profiles of every condition from two random halves of its cells.

    Parameters
    ----------
    counts, treatment, covariate, genes, log_normalise
        As in `profiles`. Conditions of a single cell are left out.
    seed
        Seed of the halves.

    Returns
    -------
    halves
        Two data frames with the same index, for `interaction_r2` and `interpolated_duplicate`;
        the score of one against the other is the noise ceiling.
    """
    t, x = np.asarray(treatment).astype(str), np.asarray(covariate).astype(str)
    label = np.array([f"{a}\x1f{b}" for a, b in zip(t, x, strict=True)])
    first = halve(label, seed=seed)
    one, two = (
        profiles(counts[m], t[m], x[m], genes, log_normalise=log_normalise)
        for m in (first, ~first)
    )
    return one, two.loc[one.index]


def interpolated_duplicate(duplicate: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    r"""Predict each condition by the best mix of its duplicate and the mean of the others.

    Gene by gene :math:`\bar y + w_g (d - \bar y)`, where the weight
    :math:`w_g = \sum d_1 d_2 / \sum d_1^2` (between 0 and 1) is the regression of one half's
    deviations on the other's over the *other* conditions. It is the positive control of a metric:
    better than the bare duplicate, whose noise unweighted errors punish. The idea is that of
    Mejia et al. 2025 (arXiv 2506.22641); the weights are ours.

    Parameters
    ----------
    duplicate
        Profiles of the conditions from one half of their cells, three conditions or more.
    other
        The same conditions from the other half, which the prediction is scored against; a
        condition's own row is not read.

    Returns
    -------
    predicted
        In the form of ``duplicate``.

    Raises
    ------
    DesignError
        The two do not hold the same three conditions or more.
    """
    if len(duplicate) < 3 or not duplicate.index.equals(other.index):
        raise DesignError(
            sentence(
                "a duplicate cannot be interpolated",
                where="duplicate, other",
                expected="the same three conditions or more",
                got=f"{len(duplicate)} and {len(other)}",
                hint="use half_profiles",
            )
        )
    one, two = duplicate.to_numpy(float), other.to_numpy(float)
    out = np.empty_like(one)
    for i in range(len(one)):
        rest = np.arange(len(one)) != i
        mean = (one[rest].mean(0) + two[rest].mean(0)) / 2
        d1, d2 = one[rest] - one[rest].mean(0), two[rest] - two[rest].mean(0)
        weight = np.clip((d1 * d2).sum(0) / np.maximum((d1**2).sum(0), 1e-12), 0, 1)
        out[i] = mean + weight * (one[i] - mean)
    return pd.DataFrame(out, index=duplicate.index, columns=duplicate.columns)
