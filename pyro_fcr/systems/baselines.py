"""Baselines on the same skeleton: each a declaration, compared under the same verbs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_fcr.assembly import Declaration
from pyro_fcr.decoders import NetworkDecoder
from pyro_fcr.estimator import Estimator
from pyro_fcr.guides import Amortised
from pyro_fcr.infer import Weighted
from pyro_fcr.nn import Block
from pyro_fcr.penalties import DensityRatioTC
from pyro_fcr.priors import Gaussian, Standard
from pyro_fcr.systems.labels import chosen_labels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyro_fcr.data import Design

__all__ = ["SIZE", "IVAE", "VAE", "BetaVAE", "ConditionalVAE", "FactorVAE"]

SIZE = 16
"""Latent dimensions of a baseline, as many as FCR's blocks have together."""


class VAE(Estimator):
    """z ~ N(0, I): no label enters, no intervention is known (Kingma & Welling, ICLR 2014).

    Parameters, raises: see :class:`~pyro_fcr.estimator.Estimator`. Block: ``z`` (16). The schema
    needs nothing; a batch it names enters the decoder.
    """

    @classmethod
    def declare(cls, design: Design, sizes: Mapping[str, int]) -> Declaration:
        """Return one block with a standard normal prior."""
        return Declaration((Block("z", sizes.get("z", SIZE)),), {"z": Standard()})


class BetaVAE(Estimator):
    """A VAE whose divergence counts ``beta`` times (Higgins et al., ICLR 2017).

    Parameters, raises: see :class:`VAE`. Option: ``beta`` (4), the factor.
    """

    @classmethod
    def declare(
        cls, design: Design, sizes: Mapping[str, int], *, beta: float = 4.0
    ) -> Declaration:
        """Return one block with a standard normal prior and a weighted divergence."""
        block = Block("z", sizes.get("z", SIZE))
        return Declaration((block,), {"z": Standard()}, betas={"z": beta})


class FactorVAE(Estimator):
    """A VAE whose components are to be independent of one another (Kim & Mnih, ICML 2018).

    The total correlation of the aggregate posterior, by a critic of shuffled draws, stands in
    the objective as ``total_correlation`` with weight 10; ``penalties=`` sets another.

    Parameters, raises: see :class:`VAE`, whose block it has; it needs two dimensions or more.
    """

    @classmethod
    def declare(cls, design: Design, sizes: Mapping[str, int]) -> Declaration:
        """Return one block with a standard normal prior and the penalty."""
        block = Block("z", sizes.get("z", SIZE))
        terms = {"total_correlation": Weighted(DensityRatioTC(between="components"), 10.0)}
        return Declaration((block,), {"z": Standard()}, terms)


class IVAE(Estimator):
    """z ~ N(m(labels), s(labels)²): the identifiable VAE (Khemakhem et al., AISTATS 2020).

    One block that reads every label: components are identified, if conditions are rich enough,
    but what is the treatment's and what the cell's own is not told apart. An intervention draws
    the whole cell anew.

    Parameters, raises: see :class:`~pyro_fcr.estimator.Estimator`. Block: ``z`` (16). Option:
    ``parents``, by default the treatment and the covariates that the schema names.
    """

    @classmethod
    def declare(
        cls,
        design: Design,
        sizes: Mapping[str, int],
        *,
        parents: Sequence[str] | None = None,
    ) -> Declaration:
        """Return one block with a conditional Gaussian prior."""
        block = Block(
            "z",
            sizes.get("z", SIZE),
            frozenset(chosen_labels(design, parents, system=cls.__name__)),
        )
        return Declaration((block,), {"z": Gaussian()}, aligned=("z",))


class ConditionalVAE(Estimator):
    """z ~ N(0, I) and labels beside it, in decoder and encoder (Sohn et al., NeurIPS 2015).

    What the labels explain need not stand in z. An intervention keeps z and decodes it with
    other labels.

    Parameters, raises: see :class:`~pyro_fcr.estimator.Estimator`. Block: ``z`` (16). Option:
    ``parents``, by default the treatment and the covariates that the schema names.
    """

    @classmethod
    def declare(
        cls,
        design: Design,
        sizes: Mapping[str, int],
        *,
        parents: Sequence[str] | None = None,
    ) -> Declaration:
        """Return one block, a decoder and encoders that read the labels."""
        labels = chosen_labels(design, parents, system=cls.__name__)
        return Declaration(
            (Block("z", sizes.get("z", SIZE)),),
            {"z": Standard()},
            decoder=NetworkDecoder(labels),
            guide=Amortised(labels=labels),
        )
