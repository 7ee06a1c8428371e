"""Saving and loading."""

from pyro_fcr.io.saving import (
    FORMAT,
    describe,
    file_hash,
    read_json,
    rebuild,
    seal,
    versions,
    write_json,
)
from pyro_fcr.io.streams import cells_file
from pyro_fcr.io.trees import Tree, tree

__all__ = [
    "FORMAT",
    "Tree",
    "cells_file",
    "describe",
    "file_hash",
    "read_json",
    "rebuild",
    "seal",
    "tree",
    "versions",
    "write_json",
]
