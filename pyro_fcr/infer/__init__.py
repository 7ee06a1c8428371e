"""Training: the objective, schedules, the loop, checkpoints."""

from pyro_fcr.infer import faults, gauge
from pyro_fcr.infer.distributed import Ranks, processes
from pyro_fcr.infer.milestones import Milestones
from pyro_fcr.infer.objective import Objective, SiteELBO, Terms, Weighted
from pyro_fcr.infer.runtime import resolve_device
from pyro_fcr.infer.schedule import Plan, Settled
from pyro_fcr.infer.sleep import sleep
from pyro_fcr.infer.trainer import Trainer

__all__ = [
    "Milestones",
    "Objective",
    "Plan",
    "Settled",
    "Ranks",
    "SiteELBO",
    "Terms",
    "Trainer",
    "Weighted",
    "faults",
    "gauge",
    "processes",
    "resolve_device",
    "sleep",
]
