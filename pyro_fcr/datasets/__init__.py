"""Real data: small sets inside the package, and a download that checks what it got."""

from pyro_fcr.datasets.bundled import (
    bodenmiller,
    gbm_crispri,
    jurkat,
    kang,
    lincs_p100,
    mixology,
    norman,
    pbmc_3tech,
    rnamix,
    thp1,
)
from pyro_fcr.datasets.remote import download

__all__ = [
    "bodenmiller",
    "download",
    "gbm_crispri",
    "jurkat",
    "kang",
    "lincs_p100",
    "mixology",
    "norman",
    "pbmc_3tech",
    "rnamix",
    "thp1",
]
