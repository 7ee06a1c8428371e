"""What blocks tell of one another and of labels that they should not know."""

from __future__ import annotations

import warnings
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["block_leakage", "probes"]

PROBED_CELLS = 800
PROBED_LABELS = 8
PROBED_STRATA = 8


def block_leakage(means: Mapping[str, np.ndarray], condition: np.ndarray) -> dict[str, float]:
    """Return the share of each block's variance within conditions that another block explains.

    Linear least squares from one block's residuals about the condition means to another's, with
    the share adjusted for degrees of freedom: zero on average for independent blocks. Cheap
    enough to watch during training; :func:`pyro_fcr.evaluate.kernel_r2` is the full measure.

    Parameters
    ----------
    means
        Posterior means by block, each of shape (N, d).
    condition
        Shape (N,): condition codes.

    Returns
    -------
    dict
        ``"leakage.A.B"``: how much of B can be read from A.
    """
    codes, index, counts = np.unique(condition, return_inverse=True, return_counts=True)
    residuals = {}
    for name, values in means.items():
        sums = np.zeros((len(codes), values.shape[1]))
        np.add.at(sums, index, values)
        residuals[name] = values - (sums / counts[:, None])[index]
    left = len(condition) - len(codes)
    found = {}
    for source, target in permutations(residuals, 2):
        x, y = residuals[source], residuals[target]
        misfit = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
        freedom = max(1, left - x.shape[1])
        share = 1 - (misfit**2).sum() / freedom / max((y**2).sum() / max(1, left), 1e-12)
        found[f"leakage.{source}.{target}"] = float(share)
    return found


def probes(
    latents: Mapping[str, np.ndarray],
    labels: Mapping[str, NDArray[Any]],
    *,
    parents: Mapping[str, frozenset[str]] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Ask fresh classifiers what each block gives away of every label, the others held fixed.

    Parameters
    ----------
    latents
        Posterior means (N, d) by block.
    labels
        By role (``"treatment"``, ``"covariates"``, ``"batch"``), labels (N,), as
        :func:`pyro_fcr.analysis.conditions.role_labels` gives them. Empty ones are unknown.
    parents
        The roles each block depends on by its prior; a block should give away nothing else.
    seed
        Governs which cells are asked about and the folds.

    Returns
    -------
    pandas.DataFrame
        One row per block and question: ``block``, ``question``, ``score`` (balanced accuracy),
        ``chance``, ``low``, ``high`` (95 % of the score), ``expected`` ("chance" or "above").
        Questions without two labels in any stratum are left out. At most 800 cells and the eight
        commonest labels and strata are used. :func:`pyro_fcr.evaluate.separability` asks all
        cells, a second classifier too, and takes its time.
    """
    rng = np.random.default_rng(seed)
    asked = {role: values for role, values in labels.items() if len(set(values) - {""}) > 1}
    rows = []
    for role, values in asked.items():
        others = {name: other for name, other in asked.items() if name != role}
        same = " and ".join(name.removesuffix("s") for name in others)
        question = role.removesuffix("s") + (f", same {same}" if same else "")
        strata = _joined(others, len(values))
        common = _common(values, PROBED_LABELS) & _common(strata, PROBED_STRATA) & (values != "")
        chosen = np.sort(rng.permutation(np.flatnonzero(common))[:PROBED_CELLS])
        for block, z in latents.items():
            found = _readability(z[chosen], values[chosen], strata[chosen], seed=seed)
            if found is not None:
                told = parents is not None and role in parents.get(block, frozenset())
                expected = "above" if told else "chance"
                rows.append({"block": block, "question": question, **found, "expected": expected})
    return pd.DataFrame(rows)


def _readability(
    z: np.ndarray, labels: NDArray[Any], strata: NDArray[Any], *, seed: int, folds: int = 5
) -> dict[str, float] | None:
    """Cross-validate a logistic regression on latents and their squares within each stratum."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    scores, chances, variances = [], [], []
    for stratum in np.unique(strata.astype(str)):
        inside = strata.astype(str) == stratum
        names, counts = np.unique(labels[inside].astype(str), return_counts=True)
        inside &= np.isin(labels.astype(str), names[counts >= folds])
        _, codes = np.unique(labels[inside].astype(str), return_inverse=True)
        if not inside.any() or codes.max() < 1:
            continue
        x = z[inside] - z[inside].mean(axis=0)
        x = x / np.maximum(x.std(axis=0), 1e-8)
        classifier = LogisticRegression(C=0.3, max_iter=200, tol=1e-3, class_weight="balanced")
        cut = StratifiedKFold(folds, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            # A separable stratum does not converge, and is separable all the same.
            warnings.filterwarnings("ignore", message=".*lbfgs failed to converge.*")
            read = cross_val_predict(classifier, np.hstack([x, x**2 - 1]), codes, cv=cut)
        sizes = np.bincount(codes)
        hit = np.bincount(codes, read == codes) / sizes
        scores.append(hit.mean())
        chances.append(1 / len(sizes))
        variances.append((hit * (1 - hit) / sizes).mean() / len(sizes))
    if not scores:
        return None
    score, half = float(np.mean(scores)), 1.96 * float(np.sqrt(np.sum(variances))) / len(scores)
    return {
        "score": score,
        "chance": float(np.mean(chances)),
        "low": max(0.0, score - half),
        "high": min(1.0, score + half),
    }


def _joined(labels: Mapping[str, NDArray[Any]], n: int) -> NDArray[Any]:
    if not labels:
        return np.full(n, "all", dtype=object)
    return np.asarray([" | ".join(parts) for parts in zip(*labels.values(), strict=True)], object)


def _common(labels: NDArray[Any], most: int) -> NDArray[np.bool_]:
    names, counts = np.unique(labels.astype(str), return_counts=True)
    return np.isin(labels.astype(str), names[np.argsort(-counts, kind="stable")][:most])
