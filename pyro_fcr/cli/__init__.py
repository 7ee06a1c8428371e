"""The command line."""

from __future__ import annotations

from pyro_fcr.cli.commands import main

__all__ = ["main"]
