"""FCR's training step in plain torch, without Pyro: what the probabilistic language costs.

It takes its weights and its condition tables from a fitted-up model and repeats its objective by
hand: no traces, no plates, no sites. The count density, the HSIC criterion and what the encoders
read, which hold no Pyro, are the package's own. `check` says how far its loss is from the
objective's on the same draws.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from pyro_fcr.distributions import SharedNegativeBinomial
from pyro_fcr.penalties import match_controls, permute_within

if TYPE_CHECKING:
    import pyro_fcr as pf
    from pyro_fcr.data import Batch

BLOCKS = ("z_x", "z_t", "z_tx")


class PlainFCR(nn.Module):
    """The default FCR, with discriminators and heads where the model has them."""

    def __init__(self, model: pf.FCR) -> None:
        super().__init__()
        objective = copy.deepcopy(model._objective)
        guide, generative = objective.guide.guide.locals, objective.model.model
        self.features, self.encoders = guide.features, guide.encoders
        self.tables = nn.ModuleList(generative.priors[name].table for name in BLOCKS)
        self.linear = generative.decoder.linear
        self.network = generative.decoder.network
        self.log_dispersion = nn.Parameter(generative.likelihood.log_dispersion.detach().clone())
        parts = dict(zip(objective.guide.weights, objective.guide.parts, strict=True))
        heads = dict(zip(objective.model.weights, objective.model.parts, strict=True))
        self.weights = model._objective.weights
        self.dependence = [(n, p) for n, p in parts.items() if p.reads == "mean"]
        names = ("z_x_vs_z_tx", "z_t_vs_z_tx")
        self.critics = nn.ModuleList(parts[n].critic for n in names if n in parts)
        names = ("covariate_head", "treatment_head")
        self.heads = nn.ModuleList(heads[n].classifier for n in names if n in heads)
        self.groups = (generative.priors["z_x"].table.n_levels[0], model.design.n_treatment_levels)

    def pairs(self, z: dict[str, Any], batch: Batch, k: int, right: Any) -> Any:
        """Return what a critic reads."""
        group = (batch.covariate_id, batch.treatment_id)[k]
        given = F.one_hot(group, self.groups[k]).float()
        return torch.cat([z[BLOCKS[k]], right, given], dim=-1)

    def loss(self, batch: Batch) -> tuple[Any, dict[str, Any]]:
        """Return the loss in nats per cell, and the draws."""
        outputs = self.encoders(self.features(batch))
        n, z, means, loss = len(batch), {}, {}, 0.0
        for name, out, table in zip(BLOCKS, outputs, self.tables, strict=True):
            loc, raw = out.chunk(2, dim=-1)
            sd = torch.exp(4.0 * torch.tanh(raw / 4.0))
            z[name] = loc + sd * torch.normal(torch.zeros_like(loc), torch.ones_like(loc))
            means[name] = loc
            m, raw_p = table(batch).chunk(2, dim=-1)
            s = torch.exp(3.0 * torch.tanh(raw_p / 3.0))
            ratio = (sd / s).square()
            loss = loss + 0.5 * (ratio + ((loc - m) / s).square() - 1 - ratio.log()).sum() / n
        for name, part in self.dependence:
            loss = loss + self.weights[name] * type(part).forward(part, means, batch)
        for k, critic in enumerate(self.critics):
            weight = self.weights[("z_x_vs_z_tx", "z_t_vs_z_tx")[k]]
            loss = loss + weight * critic(self.pairs(z, batch, k, z["z_tx"])).mean()
        latents = torch.cat(list(z.values()), dim=-1)
        logits, log_theta = self.network(latents, beside=self.linear), self.log_dispersion
        counts = SharedNegativeBinomial(
            logits, batch.library.log(), log_theta.clamp(-8, 12), validate_args=False
        )
        loss = loss - counts.log_prob(batch.counts).sum() / n
        if self.heads:
            covariate, treatment = self.heads
            loss = loss + F.cross_entropy(covariate(z["z_x"]), batch.covariate_id)
            control = match_controls(batch)
            effects = torch.cat([z["z_t"], z["z_tx"]], dim=-1)
            logits = treatment(effects - effects[control.clamp_min(0)])
            each = F.cross_entropy(logits, batch.treatment_id, reduction="none")
            loss = loss + (each * (control >= 0)).sum() / n
        return loss, z

    def critic_loss(self, z: dict[str, Any], batch: Batch) -> Any:
        """Return the critics' loss on detached draws."""
        z = {name: value.detach() for name, value in z.items()}
        total = 0.0
        for k, critic in enumerate(self.critics):
            group = (batch.covariate_id, batch.treatment_id)[k]
            permuted = z["z_tx"][permute_within(group)]
            both = [self.pairs(z, batch, k, right) for right in (z["z_tx"], permuted)]
            real, fake = critic(torch.cat(both)).squeeze(-1).chunk(2)
            total = total + F.softplus(-real).mean() + F.softplus(fake).mean()
        return total


class PlainTrainer:
    """The loop's body by hand: step, clip, critics."""

    def __init__(self, model: pf.FCR) -> None:
        self.plain = PlainFCR(model)
        self.critic = list(self.plain.critics.parameters())
        own = {id(p) for p in self.critic}
        self.others = [p for p in self.plain.parameters() if id(p) not in own]
        self.optimiser = torch.optim.AdamW(
            self.others, lr=5e-3, betas=(0.9, 0.99), fused=True, weight_decay=0.1
        )
        if self.critic:
            self.critic_optimiser = torch.optim.Adam(self.critic, lr=1e-3, fused=True)

    def step(self, batch: Batch) -> None:
        """Take one step."""
        self.plain.critics.requires_grad_(False)
        loss, z = self.plain.loss(batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.others, 200.0)
        if not torch.isfinite(norm + loss.detach()):
            raise FloatingPointError("not finite")
        self.optimiser.step()
        if self.critic:
            self.plain.critics.requires_grad_(True)
            self.critic_optimiser.zero_grad(set_to_none=True)
            self.plain.critic_loss(z, batch).backward()
            self.critic_optimiser.step()


def check(model: pf.FCR, batch: Batch) -> float:
    """Return the relative difference of the losses on the same draws."""
    plain = PlainFCR(model)
    torch.manual_seed(0)
    theirs, _ = plain.loss(batch.replace(n_cells=len(batch)))
    torch.manual_seed(0)
    ours = model._objective(batch.replace(n_cells=len(batch))).loss
    return abs(float(ours.detach() / theirs.detach()) - 1)
