"""What can be asked of a fitted model: latents, draws, counterfactuals, judgement, findings."""

from __future__ import annotations

from pyro_fcr.fitted.core import CHUNK
from pyro_fcr.fitted.draws import Draws
from pyro_fcr.fitted.findings import Findings
from pyro_fcr.fitted.latents import Latents

__all__ = ["CHUNK", "Fitted"]


class Fitted(Latents, Draws, Findings):
    """The verbs of a fitted model; :class:`~pyro_fcr.estimator.Estimator` says how it is made."""
