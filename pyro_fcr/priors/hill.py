"""The sigmoid dose-response of pharmacology."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from pyro.nn import PyroSample

from pyro_fcr.priors.dose_response import DoseResponse, weigh
from pyro_fcr.priors.gaussian import bounded_exp

if TYPE_CHECKING:
    from torch import Tensor

    from pyro_fcr.data import Design

__all__ = ["Hill"]

STEEPNESS = 2.0
"""A slope's logarithm stays between minus and plus this."""


class Hill(DoseResponse):
    r"""Every treatment moves every dimension along a Hill curve of its dose.

    .. math::
        f_{kd}(c) = E_{kd}\, \frac{c^{h_{kd}}}{C_{kd}^{h_{kd}} + c^{h_{kd}}},\qquad
        E \sim N(0, \sigma_E^2),\quad \log C \sim N(0, \sigma_C^2),\quad \log h \sim N(0, 0.5^2)

    (Hill 1910). The dose c is in units of training's (``Design.dose_unit``), and so is the half-
    maximal dose C. Where the block also reads covariates, each level adds its own
    :math:`N(0, \sigma_I^2)` to E. Globals: ``emax`` E, ``log_ec50`` log C, ``log_slope`` log h,
    each of shape (T, d), and ``emax_interaction`` of shape (T, L, d). Between and beyond the doses
    of training the curve interpolates; a treatment without cells stays at its prior.

    Parameters
    ----------
    emax_scale
        Standard deviation of E.
    log_ec50_scale
        Standard deviation of log C, in natural logarithms of the dose.
    interaction_scale
        Standard deviation of the levels' additions to E.
    learn_scale
        Whether the block's scale varies with the condition; otherwise it is 1.
    """

    emax: Any
    log_ec50: Any
    log_slope: Any
    emax_interaction: Any

    def __init__(
        self,
        emax_scale: float = 1.0,
        log_ec50_scale: float = 1.5,
        interaction_scale: float = 0.3,
        learn_scale: bool = True,
    ) -> None:
        super().__init__(learn_scale=learn_scale)
        self.emax_scale, self.log_ec50_scale = emax_scale, log_ec50_scale
        self.interaction_scale = interaction_scale

    def bind_response(self, size: int, design: Design, n_levels: int) -> None:
        """Make the curves' parameters."""
        n = design.n_treatments
        self.emax = PyroSample(dist.Normal(0.0, self.emax_scale).expand([n, size]).to_event(2))
        self.log_ec50 = PyroSample(
            dist.Normal(0.0, self.log_ec50_scale).expand([n, size]).to_event(2)
        )
        self.log_slope = PyroSample(dist.Normal(0.0, 0.5).expand([n, size]).to_event(2))
        if n_levels:
            shape = [n, n_levels, size]
            self.emax_interaction = PyroSample(
                dist.Normal(0.0, self.interaction_scale).expand(shape).to_event(3)
            )

    def curve(self, dose: Tensor) -> Tensor:
        """Return the share of the full effect, between 0 and 1, at each dose.

        Parameters
        ----------
        dose
            Shape (B, T), in units of training's doses.

        Returns
        -------
        Tensor
            Shape (B, T, d).
        """
        given = dose > 0
        log_dose = torch.where(given, dose, torch.ones_like(dose)).log().unsqueeze(-1)
        slope = bounded_exp(self.log_slope, STEEPNESS)
        return torch.sigmoid(slope * (log_dose - self.log_ec50)) * given.unsqueeze(-1)

    def response(self, dose: Tensor, levels: Tensor | None) -> Tensor:
        """Return the sum of the treatments' effects; shape (B, d)."""
        emax = self.emax
        if levels is not None:
            by_level = self.emax_interaction.transpose(-3, -2)
            shape = by_level.shape[-2:]
            emax = emax + weigh(levels, by_level.flatten(-2)).unflatten(-1, shape)
        return (emax * self.curve(dose)).sum(-2)
