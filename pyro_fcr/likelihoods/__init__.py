"""Likelihoods, by object or by name."""

from pyro_fcr.errors import SlotError, sentence
from pyro_fcr.likelihoods.base import Likelihood, log_mean_counts
from pyro_fcr.likelihoods.counts import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from pyro_fcr.likelihoods.normal import Normal
from pyro_fcr.likelihoods.statistics import GeneStatistics, gene_statistics

__all__ = [
    "GeneStatistics",
    "Likelihood",
    "NegativeBinomial",
    "Normal",
    "Poisson",
    "ZeroInflatedNegativeBinomial",
    "gene_statistics",
    "log_mean_counts",
    "resolve",
]

NAMES: dict[str, type[Likelihood]] = {
    "nb": NegativeBinomial,
    "zinb": ZeroInflatedNegativeBinomial,
    "poisson": Poisson,
    "normal": Normal,
}


def resolve(likelihood: str | Likelihood) -> Likelihood:
    """Return a likelihood from its short name, or the object itself.

    Raises
    ------
    SlotError
        If the name is unknown or the object is no :class:`Likelihood`.
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if isinstance(likelihood, str) and likelihood in NAMES:
        return NAMES[likelihood]()
    raise SlotError(
        sentence(
            "unknown likelihood",
            where="likelihood=",
            expected=f"one of {sorted(NAMES)} or a Likelihood object",
            got=repr(likelihood),
            hint="subclass pyro_fcr.Likelihood for one of your own",
        )
    )
