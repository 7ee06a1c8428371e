"""sVAE+: sparse mechanism shifts."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pyro_fcr.assembly import Declaration
from pyro_fcr.estimator import Estimator
from pyro_fcr.guides import Amortised
from pyro_fcr.nn import Block
from pyro_fcr.priors import SparseShift

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyro_fcr.data import Design

__all__ = ["SVAE"]


class SVAE(Estimator):
    r"""Every treatment shifts a few latents, and nothing else.

    ::

        treatment a ──> z ──> y (counts)
                        ^
               mask m_a, shift mu_a

    .. math::
        m_{aj} \sim \operatorname{Bernoulli}(1 / (1 + \lambda)),\quad
        z \mid a \sim N(m_a \odot \mu_a, I),\quad
        y \sim NB(\ell \cdot \operatorname{softmax} f(z), \theta)

    with :math:`\ell` the cell's library size (Lopez et al., CLeaR 2023, arXiv 2211.03553).
    Neither encoder nor decoder sees the treatment. The control is the origin, combinations add,
    doses scale. Which latents a treatment moves is asked with :meth:`targets`, what a latent does
    to genes with :meth:`gene_programs`.

    Parameters, raises: see :class:`~pyro_fcr.estimator.Estimator`. The schema needs ``treatment``
    and ``control``; a ``batch`` enters the decoder. One block, ``z`` (15). The prior's options are
    those of :class:`~pyro_fcr.priors.SparseShift`: ``priors={"z": SparseShift(sparsity=100)}``.

    Examples
    --------
    >>> import pyro_fcr as pf
    >>> adata = pf.simulate.sparse_shifts(n_treatments=6, n_per_treatment=30)
    >>> svae = pf.SVAE(adata, pf.Schema(treatment="treatment", control="control"))
    >>> history = svae.fit(max_epochs=1, progress=False)
    >>> svae.latents()["z"].shape
    (210, 15)
    """

    requires: ClassVar[tuple[str, ...]] = ("treatment", "control")

    @classmethod
    def declare(cls, design: Design, sizes: Mapping[str, int]) -> Declaration:
        """Return the one block and its sparse-shift prior.

        Parameters
        ----------
        design
            The experiment.
        sizes
            Latent dimensions that the user asked for, by block.
        """
        size = {"z": 15, **sizes}
        blocks = (Block("z", size["z"], frozenset({"treatment"})),)
        # Against a prior of fixed variance, shrunk encoders are shrunk shifts.
        return Declaration(
            blocks, {"z": SparseShift()}, guide=Amortised(width=256), most_weight_decay=0.125
        )
