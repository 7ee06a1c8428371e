"""Factorised causal representations of single cells, in Pyro."""

from pyro_fcr.data import Schema, splits
from pyro_fcr.priors import Prior
from pyro_fcr.systems import FCR

__all__ = ["FCR", "Prior", "Schema", "splits"]
