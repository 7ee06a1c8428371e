"""Benchmarks as configuration files: jobs over the cores, rows that survive a crash, one table."""

from pyro_fcr.benchmark.config import CONFIGS, Config, Job, available, read_config
from pyro_fcr.benchmark.problem import Problem
from pyro_fcr.benchmark.runner import Outcome, freeze, run
from pyro_fcr.benchmark.table import compare, summarise, write
from pyro_fcr.benchmark.tasks import TASKS, Task

__all__ = [
    "CONFIGS",
    "TASKS",
    "Config",
    "Job",
    "Outcome",
    "Problem",
    "Task",
    "available",
    "compare",
    "freeze",
    "read_config",
    "run",
    "summarise",
    "write",
]
