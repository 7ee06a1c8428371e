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

INDEPENDENCE = 10.0
"""Weight of each conditional independence, in nats per cell; see ``benchmarks/EXPERIMENTS.md``."""


class FCR(Estimator):
    r"""What a cell is, what a treatment does to any cell, and what it does to this kind alone.

    ::

        covariates x ──> z_x ───┐
              └───────┐         │
                      z_tx ─────┼──> y (counts)
              ┌───────┘         │
        treatment t ──> z_t ────┘

    .. math::
        z_x \sim N(m(x), s(x)^2),\quad z_t \sim N(m(t), s(t)^2),\quad
        z_{tx} \sim N(m(t, x), s(t, x)^2),\quad
        y \sim NB(\ell \cdot \operatorname{softmax} f(z_x, z_t, z_{tx}), \theta)

    with all means and scales learned and :math:`\ell` the cell's library size (Mao et al.,
    NeurIPS 2024, arXiv 2410.22472). The graph implies independences that an ELBO alone leaves
    to chance; two of them stand in the objective by default: z_x ⊥ t | x and z_t ⊥ x | t. The
    paper's own terms are there by name with weight zero: ``z_x_vs_z_tx`` and ``z_t_vs_z_tx``
    (permutation discriminators), ``covariate_head`` and ``treatment_head``. Switch them on with
    ``penalties={"z_x_vs_z_tx": 1.0}``.

    z_tx is identified component by component, z_x and z_t as blocks, if the design has enough
    conditions: (T − 1)(X − 1) ≥ 2 · size of z_tx for T treatments (the control among them) and X
    covariate groups. :meth:`certificate` tells whether the interactions that were learned reach
    every direction.

    Parameters, raises: see :class:`~pyro_fcr.estimator.Estimator`. The schema needs
    ``treatment``, ``control`` and ``covariates``. Blocks: ``z_x`` (8), ``z_t`` (4), ``z_tx`` (at
    most 4, and no more than the design can identify).

    Examples
    --------
    >>> import pyro_fcr as pf
    >>> adata = pf.simulate.factorised(n_per_condition=20, n_genes=50)
    >>> schema = pf.Schema(treatment="treatment", control="control", covariates="covariate")
    >>> fcr = pf.FCR(adata, schema)
    >>> history = fcr.fit(max_epochs=1, progress=False)
    >>> sorted(fcr.latents())
    ['z_t', 'z_tx', 'z_x']
    """

    requires: ClassVar[tuple[str, ...]] = ("treatment", "control", "covariates")

    @classmethod
    def declare(cls, design: Design, sizes: Mapping[str, int]) -> Declaration:
        """Return the three blocks, their conditional Gaussian priors and the terms.

        Parameters
        ----------
        design
            The experiment.
        sizes
            Latent dimensions that the user asked for, by block.
        """
        interaction = max(1, min(4, design.largest_interaction_size))
        size = {"z_x": 8, "z_t": 4, "z_tx": interaction, **sizes}
        blocks = (
            Block("z_x", size["z_x"], frozenset({"covariates"})),
            Block("z_t", size["z_t"], frozenset({"treatment"})),
            Block("z_tx", size["z_tx"], frozenset({"treatment", "covariates"})),
        )
        design.check_interaction_size(size["z_tx"])
        terms = {
            "z_x_vs_z_tx": Weighted(
                PermutationDiscriminator("z_x", "z_tx", given="covariates"), 0.0
            ),
            "z_t_vs_z_tx": Weighted(
                PermutationDiscriminator("z_t", "z_tx", given="treatment"), 0.0
            ),
            "covariate_head": Weighted(CovariateHead("z_x"), 0.0),
            "treatment_head": Weighted(TreatmentHead(("z_t", "z_tx")), 0.0),
        }
        # Given all covariates at once: given one, treatments may still differ in the others.
        terms["z_x_vs_treatment"] = Weighted(
            ConditionalHSIC("z_x", "treatment", given="covariates"), INDEPENDENCE
        )
        for x in design.covariates:
            terms[f"z_t_vs_{x}"] = Weighted(
                ConditionalHSIC("z_t", x, given="treatment"), INDEPENDENCE
            )
        priors = {block.name: Gaussian() for block in blocks}
        return Declaration(blocks, priors, terms, aligned=("z_tx",))
