"""Distributions the field uses and Pyro lacks."""

from pyro_fcr.distributions.counts import (
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    negative_binomial_log_prob,
)

__all__ = [
    "NegativeBinomial",
    "Poisson",
    "ZeroInflatedNegativeBinomial",
    "negative_binomial_log_prob",
]
