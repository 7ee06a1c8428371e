"""Saving and loading."""

from pyro_fcr.io.saving import FORMAT, describe, read_json, rebuild, versions, write_json

__all__ = ["FORMAT", "describe", "read_json", "rebuild", "versions", "write_json"]
