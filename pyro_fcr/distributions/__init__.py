"""Distributions the field uses and Pyro lacks."""

from pyro_fcr.distributions.counts import (
    NegativeBinomial,
    Poisson,
    SharedNegativeBinomial,
    ZeroInflatedNegativeBinomial,
)
from pyro_fcr.distributions.densities import negative_binomial_log_prob
from pyro_fcr.distributions.divergences import kl_mean_field_low_rank
from pyro_fcr.distributions.factored import FactoredNormal
from pyro_fcr.distributions.relaxed import StraightThroughBernoulli
from pyro_fcr.distributions.spike_slab import SpikeSlab, spike_and_slab

__all__ = [
    "FactoredNormal",
    "NegativeBinomial",
    "Poisson",
    "SharedNegativeBinomial",
    "SpikeSlab",
    "StraightThroughBernoulli",
    "ZeroInflatedNegativeBinomial",
    "kl_mean_field_low_rank",
    "negative_binomial_log_prob",
    "spike_and_slab",
]
