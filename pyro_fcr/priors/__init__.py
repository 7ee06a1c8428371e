"""Conditional priors, one file each, any of them in any block."""

from pyro_fcr.priors.base import Prior
from pyro_fcr.priors.gaussian import Gaussian, bounded_exp
from pyro_fcr.priors.standard import Standard

__all__ = ["Gaussian", "Prior", "Standard", "bounded_exp"]
