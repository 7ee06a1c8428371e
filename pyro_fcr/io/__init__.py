"""Saving and loading."""

from pyro_fcr.io.saving import FORMAT, describe, read_json, rebuild, versions, write_json
from pyro_fcr.io.streams import cells_file

__all__ = ["FORMAT", "cells_file", "describe", "read_json", "rebuild", "versions", "write_json"]
