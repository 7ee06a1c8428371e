"""Guides: amortised for the cells, automatic for the globals, and the check of both."""

from pyro_fcr.guides.amortised import Amortised
from pyro_fcr.guides.base import Guide, check_coverage
from pyro_fcr.guides.composed import Composed

__all__ = ["Amortised", "Composed", "Guide", "check_coverage"]
