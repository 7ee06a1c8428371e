"""Differentially expressed genes of real cells, and whether a prediction finds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from pyro_fcr.errors import DesignError, sentence
from pyro_fcr.evaluate.prediction import cell_values

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.floating[Any]]

__all__ = ["de_genes", "de_pr_auc", "top_de_genes", "welch_t"]


class _Welch(NamedTuple):
    change: Floats
    t: Floats
    freedom: Floats


def welch_t(treated: Any, control: Any, *, log_normalise: bool = True) -> Floats:
    """Welch's t of every gene, on log1p of counts per 10,000.

    Parameters
    ----------
    treated, control
        Counts (cells, genes) of real held-out cells, two or more each.
    log_normalise
        Off for values that are no counts, which are tested as they are.

    Returns
    -------
    t_g
        (genes,); 0 for a gene without variance.

    Raises
    ------
    DesignError
        Fewer than two cells of a kind.
    """
    return _welch(treated, control, log_normalise).t


def top_de_genes(
    treated: Any, control: Any, k: int = 20, *, log_normalise: bool = True
) -> NDArray[np.integer[Any]]:
    """Find the k genes of largest absolute Welch t, largest first.

    Parameters
    ----------
    treated, control, log_normalise
        As in `welch_t`.
    k
        Genes wanted; all of them if there are fewer.
    """
    t = welch_t(treated, control, log_normalise=log_normalise)
    return np.argsort(-np.abs(t), kind="stable")[:k]


def de_genes(
    treated: Any,
    control: Any,
    *,
    fdr: float = 0.05,
    min_change: float = 0.0,
    log_normalise: bool = True,
) -> pd.DataFrame:
    """Call differentially expressed genes by Welch's t with the false discovery rate held.

    Parameters
    ----------
    treated, control
        (cells, genes) of real held-out cells. To score a prediction on the genes it may be judged
        by, call them on one half and score against the other (`half_profiles`).
    fdr
        Rate of Benjamini and Hochberg.
    min_change
        Least absolute difference of the means, on log1p of counts per 10,000.
    log_normalise
        log1p of counts per 10,000 first; off for intensities.

    Returns
    -------
    table
        A row per gene: ``change``, ``t``, ``q`` and ``called``.
    """
    change, t, freedom = _welch(treated, control, log_normalise)
    p = 2 * stats.t.sf(np.abs(t), freedom)
    q = stats.false_discovery_control(p)
    called = (q <= fdr) & (np.abs(change) >= min_change)
    return pd.DataFrame({"change": change, "t": t, "q": q, "called": called})


def de_pr_auc(predicted_change: ArrayLike, called: ArrayLike) -> float:
    """Average precision of genes ranked by predicted change against those called in real cells.

    Parameters
    ----------
    predicted_change
        (genes,): predicted profile less control profile; its size ranks.
    called
        (genes,): whether real held-out cells call the gene.

    Returns
    -------
    average_precision
        The null is the share of called genes, also for a prediction of no change at all; nan
        where none is called.
    """
    from sklearn.metrics import average_precision_score

    called = np.asarray(called, bool)
    if not called.any():
        return float("nan")
    return float(average_precision_score(called, np.abs(np.asarray(predicted_change, float))))


def _welch(treated: Any, control: Any, log_normalise: bool) -> _Welch:
    a, b = (cell_values(c, log_normalise=log_normalise) for c in (treated, control))
    if min(len(a), len(b)) < 2:
        raise DesignError(
            sentence(
                "too few cells for Welch's t",
                where="treated, control",
                expected="at least 2 cells each",
                got=f"{len(a)} and {len(b)}",
                hint="leave this condition out",
            )
        )
    v_a, v_b = a.var(0, ddof=1) / len(a), b.var(0, ddof=1) / len(b)
    change, square = a.mean(0) - b.mean(0), v_a + v_b
    live = square > 0
    t = np.where(live, change / np.sqrt(np.where(live, square, 1.0)), 0.0)
    spread = v_a**2 / (len(a) - 1) + v_b**2 / (len(b) - 1)
    return _Welch(change, t, np.where(live, square**2 / np.where(live, spread, 1.0), 1.0))
