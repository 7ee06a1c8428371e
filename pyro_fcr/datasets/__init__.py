"""Real data: two small sets inside the package, and a download that checks what it got."""

from pyro_fcr.datasets.bundled import gbm_crispri, kang
from pyro_fcr.datasets.remote import download

__all__ = ["download", "gbm_crispri", "kang"]
