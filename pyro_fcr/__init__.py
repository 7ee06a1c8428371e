"""Factorised causal representations of single cells, in Pyro."""

from pyro_fcr import datasets, decoders, evaluate, guides, likelihoods, penalties, priors, simulate
from pyro_fcr.analysis import diagnostics, plots
from pyro_fcr.analysis.posterior import to_arviz
from pyro_fcr.analysis.stability import stability
from pyro_fcr.analysis.summary import summary
from pyro_fcr.data import Design, Schema, Split, splits, top_genes
from pyro_fcr.decoders import Decoder
from pyro_fcr.guides import Guide
from pyro_fcr.likelihoods import Likelihood
from pyro_fcr.loading import load
from pyro_fcr.nn import Block
from pyro_fcr.penalties import Penalty
from pyro_fcr.priors import Prior
from pyro_fcr.systems import (
    CPA,
    FCR,
    IVAE,
    SAMSVAE,
    SVAE,
    VAE,
    BetaVAE,
    ConditionalVAE,
    FactorVAE,
    InVAE,
)

__all__ = [
    "CPA",
    "FCR",
    "IVAE",
    "SAMSVAE",
    "SVAE",
    "VAE",
    "BetaVAE",
    "Block",
    "ConditionalVAE",
    "Decoder",
    "Design",
    "FactorVAE",
    "Guide",
    "InVAE",
    "Likelihood",
    "Penalty",
    "Prior",
    "Schema",
    "Split",
    "datasets",
    "decoders",
    "diagnostics",
    "evaluate",
    "guides",
    "likelihoods",
    "load",
    "penalties",
    "plots",
    "priors",
    "simulate",
    "splits",
    "stability",
    "summary",
    "to_arviz",
    "top_genes",
]
