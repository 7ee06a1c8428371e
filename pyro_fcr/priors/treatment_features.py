"""A prior that reads what treatments are, and so can speak of treatments without cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_fcr.nn import FeatureTable
from pyro_fcr.priors.gaussian import DiagonalGaussian

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyro_fcr.data import Design
    from pyro_fcr.nn import Block

__all__ = ["TreatmentFeatures"]


class TreatmentFeatures(DiagonalGaussian):
    r"""Diagonal Gaussian whose treatment effects are functions of the treatments' features.

    .. math:: m(t, x) = m_0 + a_x + \sum_k t_k \left(g(f_k) + h_x(f_k)\right)

    and log-scales alike, with :math:`f_k` the vector that ``Schema(treatment_features=...)``
    gives treatment k: a chemical fingerprint, an embedding of the perturbed gene. A treatment
    that has features but no cells can then be asked for by
    ``counterfactual(do={"treatment": ...})``. Combinations add, weighted by dose
    (:class:`~pyro_fcr.nn.FeatureTable`).

    Parameters
    ----------
    learn_scale
        Whether the scale varies with the condition; otherwise it is 1.
    hidden
        Widths of the hidden layers of g and h. Linear maps, the default, need fewer treatments
        to learn from.
    """

    def __init__(self, learn_scale: bool = True, hidden: Sequence[int] = ()) -> None:
        super().__init__()
        self.learn_scale, self.hidden = learn_scale, tuple(hidden)

    def bind(self, block: Block, design: Design) -> None:
        """Make the maps from features to means and log-scales."""
        self.table = FeatureTable(design, block.parents, self.start(block), hidden=self.hidden)
