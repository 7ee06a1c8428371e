"""How well clusters of latents match labels, beside what labels alone would score."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyro_fcr.errors import DesignError, sentence
from pyro_fcr.evaluate.conditions import within_condition

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.floating[Any]]

__all__ = ["cluster_agreement"]


def cluster_agreement(
    latents: Mapping[str, ArrayLike],
    labels: Mapping[str, ArrayLike],
    condition: ArrayLike,
    *,
    max_cells: int = 20_000,
    seed: int = 0,
) -> pd.DataFrame:
    """NMI and ARI of k-means clusters of every block with every labelling.

    k is the number of labels. An encoder that is told a label can write it down: so beside each
    score stands ``label_only``, that of the same latents with every cell replaced by the mean of
    its condition, and ``within``, that of the residuals about those means.

    Parameters
    ----------
    latents
        Blocks (cells, d) by name.
    labels
        Labellings (cells,) by name, say treatment and covariate.
    condition
        (treatment, covariate) as one label (cells,).
    max_cells
        Cells drawn at random, where there are more.
    seed
        Seed of the subsample and of k-means (ten starts).

    Returns
    -------
    scores
        One row per (metric, latent, labels): ``score``, ``label_only``, ``within``.

    Raises
    ------
    DesignError
        Lengths disagree, or a labelling has a single label.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    blocks = {name: np.asarray(z, float) for name, z in latents.items()}
    names = {name: np.asarray(a).astype(str) for name, a in labels.items()}
    n = len(np.asarray(condition))
    for name, a in [*blocks.items(), *names.items()]:
        if len(a) != n or (name in names and len(np.unique(a)) < 2):
            raise DesignError(
                sentence(
                    "clusters cannot be compared",
                    where=name,
                    expected=f"{n} cells, and two labels or more",
                    got=f"{len(a)} cells",
                    hint="pass arrays of the same cells",
                )
            )
    rows = np.random.default_rng(seed).permutation(n)[:max_cells]
    out = []
    for block, z in blocks.items():
        residual = within_condition(z, condition)
        forms = {"score": z, "label_only": z - residual, "within": residual}
        for label, codes in names.items():
            found: dict[str, dict[str, float]] = {"nmi": {}, "ari": {}}
            for form, values in forms.items():
                # No more clusters than distinct points: means of conditions may coincide.
                distinct = len(np.unique(values[rows].round(9), axis=0))
                k = min(len(np.unique(codes[rows])), distinct)
                clusters = KMeans(k, n_init=10, random_state=seed).fit_predict(values[rows])
                found["nmi"][form] = float(normalized_mutual_info_score(codes[rows], clusters))
                found["ari"][form] = float(adjusted_rand_score(codes[rows], clusters))
            out += [{"metric": m, "latent": block, "labels": label, **f} for m, f in found.items()]
    return pd.DataFrame(out)
