"""One page on a fitted model: self-contained HTML, good on a phone and in print."""

from pyro_fcr.analysis.contract import Reported
from pyro_fcr.analysis.report.blocks import interaction_strength
from pyro_fcr.analysis.report.write import write_report

__all__ = ["Reported", "interaction_strength", "write_report"]
