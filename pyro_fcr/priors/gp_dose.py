"""A Gaussian process over the logarithm of the dose."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from pyro.nn import PyroSample
from torch import Tensor, nn

from pyro_fcr.priors.dose_response import DoseResponse, weigh, weigh_by_level
from pyro_fcr.priors.gaussian import bounded_exp

if TYPE_CHECKING:
    from pyro_fcr.data import Design

__all__ = ["GPDose", "whitened_features"]

JITTER = 1e-6
"""Added to the kernel's diagonal; the factorisation is in float64."""


def whitened_features(log_dose: Tensor, points: Tensor, lengthscale: Tensor) -> Tensor:
    r"""Return features whose inner products are the kernel seen from the inducing points.

    .. math:: \phi(u) = L^{-1} k(Z, u),\qquad \phi(u)^\top \phi(v) = k(u, Z) K_{ZZ}^{-1} k(Z, v)

    with :math:`k(u, v) = e^{-(u - v)^2 / 2 \ell^2}` and :math:`L L^\top = K_{ZZ}`; at the
    inducing points this is the kernel itself.

    Parameters
    ----------
    log_dose
        Any shape.
    points
        Shape (M,): the inducing points Z.
    lengthscale
        Scalar.

    Returns
    -------
    Tensor
        The shape of ``log_dose`` and M.
    """
    z = (points / lengthscale).double()
    u = (log_dose / lengthscale).double().unsqueeze(-1)
    kernel = torch.exp(-0.5 * (z[:, None] - z).square())
    eye = torch.eye(len(z), dtype=z.dtype, device=z.device)
    cross = torch.exp(-0.5 * (u - z).square())
    # Without the check for success, which would wait for the device.
    root = torch.linalg.cholesky_ex(kernel + JITTER * eye).L
    inverse = torch.linalg.solve_triangular(root, eye, upper=False)
    return (cross @ inverse.mT).to(log_dose.dtype)


class GPDose(DoseResponse):
    r"""Every treatment moves every dimension along a smooth curve of its log-dose.

    .. math::
        f_{kd}(c) = \sigma\, w_{kd}^\top \phi(\log c),\qquad w_{kd} \sim N(0, I),

    a Gaussian process with squared-exponential kernel over :math:`\log c`, seen from M inducing
    doses (Titsias 2009; whitened). The dose c is in units of training's (``Design.dose_unit``).
    Curves need not be monotone; far from the doses of training they return to zero. Where the
    design has no more than M distinct doses, the inducing points are those doses and the process
    is exact there. Where the block also reads covariates, each level adds a curve of its own, of
    scale ``interaction_scale``. Globals: ``weights`` of shape (T · M, d) and
    ``interaction_weights`` of shape (T · M, L, d).

    Parameters
    ----------
    points
        M.
    lengthscale
        In natural logarithms of the dose; where training starts, which moves it by a factor of
        at most e.
    amplitude
        σ, standard deviation of a curve.
    interaction_scale
        Standard deviation of the levels' own curves.
    learn_scale
        Whether the block's scale varies with the condition; otherwise it is 1.
    """

    inducing: Tensor
    weights: Any
    interaction_weights: Any

    def __init__(
        self,
        points: int = 8,
        lengthscale: float = 1.5,
        amplitude: float = 1.0,
        interaction_scale: float = 0.3,
        learn_scale: bool = True,
    ) -> None:
        super().__init__(learn_scale=learn_scale)
        self.points, self.lengthscale = points, lengthscale
        self.amplitude, self.interaction_scale = amplitude, interaction_scale

    def bind_response(self, size: int, design: Design, n_levels: int) -> None:
        """Place the inducing doses and make the weights."""
        column = {name: k for k, name in enumerate(design.treatments)}
        doses = [
            float(dose / design.dose_unit[column[name]])
            for name, dose in itertools.chain.from_iterable(design.treatment_keys)
        ]
        seen = torch.tensor(sorted({float(f"{dose:.6g}") for dose in doses})).log()
        if len(seen) > self.points:
            seen = torch.linspace(float(seen[0]), float(seen[-1]), self.points)
        self.register_buffer("inducing", seen, persistent=False)
        self.raw_lengthscale = nn.Parameter(torch.zeros(()))
        n = design.n_treatments * len(seen)
        self.weights = PyroSample(dist.Normal(0.0, 1.0).expand([n, size]).to_event(2))
        if n_levels:
            shape = [n, n_levels, size]
            self.interaction_weights = PyroSample(dist.Normal(0.0, 1.0).expand(shape).to_event(3))

    def features(self, dose: Tensor) -> Tensor:
        """Return every treatment's features at its dose, zero where it was not given.

        Parameters
        ----------
        dose
            Shape (B, T), in units of training's doses.

        Returns
        -------
        Tensor
            Shape (B, T · M).
        """
        given = dose > 0
        log_dose = torch.where(given, dose, torch.ones_like(dose)).log()
        lengthscale = self.lengthscale * bounded_exp(self.raw_lengthscale, 1.0)
        features = whitened_features(log_dose, self.inducing, lengthscale)
        return (features * given.unsqueeze(-1)).flatten(1)

    def response(self, dose: Tensor, levels: Tensor | None) -> Tensor:
        """Return the sum of the treatments' curves; shape (B, d)."""
        features = self.features(dose)
        out = self.amplitude * weigh(features, self.weights)
        if levels is not None:
            curves = weigh_by_level(features, levels, self.interaction_weights)
            out = out + self.interaction_scale * curves
        return out
