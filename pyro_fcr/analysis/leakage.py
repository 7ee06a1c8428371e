"""What blocks tell of one another within conditions."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["block_leakage"]


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
