"""From a declaration to a bound model, guide and objective, every slot checked on two cells."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pyro_fcr import arguments
from pyro_fcr.analysis.draws import seeded
from pyro_fcr.decoders import Decoder, NetworkDecoder
from pyro_fcr.errors import NothingToTell, SlotError, sentence
from pyro_fcr.guides import Composed, Guide, check_coverage
from pyro_fcr.infer import Objective, Weighted
from pyro_fcr.infer.slots import check_decoded, check_distribution, check_priors, check_terms
from pyro_fcr.model import OBSERVATION, LatentModel, global_sites
from pyro_fcr.penalties import Head, Penalty
from pyro_fcr.priors import Prior

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyro_fcr.data import Batch, Design
    from pyro_fcr.likelihoods import GeneStatistics, Likelihood
    from pyro_fcr.nn import Block

__all__ = ["Declaration", "Recipe", "assemble"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Declaration:
    """What makes one system different from another.

    Parameters
    ----------
    blocks
        The latent blocks in decoding order.
    priors
        The default prior of each block.
    terms
        Penalties and heads by site name, each with its default weight in nats per cell; a
        weight of zero keeps a term available by name but out of the objective.
    aligned
        Blocks whose components, not only the block as a whole, are to be recovered: their gauge
        is fixed during training (:mod:`pyro_fcr.infer.gauge`).
    batch_in_decoder
        Whether the decoder reads the schema's batch where the user does not say; not so where a
        block is to hold it.
    decoder
        The default decoder.
    guide
        The default guide; ``None`` for label-free amortised encoders.
    betas
        Factors on the blocks' divergences, by block; 1 for those not named.
    most_weight_decay
        The default weight decay rises no higher, however few the cells.
    """

    blocks: tuple[Block, ...]
    priors: Mapping[str, Prior]
    terms: Mapping[str, Weighted] = field(default_factory=dict)
    aligned: tuple[str, ...] = ()
    batch_in_decoder: bool = True
    decoder: Decoder = field(default_factory=NetworkDecoder)
    guide: Any = None
    betas: Mapping[str, float] = field(default_factory=dict)
    most_weight_decay: float = 3.0


@dataclass(frozen=True)
class Recipe:
    """What the user chose beside the declaration; each part still unbound.

    Parameters
    ----------
    priors
        Priors that replace the declared ones, by block.
    guide
        A guide, or ``None`` for the declared one.
    decoder
        A decoder, or ``None`` for the declared one.
    likelihood
        The likelihood.
    penalties
        By site name: a weight for a declared term, or ``(part, weight)`` for a new one.
    hidden
        Widths of the decoder's hidden layers.
    batch_in_decoder
        Whether the technical batch enters the decoder; ``None`` leaves it to the system.
    options
        The system's own options, as :meth:`Estimator.declare` takes them.
    """

    priors: Mapping[str, Prior]
    guide: Any
    decoder: Decoder | None
    likelihood: Likelihood
    penalties: Mapping[str, Any]
    hidden: tuple[int, ...]
    batch_in_decoder: bool | None
    options: Mapping[str, Any] = field(default_factory=dict)


def assemble(
    declaration: Declaration,
    recipe: Recipe,
    design: Design,
    batch: Batch,
    genes: GeneStatistics,
    *,
    seed: int,
    check: bool = True,
) -> tuple[LatentModel, nn.Module, Objective]:
    """Build model, guide and objective with weights that depend on the seed alone.

    Parts are copied before they are bound, so that two models made of the same objects share
    nothing.

    Parameters
    ----------
    declaration
        The system.
    recipe
        The user's choices.
    design
        The experiment.
    batch
        A few cells; the slots are checked on them.
    genes
        Moments of the training data: encoders standardise by them, the decoder starts at them.
    check
        Whether to check the slots; not needed where the weights are about to be loaded.
    seed
        Governs the initial weights; the global random state is left as it was.

    Raises
    ------
    SlotError
        If a part does not fit its slot, naming the site.
    """
    blocks = declaration.blocks
    with seeded(seed):
        priors = _bound_priors(declaration, recipe, design)
        likelihood = copy.deepcopy(recipe.likelihood)
        likelihood.bind(design.n_genes)
        start = likelihood.start(genes.rate)
        decoder = _bound_decoder(declaration, recipe, design, start)
        model = LatentModel(blocks, priors=priors, decoder=decoder, likelihood=likelihood)
        if check:
            check_priors(blocks, model.priors, batch)
        _check_likelihood(model, design, batch, len(start))
        given = declaration.guide if recipe.guide is None else recipe.guide
        guide = _bound_guide(given, model, design, batch, genes, declaration.betas)
        for block in blocks:
            model.priors[block.name].meet(guide, genes.rate)
        if check:
            check_coverage(model, guide, batch)
        penalties, heads = _bound_terms(declaration, recipe, design)
        objective = Objective(
            model,
            guide,
            penalties=penalties,
            heads=heads,
            betas=declaration.betas,
            priors=dict(model.priors.items()),
            priced=[b.name for b in blocks if any(other.parents < b.parents for other in blocks)],
        )
        if check:
            check_terms(objective, batch)
    return model, guide, objective


def _check_likelihood(model: LatentModel, design: Design, batch: Batch, n_out: int) -> None:
    # In a fork: the weights made after the check are those made without it.
    with torch.no_grad(), torch.random.fork_rng():
        z = {block.name: model.priors[block.name](batch).sample() for block in model.blocks}
        check_decoded(model.decoder(torch.cat(list(z.values()), dim=-1), batch), len(batch), n_out)
        made = model.observation(z, batch)
        check_distribution(OBSERVATION, made, (len(batch),), (design.n_genes,))


def _bound_priors(declaration: Declaration, recipe: Recipe, design: Design) -> dict[str, Prior]:
    names = [block.name for block in declaration.blocks]
    for name, prior in recipe.priors.items():
        if name not in names or not isinstance(prior, Prior):
            raise SlotError(
                sentence(
                    f"no place for the prior of '{name}'",
                    where="priors=",
                    expected=f"a pyro_fcr.Prior for one of {names}",
                    got=f"a {type(prior).__name__} for '{name}'",
                    hint="subclass pyro_fcr.Prior and name one of the system's blocks",
                )
            )
    # One by one: a single object may stand for several blocks.
    chosen = {**declaration.priors, **recipe.priors}
    priors = {name: copy.deepcopy(prior) for name, prior in chosen.items()}
    for block in declaration.blocks:
        priors[block.name].bind(block, design)
    return priors


def _bound_decoder(
    declaration: Declaration, recipe: Recipe, design: Design, start: torch.Tensor
) -> Decoder:
    given = declaration.decoder if recipe.decoder is None else recipe.decoder
    if not isinstance(given, Decoder):
        raise SlotError(
            sentence(
                "no decoder",
                where="decoder=",
                expected="a pyro_fcr.Decoder",
                got=type(given).__name__,
                hint="subclass pyro_fcr.Decoder, or use one of pyro_fcr.decoders",
            )
        )
    decoder = copy.deepcopy(given)
    decoder.bind(
        declaration.blocks,
        design,
        start,
        hidden=recipe.hidden,
        with_batch=bool(recipe.batch_in_decoder),
    )
    return decoder


def _bound_guide(
    given: Any,
    model: LatentModel,
    design: Design,
    batch: Batch,
    genes: GeneStatistics,
    betas: Mapping[str, float],
) -> nn.Module:
    guide = copy.deepcopy(given)
    if guide is None or (isinstance(guide, Guide) and not isinstance(guide, Composed)):
        guide = Composed(locals=guide)
    if isinstance(guide, Guide):
        guide.bind(model.blocks, design, model.likelihood, genes)
        guide.bind_model(model, betas)
    if isinstance(guide, Composed):
        sites = guide.missing(global_sites(model, batch), batch)
        if sites:
            guide.bind_globals(model, sites)
    if not callable(guide):
        raise arguments.refused(
            given, where="guide=", expected="one of pf.guides, or a module called with a batch",
            hint="leave it out for amortised encoders",
        )  # fmt: skip
    # An AutoGuide makes its parameters at its first call; the optimiser must see them.
    with torch.no_grad():
        guide(batch)
    return guide


def _bound_terms(
    declaration: Declaration, recipe: Recipe, design: Design
) -> tuple[dict[str, Weighted], dict[str, Weighted]]:
    terms = dict(declaration.terms)
    for name, given in recipe.penalties.items():
        if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], Penalty | Head):
            part, weight = given
        elif name in terms and not isinstance(given, tuple):
            part, weight = terms[name].part, given
        else:
            raise SlotError(
                sentence(
                    f"no penalty is called '{name}'",
                    where="penalties=",
                    expected=f"a weight for one of {sorted(terms)}, or (penalty, weight)",
                    got=repr(given),
                    hint="give a penalty of your own as (penalty, weight)",
                )
            )
        where = f"penalties={{{name!r}: }}"
        terms[name] = Weighted(part, arguments.number(weight, where, least=0, hint="0 is off"))
    active = {}
    for name, (part, weight) in terms.items():
        if not weight:
            continue
        part = copy.deepcopy(part)
        try:
            part.bind(declaration.blocks, design)
        except NothingToTell as error:
            # Asked for by the user it is refused; the system's own has nothing to do.
            if name in recipe.penalties:
                raise
            log.info("%s is left out: %s", name, error)
            continue
        active[name] = Weighted(part, weight)
    return (
        {name: term for name, term in active.items() if isinstance(term.part, Penalty)},
        {name: term for name, term in active.items() if isinstance(term.part, Head)},
    )
