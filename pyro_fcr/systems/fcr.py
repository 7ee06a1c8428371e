"""FCR: factorised causal representations of treated cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pyro_fcr.assembly import Declaration
from pyro_fcr.estimator import Estimator
from pyro_fcr.infer import Weighted
from pyro_fcr.nn import Block
from pyro_fcr.penalties import (
    ConditionalHSIC,
    CovariateHead,
    PermutationDiscriminator,
    TreatmentHead,
)
from pyro_fcr.priors import Gaussian

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyro_fcr.data import Design

__all__ = ["FCR"]


class FCR(Estimator):
    """Factorised causal representations."""

    requires: ClassVar[tuple[str, ...]] = ("treatment", "control", "covariates")

    @classmethod
    def declare(cls, design: Design, sizes: Mapping[str, int]) -> Declaration:
        """Return the three blocks, their conditional Gaussian priors and the terms."""
        size = {"z_x": 8, "z_t": 4, "z_tx": max(1, min(4, design.largest_interaction_size))}
        size |= sizes
        parents = {
            "z_x": {"covariates"},
            "z_t": {"treatment"},
            "z_tx": {"treatment", "covariates"},
        }
        blocks = tuple(Block(k, size[k], frozenset(p)) for k, p in parents.items())
        design.check_interaction_size(size["z_tx"])
        return Declaration(
            blocks=blocks,
            priors={block.name: Gaussian() for block in blocks},
            terms={
                "z_x_vs_treatment": Weighted(
                    ConditionalHSIC("z_x", "treatment", given="covariates"), 10.0
                ),
                "z_t_vs_covariates": Weighted(
                    ConditionalHSIC("z_t", "covariates", given="treatment"), 10.0
                ),
                "z_x_vs_z_tx": Weighted(
                    PermutationDiscriminator("z_x", "z_tx", given="covariates"), 0.0
                ),
                "z_t_vs_z_tx": Weighted(
                    PermutationDiscriminator("z_t", "z_tx", given="treatment"), 0.0
                ),
                "covariate_head": Weighted(CovariateHead("z_x"), 0.0),
                "treatment_head": Weighted(TreatmentHead(("z_t", "z_tx")), 0.0),
            },
        )
