"""The objective: an ELBO by site, with penalties as factors around the guide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyro_fcr.nn import (
    ConditionMap,
    ParallelMLP,
    Posteriors,
    in_cell_plate,
    latent_sites,
    marginal,
    parameters_unseen,
)
from pyro_fcr.penalties import Adversarial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pyro_fcr.data import Batch

__all__ = ["Objective", "ObservedHeads", "PenalisedGuide", "SiteELBO", "Terms", "Weighted"]


class Weighted(NamedTuple):
    """A penalty or a head with its weight, in nats per cell."""

    part: Any
    weight: float


class Terms(NamedTuple):
    """One evaluation of the objective, in nats per cell."""

    loss: Tensor
    """The scalar to be minimised."""

    sites: dict[str, Tensor]
    """Each site's unweighted contribution: log-densities, divergences (``kl.*``), penalties."""

    read: dict[str, dict[str, Tensor]]
    """What each penalty was handed, by its name and block, detached: critics learn from it."""


class PenalisedGuide(nn.Module):
    """A guide with penalties around it, each a ``pyro.factor``; swap the guide, keep the terms.

    A factor in a guide adds to the loss (``has_rsample=True``: its gradient reaches the
    encoders through the reparametrised draws). The factors stand outside the cell plate and
    carry ``weight · n_cells``, so that a weight means nats per cell of an ELBO summed over
    ``n_cells`` cells. The guide itself stays free of them: ``Predictive`` on it sees none.

    Parameters
    ----------
    guide
        Any guide called with a batch.
    penalties
        Penalty and weight by name.
    """

    def __init__(self, guide: Callable[[Batch], Any], penalties: Mapping[str, Weighted]) -> None:
        super().__init__()
        self.guide = guide
        # By position: a name may hold a column's name, which may hold a dot.
        self.parts = nn.ModuleList(w.part for w in penalties.values())
        self.weights = {name: w.weight for name, w in penalties.items()}
        self.ramp = 1.0
        self.read: dict[str, dict[str, Tensor]] = {}

    def forward(self, batch: Batch) -> None:
        """Sample the guide, then add one factor per penalty."""
        with poutine.trace() as capture:
            self.guide(batch)
        sites = latent_sites(capture.trace)
        draws = {name: site["value"] for name, site in sites.items()}
        for (name, weight), penalty in zip(self.weights.items(), self.parts, strict=True):
            if penalty.reads == "mean":
                # Cells' sites alone: a global's AutoGuide, a flow say, need not know its mean.
                z = {k: marginal(site).mean for k, site in sites.items() if in_cell_plate(site)}
            elif penalty.reads == "posterior":
                z = Posteriors({k: site for k, site in sites.items() if in_cell_plate(site)})
            else:
                z = draws
            if isinstance(penalty, Adversarial):
                self.read[name] = {block: value.detach() for block, value in z.items()}
            scale = self.ramp * weight * batch.n_cells
            pyro.factor(name, scale * penalty(z, batch), has_rsample=True)


class ObservedHeads(nn.Module):
    """A model with heads around it, each an observed site in the cell plate.

    Parameters
    ----------
    model
        Any model called with a batch.
    heads
        Head and weight by name.
    """

    def __init__(self, model: Callable[[Batch], Any], heads: Mapping[str, Weighted]) -> None:
        super().__init__()
        self.model = model
        self.parts = nn.ModuleList(w.part for w in heads.values())
        self.weights = {name: w.weight for name, w in heads.items()}

    def forward(self, batch: Batch) -> None:
        """Run the model, then observe each head's label."""
        with poutine.trace() as capture:
            self.model(batch)
        z = {name: site["value"] for name, site in latent_sites(capture.trace).items()}
        # A plate of its own: Pyro takes a plate's name once per trace, and the model has "cells".
        with pyro.plate("heads", batch.n_cells, subsample=batch.index):
            for (name, weight), head in zip(self.weights.items(), self.parts, strict=True):
                reading = head(z, batch)
                with poutine.scale(scale=weight), poutine.mask(mask=reading.mask):
                    pyro.sample(name, reading.distribution, obs=reading.value)


class SiteELBO(TraceMeanField_ELBO):
    """The mean-field ELBO, kept apart by site and without a host synchronisation.

    Its value is that of ``TraceMeanField_ELBO``: the divergence of a latent is analytic where
    one is registered for the pair and otherwise log q − log p at the draw. It differs where an
    AutoGuide transforms a constrained global: the stock objective forgets the Jacobian.

    Parameters
    ----------
    kl_weight
        Factor on the divergences of the latents in the cell plate (annealing). Both forms of
        divergence carry it.
    betas
        A further factor on a site's divergence, by its name; 1 for those not named.
    """

    def __init__(self, kl_weight: float = 1.0, betas: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.kl_weight, self.betas = kl_weight, dict(betas or {})
        self.prices: dict[str, float] = {}

    def site_terms(
        self, model: Callable[[Batch], Any], guide: Callable[[Batch], Any], batch: Batch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Return scaled log-densities, divergences and factors by site, and set the draws.

        Returns
        -------
        tuple of dict
            Observed sites' log-densities, latent sites' divergences, the guide's factors; all
            scalars summed over ``batch.n_cells`` cells.
        """
        with parameters_unseen():
            guide_trace = poutine.trace(guide).get_trace(batch)
            replayed = poutine.replay(model, trace=guide_trace)
            model_trace = poutine.trace(replayed).get_trace(batch)
        self.draws = {
            name: site["value"].detach() for name, site in latent_sites(guide_trace).items()
        }
        observed, divergences, factors = {}, {}, {}
        for name, site in model_trace.nodes.items():
            if site["type"] != "sample" or site_is_subsample(site):
                continue
            if site["is_observed"]:
                observed[name] = _log_prob_sum(site)
            else:
                divergences[name] = _divergence(guide_trace.nodes[name], site)
        for name, site in guide_trace.nodes.items():
            if site["type"] == "sample" and name not in model_trace.nodes:
                if site_is_factor(site):
                    factors[name] = _log_factor(site)
                elif not site_is_subsample(site):
                    factors[name] = _log_prob_sum(site)
        self.local_sites = {n for n in divergences if in_cell_plate(model_trace.nodes[n])}
        return observed, divergences, factors

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the negative ELBO, summed over ``batch.n_cells`` cells."""
        observed, divergences, factors = self.site_terms(model, guide, *args, **kwargs)
        return self.total(observed, divergences, factors)

    def total(
        self,
        observed: Mapping[str, Tensor],
        divergences: Mapping[str, Tensor],
        factors: Mapping[str, Tensor],
    ) -> Tensor:
        """Return −Σ log-densities + Σ weighted divergences + Σ factors."""
        loss = torch.stack([-value for value in observed.values()]).sum()
        for name, value in divergences.items():
            annealed = self.kl_weight if name in self.local_sites else 1.0
            fixed = self.betas.get(name, 1.0) * self.prices.get(name, 1.0)
            loss = loss + annealed * fixed * value
        for value in factors.values():
            loss = loss + value
        return loss


class Objective(nn.Module):
    """Model, guide, penalties and heads: everything that is trained, as one module.

    Parameters
    ----------
    model, guide
        Called with a batch.
    penalties, heads
        Weighted parts by site name.
    betas
        Factors on latent sites' divergences by name; 1 for those not named.
    priors
        By latent site: a prior's ``own_loss``, where it has one, joins the loss under the name
        ``prior.NAME``; the divergence of a site whose prior is not ``normalised`` goes by the
        name ``kl.NAME.unnormalised``, since with it the loss bounds no likelihood.
    priced
        Latent sites whose divergence carries the factor ``price`` of :meth:`forward`.
    """

    def __init__(
        self,
        model: nn.Module,
        guide: nn.Module,
        *,
        penalties: Mapping[str, Weighted],
        heads: Mapping[str, Weighted],
        betas: Mapping[str, float] | None = None,
        priors: Mapping[str, Any] | None = None,
        priced: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self.model = ObservedHeads(model, heads)
        own = dict(priors or {})
        self.own_losses = {k: prior.own_loss for k, prior in own.items() if _has_own(prior)}
        self.unnormalised = {k for k, prior in own.items() if not prior.normalised}
        self.guide = PenalisedGuide(guide, penalties)
        self.elbo = SiteELBO(betas=betas)
        self.priced = frozenset(priced)

    @property
    def critics(self) -> dict[str, Adversarial]:
        """The penalties that train a critic of their own, by name."""
        named = zip(self.guide.weights, self.guide.parts, strict=True)
        return {name: part for name, part in named if isinstance(part, Adversarial)}

    @property
    def heads(self) -> dict[str, Any]:
        """The heads by name."""
        return dict(zip(self.model.weights, self.model.parts, strict=True))

    @property
    def parts(self) -> list[Any]:
        """The penalties and heads."""
        return [*self.guide.parts, *self.model.parts]

    @property
    def weights(self) -> dict[str, float]:
        """The weight of every penalty and head, in nats per cell."""
        return {**self.guide.weights, **self.model.weights}

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return what the ELBO step trains: all parameters but the critics'."""
        critic = {id(p) for part in self.critics.values() for p in part.parameters()}
        return [p for p in self.parameters() if id(p) not in critic]

    def shrunk_parameters(self) -> list[nn.Parameter]:
        """Return what weight decay shrinks: networks' weight matrices and tables of conditions.

        Shrinking a table draws conditions together and interactions towards none. Biases,
        intercepts, gene-wise parameters and globals' posteriors are not shrunk.
        """
        critic = {id(p) for p in self.critic_parameters()}
        kinds = nn.Linear | ParallelMLP | ConditionMap
        networks = [m for m in self.modules() if isinstance(m, kinds)]
        found = {id(p): p for m in networks for p in m.parameters() if p.ndim > 1}
        return [p for key, p in found.items() if key not in critic]

    def critic_parameters(self) -> list[nn.Parameter]:
        """Return the critics' parameters."""
        return [p for part in self.critics.values() for p in part.parameters()]

    def forward(
        self, batch: Batch, *, kl_weight: float = 1.0, ramp: float = 1.0, price: float = 1.0
    ) -> Terms:
        """Evaluate the objective on a minibatch, in nats per cell.

        Parameters
        ----------
        batch
            B cells standing for ``batch.n_cells``.
        kl_weight
            Annealing factor of the cells' divergences, 0 to 1.
        ramp
            Annealing factor of the penalties, 0 to 1.
        price
            A further factor on the priced sites' divergences, at least 1.
        """
        self.elbo.kl_weight, self.guide.ramp = kl_weight, ramp
        self.elbo.prices = dict.fromkeys(self.priced, price)
        observed, divergences, factors = self.elbo.site_terms(self.model, self.guide, batch)
        loss = self.elbo.total(observed, divergences, factors) / batch.n_cells
        sites = {
            name: value.detach() / (self.model.weights.get(name, 1.0) * batch.n_cells)
            for name, value in observed.items()
        }
        for name, value in divergences.items():
            told = f"kl.{name}.unnormalised" if name in self.unnormalised else f"kl.{name}"
            sites[told] = value.detach() / batch.n_cells
        for name, own_loss in self.own_losses.items():
            value = own_loss(self.elbo.draws[name], batch).mean()
            loss = loss + value
            sites[f"prior.{name}"] = value.detach()
        for name, value in factors.items():
            scale = ramp * self.guide.weights.get(name, 1.0) * batch.n_cells
            sites[name] = _unscaled(value.detach(), scale)
        return Terms(loss, sites, self.guide.read)


def _has_own(prior: Any) -> bool:
    return callable(getattr(prior, "own_loss", None))


def _unscaled(value: Tensor, scale: Any) -> Tensor:
    # The scale is a tensor where the step is recorded: nobody may ask whether it is zero.
    if isinstance(scale, Tensor):
        return torch.where(scale > 0, value / scale, 0.0)
    return value / scale if scale else torch.zeros_like(value)


def _log_prob_sum(site: Any) -> Tensor:
    return dist.util.scale_and_mask(
        site["fn"].log_prob(site["value"]), scale=site["scale"], mask=site["mask"]
    ).sum()


def _log_factor(site: Any) -> Tensor:
    return site["fn"].log_factor.sum()


def _divergence(q: Any, p: Any) -> Tensor:
    try:
        # AutoGuides put a constrained global as a Delta that carries its transform's Jacobian as
        # a density; Pyro's divergence of a Delta forgets it.
        if isinstance(q["fn"], dist.Delta):
            raise NotImplementedError
        divergence = kl_divergence(q["fn"], p["fn"])
    except NotImplementedError:
        divergence = q["fn"].log_prob(q["value"]) - p["fn"].log_prob(q["value"])
    return dist.util.scale_and_mask(divergence, scale=p["scale"], mask=p["mask"]).sum()
