"""The systems, one file each."""

from pyro_fcr.systems.fcr import FCR

__all__ = ["FCR"]
