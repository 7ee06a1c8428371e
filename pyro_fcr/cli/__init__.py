"""The command line."""

from __future__ import annotations

from pyro_fcr.cli import benchmarks, commands, runs
from pyro_fcr.cli.root import main

__all__ = ["benchmarks", "commands", "main", "runs"]
