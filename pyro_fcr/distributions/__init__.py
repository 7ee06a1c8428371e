"""Distributions the field uses and Pyro lacks."""

from pyro_fcr.distributions.counts import (
    NegativeBinomial,
    ZeroInflatedNegativeBinomial,
    negative_binomial_log_prob,
)

__all__ = ["NegativeBinomial", "ZeroInflatedNegativeBinomial", "negative_binomial_log_prob"]
