"""Evidence: recovery, certificates, independence, calibration, prediction, and their nulls."""

from pyro_fcr.evaluate.agreement import (
    restart_agreement,
)
from pyro_fcr.evaluate.assumptions import (
    CommonCorrelation,
    PriorShift,
    common_correlation,
    prior_shift,
)
from pyro_fcr.evaluate.baselines import (
    Additive,
    Baseline,
    ControlMean,
    NearestCondition,
    Noise,
    Ridge,
    Training,
    TreatedMean,
)
from pyro_fcr.evaluate.bootstrap import PriorReplicates, bootstrap_prior
from pyro_fcr.evaluate.calibration import (
    coverage,
    inclusion_calibration,
    pit_by_gene,
    randomised_pit,
    sbc_ranks,
    sbc_uniformity,
)
from pyro_fcr.evaluate.certificate import (
    Certificate,
    interaction_contrasts,
    natural_parameters,
    rank_certificate,
)
from pyro_fcr.evaluate.clustering import (
    cluster_agreement,
)
from pyro_fcr.evaluate.conditions import within_condition
from pyro_fcr.evaluate.conformal import (
    conformal_additive,
)
from pyro_fcr.evaluate.differential import (
    de_genes,
    de_pr_auc,
    top_de_genes,
    welch_t,
)
from pyro_fcr.evaluate.disentanglement import (
    DCI,
    dci,
    mig,
    sap,
)
from pyro_fcr.evaluate.halves import (
    half_profiles,
    halve,
    interpolated_duplicate,
)
from pyro_fcr.evaluate.learned import (
    BASELINES,
    DecoderOnly,
    KernelRidge,
    LatentAdditive,
    PCAAdditive,
)
from pyro_fcr.evaluate.populations import (
    TwoSampleTest,
    two_sample_test,
)
from pyro_fcr.evaluate.prediction import (
    InteractionScore,
    PrincipalComponents,
    cell_values,
    centroid_accuracy,
    energy_distance,
    interaction_r2,
    log_normalised,
    pearson_change,
    principal_components,
    profile,
    profiles,
    r2,
)
from pyro_fcr.evaluate.probes import (
    HSICTest,
    Separability,
    auc_within,
    balanced_accuracy_within,
    hsic_test,
    separability,
)
from pyro_fcr.evaluate.recovery import (
    kernel_r2,
    mcc,
    recovery,
)
from pyro_fcr.evaluate.references import ceiling, null_latents
from pyro_fcr.evaluate.sampling import (
    pooled_variances,
    sampled_profile,
)
from pyro_fcr.evaluate.targets import choose_targets, match_latents, score_targets

__all__ = [
    "Additive",
    "BASELINES",
    "Baseline",
    "Certificate",
    "CommonCorrelation",
    "ControlMean",
    "DCI",
    "DecoderOnly",
    "HSICTest",
    "InteractionScore",
    "KernelRidge",
    "LatentAdditive",
    "NearestCondition",
    "Noise",
    "PCAAdditive",
    "PrincipalComponents",
    "PriorReplicates",
    "PriorShift",
    "Ridge",
    "Separability",
    "Training",
    "TreatedMean",
    "TwoSampleTest",
    "auc_within",
    "balanced_accuracy_within",
    "bootstrap_prior",
    "ceiling",
    "cell_values",
    "centroid_accuracy",
    "choose_targets",
    "cluster_agreement",
    "common_correlation",
    "conformal_additive",
    "coverage",
    "dci",
    "de_genes",
    "de_pr_auc",
    "energy_distance",
    "half_profiles",
    "halve",
    "hsic_test",
    "inclusion_calibration",
    "interaction_contrasts",
    "interaction_r2",
    "interpolated_duplicate",
    "kernel_r2",
    "log_normalised",
    "match_latents",
    "mcc",
    "mig",
    "natural_parameters",
    "null_latents",
    "pearson_change",
    "pit_by_gene",
    "pooled_variances",
    "principal_components",
    "prior_shift",
    "profile",
    "profiles",
    "r2",
    "randomised_pit",
    "rank_certificate",
    "recovery",
    "restart_agreement",
    "sampled_profile",
    "sap",
    "sbc_ranks",
    "sbc_uniformity",
    "score_targets",
    "separability",
    "top_de_genes",
    "two_sample_test",
    "welch_t",
    "within_condition",
]
