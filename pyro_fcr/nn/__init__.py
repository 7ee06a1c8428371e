"""Modules with parameters of their own, networks, embeddings of conditions."""

from pyro_fcr.nn.conditions import ConditionEmbedding, one_hot_covariates
from pyro_fcr.nn.module import LocalModule, Part, touch_globals
from pyro_fcr.nn.networks import MLP, ParallelMLP

__all__ = [
    "MLP",
    "ConditionEmbedding",
    "LocalModule",
    "ParallelMLP",
    "Part",
    "one_hot_covariates",
    "touch_globals",
]
