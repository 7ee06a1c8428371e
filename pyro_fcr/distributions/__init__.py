"""Distributions the field uses and Pyro lacks."""

from pyro_fcr.distributions.counts import (
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    negative_binomial_log_prob,
)
from pyro_fcr.distributions.factored import FactoredNormal

__all__ = [
    "FactoredNormal",
    "NegativeBinomial",
    "Poisson",
    "ZeroInflatedNegativeBinomial",
    "negative_binomial_log_prob",
]
