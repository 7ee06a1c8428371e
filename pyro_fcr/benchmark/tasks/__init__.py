"""The tasks, by the name that configurations use."""

from pyro_fcr.benchmark.tasks.base import Task
from pyro_fcr.benchmark.tasks.calibration import Calibration
from pyro_fcr.benchmark.tasks.integration import Integration
from pyro_fcr.benchmark.tasks.prediction import Prediction
from pyro_fcr.benchmark.tasks.reading import Clustering, Factors, Independence
from pyro_fcr.benchmark.tasks.recovery import Recovery
from pyro_fcr.benchmark.tasks.restarts import Restarts
from pyro_fcr.benchmark.tasks.targets import Targets

__all__ = ["TASKS", "Task"]

TASKS: dict[str, type[Task]] = {
    "calibration": Calibration,
    "clustering": Clustering,
    "factors": Factors,
    "independence": Independence,
    "integration": Integration,
    "prediction": Prediction,
    "recovery": Recovery,
    "restarts": Restarts,
    "targets": Targets,
}
"""Every task."""
