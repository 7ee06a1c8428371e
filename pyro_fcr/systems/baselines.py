"""Baselines on the same skeleton: each a declaration, compared under the same verbs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_fcr.assembly import Declaration
from pyro_fcr.decoders import AdditiveDecoder, NetworkDecoder
from pyro_fcr.errors import SlotError, sentence
from pyro_fcr.estimator import Estimator
from pyro_fcr.guides import Amortised
from pyro_fcr.infer import Weighted
from pyro_fcr.nn import Block, check_labels
from pyro_fcr.penalties import Adversary, DensityRatioTC
from pyro_fcr.priors import Gaussian, Standard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyro_fcr.data import Design

__all__ = ["CPA", "IVAE", "VAE", "BetaVAE", "ConditionalVAE", "FactorVAE"]

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
        block = Block("z", sizes.get("z", SIZE), frozenset(_labels(design, parents, cls)))
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
        labels = _labels(design, parents, cls)
        return Declaration(
            (Block("z", sizes.get("z", SIZE)),),
            {"z": Standard()},
            decoder=NetworkDecoder(labels),
            guide=Amortised(labels=labels),
        )


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
        labels = _labels(design, parents, cls)
        block = Block("z_basal", sizes.get("z_basal", SIZE))
        terms = {
            f"z_basal_vs_{label}": Weighted(Adversary("z_basal", label), 1.0)
            for label in labels
            if Adversary.can_read(label, design)
        }
        decoder = AdditiveDecoder(labels)
        return Declaration((block,), {"z_basal": Standard()}, terms, decoder=decoder)


def _labels(
    design: Design, parents: Sequence[str] | None, system: type[Estimator]
) -> tuple[str, ...]:
    named = {"treatment": design.schema.treatment, "covariates": design.schema.covariates}
    given = [name for name, column in named.items() if column] if parents is None else parents
    where = f"{system.__name__}(parents=)"
    if not given:
        raise SlotError(
            sentence(
                f"{system.__name__} has no label to read",
                where=where,
                expected="'treatment', 'covariates' or 'batch'",
                got="none",
                hint="name their columns in the schema, or use VAE",
            )
        )
    return tuple(sorted(check_labels(given, design, where=where)))
