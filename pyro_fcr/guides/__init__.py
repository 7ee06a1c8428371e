"""Guides: amortised for the cells, automatic for the globals, and the check of both."""

from pyro_fcr.guides.amortised import Amortised
from pyro_fcr.guides.base import Guide, check_coverage
from pyro_fcr.guides.composed import Composed
from pyro_fcr.guides.encoders import Encoders
from pyro_fcr.guides.flow import FlowRefined
from pyro_fcr.guides.joint import Joint
from pyro_fcr.guides.refined import SemiAmortised

__all__ = [
    "Amortised",
    "Composed",
    "Encoders",
    "FlowRefined",
    "Guide",
    "Joint",
    "SemiAmortised",
    "check_coverage",
]
