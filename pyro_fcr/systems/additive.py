"""Baselines in which the effects of labels are added to the latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pyro_fcr.assembly import Declaration
from pyro_fcr.decoders import AdditiveDecoder
from pyro_fcr.estimator import Estimator
from pyro_fcr.guides import Amortised
from pyro_fcr.infer import Weighted
from pyro_fcr.nn import Block
from pyro_fcr.penalties import Adversary
from pyro_fcr.priors import SparseShift, Standard
from pyro_fcr.systems.baselines import SIZE
from pyro_fcr.systems.labels import chosen_labels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyro_fcr.data import Design

__all__ = ["CPA", "SAMSVAE"]


class CPA(Estimator):
    """z_basal ~ N(0, I), to which treatments and covariates are added (Lotfollahi et al. 2023).

    The compositional perturbation autoencoder, as a VAE: doses scale an effect, the parts of a
    combination add, a control has none. An intervention keeps z_basal, which therefore must not
    tell the labels: an adversary for each, ``z_basal_vs_LABEL``, works against that.

    Parameters, raises: see :class:`~pyro_fcr.estimator.Estimator`. Block: ``z_basal`` (16).
    Option: ``parents``, by default the treatment and the covariates that the schema names.
    """

    @classmethod
    def declare(
        cls,
        design: Design,
        sizes: Mapping[str, int],
        *,
        parents: Sequence[str] | None = None,
    ) -> Declaration:
        """Return one block and a decoder that adds the labels' effects to it."""
        labels = chosen_labels(design, parents, system=cls.__name__)
        block = Block("z_basal", sizes.get("z_basal", SIZE))
        terms = {
            f"z_basal_vs_{label}": Weighted(Adversary("z_basal", label), 1.0) for label in labels
        }
        decoder = AdditiveDecoder(labels)
        return Declaration((block,), {"z_basal": Standard()}, terms, decoder=decoder)


class SAMSVAE(Estimator):
    """z_basal ~ N(0, I), to which each treatment adds mask times effect (Bereket & Karaletsos).

    The sparse additive mechanism shift VAE (NeurIPS 2023): masks are Bernoulli, effects Gaussian,
    both with posteriors of their own, and the parts of a combination add. An intervention keeps
    z_basal.

    Parameters, raises: see :class:`~pyro_fcr.estimator.Estimator`. The schema needs
    ``treatment`` and ``control``. Block: ``z_basal`` (16). Option: ``sparsity`` (10), the prior
    odds against each target.
    """

    requires: ClassVar[tuple[str, ...]] = ("treatment", "control")

    @classmethod
    def declare(
        cls, design: Design, sizes: Mapping[str, int], *, sparsity: float = 10.0
    ) -> Declaration:
        """Return one block and a decoder that adds masked effects to it."""
        block = Block("z_basal", sizes.get("z_basal", SIZE))
        decoder = AdditiveDecoder((), effects=SparseShift(sparsity=sparsity))
        guide = Amortised(labels=("treatment",))
        return Declaration((block,), {"z_basal": Standard()}, decoder=decoder, guide=guide)
