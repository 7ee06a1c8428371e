"""How far a model's changes lie from the measured ones, and what that leaves open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import lsq_linear

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CounterfactualError", "ModelError", "joint_errors"]


@dataclass(frozen=True)
class ModelError:
    """How far a model's log fold changes lie from the measured ones, beyond their noise.

    A gap larger than noise is the model's error, of variance a + b m² for a change m. A gap
    smaller than noise tells that the networks have followed the noise: what they absorbed is
    missing in the gap and stands in m instead.

    Parameters
    ----------
    floor
        a, in squared log2 units.
    slope
        b, without unit.
    absorbed
        Share of the noise that went into the model, 0 to 1.
    """

    floor: float
    slope: float
    absorbed: float

    @classmethod
    def estimate(
        cls,
        gap: NDArray[np.float64],
        predicted: NDArray[np.float64],
        noise: NDArray[np.float64],
    ) -> ModelError:
        """Regress squares: E gap² = (1 − absorbed) · noise + a + b · predicted².

        Of the noise a gap holds all at most: what is larger still is the model's.

        Parameters
        ----------
        gap, predicted
            Measured minus predicted log fold changes, and the predicted; any one shape.
        noise
            Sampling variance of the measured changes that latents do not explain.
        """
        kept = np.isfinite(gap) & np.isfinite(noise)
        square, noise, predicted = gap[kept] ** 2, noise[kept], predicted[kept]
        # Noisy genes would drown the others: weigh each by what its square is worth.
        weight = 1 / (noise + np.median(noise))
        basis = np.stack([noise, np.ones(len(noise)), predicted**2], axis=1)
        within = [0.0, 0.0, 0.0], [1.0, np.inf, np.inf]
        left, floor, slope = lsq_linear(
            basis * weight[:, None], square * weight, within, method="bvls"
        ).x
        return cls(float(floor), float(slope), max(0.0, 1 - float(left)))

    def variance(self, predicted: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return a + b m² for each predicted log fold change."""
        return self.floor + self.slope * predicted**2


@dataclass(frozen=True, eq=False)
class CounterfactualError:
    r"""How far log fold changes of cells as they would be may lie from the truth.

    The gap between such a change and the measured one is the model's error less the noise of the
    measurement,

    .. math:: E\,\mathrm{gap}^2 = E\,\mathrm{error}^2 + \mathrm{noise}
        - 2\operatorname{cov}(\mathrm{error}, \mathrm{noise}),

    and a model that has followed the noise of the cells it was trained on errs by what it
    followed: the covariance lies between none and all of the noise, and gaps alone cannot tell
    where. Half-way the error is as large as the gap, which is what is taken.

    Parameters
    ----------
    gaps
        The gaps' variance, its noise as a share of the measurement's.
    noise
        Shape (G,): the measured changes' mean sampling variance, by gene.
    """

    gaps: ModelError
    noise: NDArray[np.float64]

    @classmethod
    def estimate(
        cls,
        gap: NDArray[np.float64],
        predicted: NDArray[np.float64],
        noise: NDArray[np.float64],
    ) -> CounterfactualError:
        """Regress squared gaps.

        Parameters
        ----------
        gap, predicted
            Shape (T, X, G): measured minus predicted log fold changes, and the predicted; nan
            where a condition is not told.
        noise
            Shape (T, X, G): sampling variance of the measured changes.
        """
        told = np.isfinite(gap).any(-1)
        return cls(ModelError.estimate(gap, predicted, noise), noise[told].mean(0))

    def variance(self, predicted: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the error's variance for predicted log fold changes, shape (..., G)."""
        return self.gaps.variance(predicted) + (1 - self.gaps.absorbed) * self.noise


def joint_errors(
    off: NDArray[np.float64],
    noise: NDArray[np.float64],
    control_noise: NDArray[np.float64],
    error: NDArray[np.float64],
    *,
    draws: int,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Draw the model's error b given off = b + ε_t − ε_0, ε_0 shared by a group's treatments.

    Shapes: (T, X, G) but for ``control_noise``, (X, G). By Matheron's rule: a prior draw, moved
    by what the gain makes of the difference between the measurement and its simulated twin. The
    gain inverts a diagonal plus a rank-one matrix.
    """
    seen = np.isfinite(off)
    own = np.where(seen, noise, 0.0)
    inverse = np.where(seen, 1 / np.maximum(own + error, 1e-12), 0.0)
    carried = control_noise / (1 + control_noise * inverse.sum(0))
    out = np.empty((draws, *off.shape), np.float32)
    for d in range(draws):
        b = np.sqrt(error) * rng.standard_normal(off.shape)
        twin = b + np.sqrt(own) * rng.standard_normal(off.shape)
        twin = twin - np.sqrt(control_noise) * rng.standard_normal(control_noise.shape)
        gap = np.where(seen, off - twin, 0.0) * inverse
        out[d] = b + error * (gap - inverse * (carried * gap.sum(0)))
    return out
