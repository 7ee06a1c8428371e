"""Modules with parameters of their own, networks, tables over conditions."""

from pyro_fcr.nn.block import Block
from pyro_fcr.nn.bounds import AllocationLimit
from pyro_fcr.nn.conditions import GAIN, ConditionMap, ConditionTable
from pyro_fcr.nn.labels import LabelCode, check_labels, find_columns
from pyro_fcr.nn.maps import (
    MAPS,
    ConditionEmbedding,
    ConditionMLP,
    FeatureTable,
    condition_map,
)
from pyro_fcr.nn.module import LocalModule, Part, parameters_unseen, touch_globals
from pyro_fcr.nn.networks import MLP, ParallelMLP
from pyro_fcr.nn.rotation import sparse_rotation
from pyro_fcr.nn.sparse_linear import SparseFeatures
from pyro_fcr.nn.tensors import read_tensors, write_tensors
from pyro_fcr.nn.traces import Posteriors, in_cell_plate, latent_sites, marginal

__all__ = [
    "GAIN",
    "MAPS",
    "MLP",
    "AllocationLimit",
    "Block",
    "ConditionEmbedding",
    "ConditionMLP",
    "ConditionMap",
    "ConditionTable",
    "FeatureTable",
    "LabelCode",
    "LocalModule",
    "ParallelMLP",
    "Part",
    "Posteriors",
    "SparseFeatures",
    "check_labels",
    "condition_map",
    "find_columns",
    "in_cell_plate",
    "latent_sites",
    "marginal",
    "parameters_unseen",
    "read_tensors",
    "sparse_rotation",
    "touch_globals",
    "write_tensors",
]
