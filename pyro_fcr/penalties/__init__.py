"""Independence penalties and heads, each giving one term of the objective."""

from pyro_fcr.penalties.adversary import Adversary, reverse_gradient
from pyro_fcr.penalties.base import Adversarial, Penalty, permute_within
from pyro_fcr.penalties.discriminator import PermutationDiscriminator
from pyro_fcr.penalties.heads import CovariateHead, Head, Reading, TreatmentHead, match_controls
from pyro_fcr.penalties.hsic import ConditionalHSIC
from pyro_fcr.penalties.total_correlation import DensityRatioTC, TotalCorrelation

__all__ = [
    "Adversarial",
    "Adversary",
    "ConditionalHSIC",
    "CovariateHead",
    "DensityRatioTC",
    "Head",
    "Penalty",
    "PermutationDiscriminator",
    "Reading",
    "TotalCorrelation",
    "TreatmentHead",
    "match_controls",
    "permute_within",
    "reverse_gradient",
]
