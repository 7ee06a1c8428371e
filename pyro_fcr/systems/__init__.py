"""The systems, one file each, and the baselines."""

from pyro_fcr.systems.additive import CPA, SAMSVAE
from pyro_fcr.systems.baselines import IVAE, VAE, BetaVAE, ConditionalVAE, FactorVAE
from pyro_fcr.systems.fcr import FCR
from pyro_fcr.systems.invae import InVAE
from pyro_fcr.systems.svae import SVAE

__all__ = [
    "CPA",
    "FCR",
    "IVAE",
    "SAMSVAE",
    "SVAE",
    "VAE",
    "BetaVAE",
    "ConditionalVAE",
    "FactorVAE",
    "InVAE",
]
