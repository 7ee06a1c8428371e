"""How large effects are, summed over genes or groups: from the counts, corrected for noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_fcr.analysis.shrinkage import mixture_weights, posterior_moments

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]

__all__ = ["POPULATIONS", "Squares"]

POPULATIONS = np.concatenate([[1e-3], np.geomspace(0.05, 6.0, 12)])
"""Standard deviations of the populations that effects come from, in log2 units.

Nearly nothing is among them: what is negligible in a gene adds up over thousands.
"""

POOLED = 10.0
"""Genes' worth of weight that all conditions together have in each one's mixture."""


@dataclass(frozen=True, eq=False)
class Squares:
    r"""Draws of mean squares of changes, in squared log2 units.

    A measured change is :math:`s = \delta + \varepsilon`, and squares of noise add to any sum of
    squares. So the centre of the draws sums :math:`E[\delta^2 \mid s]`, with the :math:`\delta`
    of a condition from a mixture of normal populations that is learned from all its genes. Around
    it lies what errors do to an unbiased sum of squares: that of :math:`2 E[\delta \mid s]
    \varepsilon + \varepsilon^2 - E \varepsilon^2`. A draw has the errors of all genes at once, so
    that genes which err together widen the sum. Draws below zero say that noise explains it all.

    Parameters
    ----------
    strength
        Shape (D, T, X): mean over genes of a condition's interactions.
    own
        Shape (D, T, G): mean over covariate groups of a gene's interactions.
    common
        Shape (D, T, G): of what a gene's changes have in common.
    """

    strength: NDArray[np.float64]
    own: NDArray[np.float64]
    common: NDArray[np.float64]

    @classmethod
    def estimate(cls, change: Floats, error: Floats, drawn: Floats, seen: Floats) -> Squares:
        """Estimate from measured changes and draws of their errors.

        Parameters
        ----------
        change
            Shape (T, X, G): log2 fold changes; those not measured as expected.
        error
            Shape (D, T, X, G): draws of their errors, with mean zero.
        drawn
            Shape (D, T, X, G): draws of the changes, which alone tell of what was not measured.
        seen
            Shape (T, X): which conditions were measured.
        """
        draws, n_t, n_x, genes = error.shape
        places = list(np.ndindex(n_t, n_x))
        shared, shared_error = change.mean(1), error.mean(2)
        # One condition's errors at a time: all at once would double the memory.
        sd = np.stack([(error[:, t, x] - shared_error[:, t]).std(0) for t, x in places])
        own_errors = (error[:, t, x] - shared_error[:, t] for t, x in places)
        strength, own = np.empty((draws, n_t, n_x)), np.zeros((draws, n_t, genes))
        specific = (change - shared[:, None]).reshape(len(places), genes)
        rows = _squares(specific, sd, own_errors)
        for (t, x), squares in zip(places, rows, strict=True):
            found = squares if seen[t, x] else (drawn[:, t, x] - drawn[:, t].mean(1)) ** 2
            strength[:, t, x] = found.mean(-1)
            own[:, t] += found / n_x
        common = np.empty((draws, n_t, genes))
        rows = _squares(shared, shared_error.std(0), iter(np.moveaxis(shared_error, 1, 0)))
        for t, squares in enumerate(rows):
            common[:, t] = squares
        return cls(strength, own, common)


def _squares(
    change: Floats, sd: Floats, errors: Iterator[Floats]
) -> Iterator[NDArray[np.float64]]:
    """Draw the squares (D, G) of each of several sets of changes, shape (S, G)."""
    pooled = mixture_weights(change.ravel(), sd.ravel(), scales=POPULATIONS)
    for one, spread, error in zip(change, sd, errors, strict=True):
        weights = mixture_weights(one, spread, start=pooled, held=POOLED, scales=POPULATIONS)
        mean, square = posterior_moments(one, spread, weights, scales=POPULATIONS)
        noise = 2 * mean * error + error**2
        yield square + noise - noise.mean(0)
