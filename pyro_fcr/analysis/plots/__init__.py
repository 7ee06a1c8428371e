"""Pictures of a fitted model: every function draws on axes it is given, or on its own figure.

Figures never pass through pyplot, so none is kept alive behind the caller's back, and matplotlib's
settings are changed inside a context alone.
"""

from pyro_fcr.analysis.plots.cells import latents, overview, principal_axes
from pyro_fcr.analysis.plots.effects import dose_response, intervals
from pyro_fcr.analysis.plots.factors import interaction, leakage, leakage_matrix, masks
from pyro_fcr.analysis.plots.judgement import (
    YARDSTICKS,
    counterfactual,
    coverage,
    evaluation,
    rank_histogram,
)
from pyro_fcr.analysis.plots.style import PALETTE, house_style, plain
from pyro_fcr.analysis.plots.training import history
from pyro_fcr.analysis.plots.trust import block_use, importance, predictive_checks, stability

__all__ = [
    "PALETTE",
    "YARDSTICKS",
    "block_use",
    "counterfactual",
    "coverage",
    "dose_response",
    "evaluation",
    "history",
    "house_style",
    "importance",
    "interaction",
    "intervals",
    "latents",
    "leakage",
    "leakage_matrix",
    "masks",
    "overview",
    "plain",
    "predictive_checks",
    "principal_axes",
    "rank_histogram",
    "stability",
]
