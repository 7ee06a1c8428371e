"""Targets of treatments among latents: chosen at a false discovery rate, scored against a truth.

match_latents(found_nd, truth_nd)          which latent is which, by absolute correlation
choose_targets(probability_td)             the entries whose expected share of errors is small
score_targets(probability_td, truth_td)    F1, average precision, false discoveries
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from pyro_fcr import arguments
from pyro_fcr.errors import DesignError, sentence

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["choose_targets", "match_latents", "score_targets"]


def match_latents(
    found_nd: ArrayLike, truth_nd: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Assign a found latent to every true one, by absolute correlation (Hungarian matching).

    Parameters
    ----------
    found_nd, truth_nd
        Latents of the same cells, (cells, d) and (cells, e); d at least e.

    Returns
    -------
    order, correlation
        Shape (e,) each: the found latent of each true one, and their absolute correlation, whose
        mean is the mean correlation coefficient (MCC).

    Raises
    ------
    DesignError
        If there are fewer found latents than true ones, or other cells.

    Examples
    --------
    >>> z = np.random.default_rng(0).normal(size=(100, 3))
    >>> order, correlation = match_latents(-z[:, [2, 0, 1]], z)
    >>> order.tolist(), correlation.round(6).tolist()
    ([1, 2, 0], [1.0, 1.0, 1.0])
    """
    found, truth = np.asarray(found_nd, np.float64), np.asarray(truth_nd, np.float64)
    if len(found) != len(truth) or found.shape[1] < truth.shape[1]:
        raise DesignError(
            sentence(
                "latents cannot be matched",
                where="match_latents",
                expected="the same cells, and a latent for each true one",
                got=f"shapes {found.shape} and {truth.shape}",
                hint="give both for the same cells, and the model as many latents",
            )
        )
    a, b = (_standardised(values) for values in (found, truth))
    correlation = np.abs(a.T @ b) / len(a)
    rows, columns = linear_sum_assignment(-correlation)
    order = rows[np.argsort(columns)].astype(np.int64)
    return order, correlation[order, np.arange(truth.shape[1])]


def choose_targets(probability_td: ArrayLike, *, level: float = 0.10) -> NDArray[np.bool_]:
    """Choose as many entries as can be at a posterior expected false discovery rate.

    The expected share of errors among chosen entries is the mean of their 1 - probability; the
    largest set of most probable entries is taken for which it does not exceed the level (Newton
    et al., Biostatistics 2004).

    Parameters
    ----------
    probability_td
        Posterior probabilities of being no error, of any shape.
    level
        The nominal false discovery rate.

    Returns
    -------
    ndarray of bool
        Of the same shape.

    Examples
    --------
    >>> choose_targets([0.99, 0.90, 0.80, 0.10]).tolist()
    [True, True, False, False]
    """
    arguments.number(level, "level=", least=0, most=1, hint="0.1 is the default")
    probability = np.asarray(probability_td, np.float64)
    ranked = np.sort(1 - probability, axis=None)
    expected = np.cumsum(ranked) / np.arange(1, ranked.size + 1)
    n = int((expected <= level + 1e-12).sum())
    chosen = np.zeros(probability.size, bool)
    chosen[np.argsort(1 - probability, axis=None, kind="stable")[:n]] = True
    return chosen.reshape(probability.shape)


def score_targets(
    probability_td: ArrayLike, truth_td: ArrayLike, *, level: float = 0.10
) -> dict[str, float]:
    """Score inclusion probabilities against the true targets.

    Parameters
    ----------
    probability_td
        Posterior inclusion probabilities, (treatments, latents), latents in the truth's order
        (:func:`match_latents`); give treatments that were trained on.
    truth_td
        The true targets, boolean.
    level
        Nominal false discovery rate of the chosen set.

    Returns
    -------
    dict
        ``f1`` of the entries more probable than not; ``auprc``, average precision of the
        probabilities; ``fdr`` and ``power`` of the set chosen at the level, ``f1_chosen`` its F1;
        ``n_true``, ``n_chosen``. A rate without a denominator is zero.

    Raises
    ------
    DesignError
        If the shapes differ or nothing is true.
    """
    probability, truth = np.asarray(probability_td, np.float64), np.asarray(truth_td, bool)
    if probability.shape != truth.shape or not truth.any():
        raise DesignError(
            sentence(
                "targets cannot be scored",
                where="score_targets",
                expected="two arrays of one shape, and a true target",
                got=f"shapes {probability.shape} and {truth.shape}, {int(truth.sum())} true",
                hint="match the latents first, and give the rows of trained treatments",
            )
        )
    # Imported where it is used: importing scikit-learn changes the process's environment.
    from sklearn.metrics import average_precision_score

    chosen = choose_targets(probability, level=level)
    right = float((chosen & truth).sum())
    scores: dict[str, Any] = {
        "f1": _f1(probability > 0.5, truth),
        "f1_chosen": _f1(chosen, truth),
        "auprc": average_precision_score(truth.ravel(), probability.ravel()),
        "fdr": 1 - right / chosen.sum() if chosen.any() else 0.0,
        "power": right / truth.sum(),
        "n_true": truth.sum(),
        "n_chosen": chosen.sum(),
    }
    return {name: float(value) for name, value in scores.items()}


def _f1(chosen: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    return 2 * float((chosen & truth).sum()) / float(chosen.sum() + truth.sum())


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = values - values.mean(0)
    sd = centred.std(0)
    # A component without variance correlates with nothing, whatever rounding left of it.
    return np.where(sd > 1e-8, centred / np.where(sd > 1e-8, sd, 1.0), 0.0)
