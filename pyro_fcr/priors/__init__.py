"""Conditional priors, one file each, any of them in any block."""

from pyro_fcr.priors.base import Prior
from pyro_fcr.priors.dose_response import DoseResponse
from pyro_fcr.priors.flow import Flow
from pyro_fcr.priors.full_covariance import FullCovariance
from pyro_fcr.priors.gaussian import Gaussian, bounded_exp
from pyro_fcr.priors.gp_dose import GPDose
from pyro_fcr.priors.hierarchical import Hierarchical
from pyro_fcr.priors.hill import Hill
from pyro_fcr.priors.interaction import Interaction
from pyro_fcr.priors.lambda_prior import LambdaPrior
from pyro_fcr.priors.low_rank import LowRank
from pyro_fcr.priors.mixture import Mixture
from pyro_fcr.priors.non_factorised import NonFactorised
from pyro_fcr.priors.sparse_shift import SparseShift
from pyro_fcr.priors.standard import Standard
from pyro_fcr.priors.student_t import StudentT
from pyro_fcr.priors.treatment_features import TreatmentFeatures
from pyro_fcr.priors.vamp import VampPrior

__all__ = [
    "DoseResponse",
    "Flow",
    "FullCovariance",
    "GPDose",
    "Gaussian",
    "Hierarchical",
    "Hill",
    "Interaction",
    "LambdaPrior",
    "LowRank",
    "Mixture",
    "NonFactorised",
    "Prior",
    "SparseShift",
    "Standard",
    "StudentT",
    "TreatmentFeatures",
    "VampPrior",
    "bounded_exp",
]
