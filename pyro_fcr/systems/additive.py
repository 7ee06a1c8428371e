"""Baselines in which the effects of labels are added to the latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_fcr.assembly import Declaration
from pyro_fcr.decoders import AdditiveDecoder
from pyro_fcr.estimator import Estimator
from pyro_fcr.infer import Weighted
from pyro_fcr.nn import Block
from pyro_fcr.penalties import Adversary
from pyro_fcr.priors import Standard
from pyro_fcr.systems.baselines import SIZE
from pyro_fcr.systems.labels import chosen_labels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyro_fcr.data import Design

__all__ = ["CPA"]


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
            f"z_basal_vs_{label}": Weighted(Adversary("z_basal", label), 1.0)
            for label in labels
            if Adversary.can_read(label, design)
        }
        decoder = AdditiveDecoder(labels)
        return Declaration((block,), {"z_basal": Standard()}, terms, decoder=decoder)
