"""The posterior of sparse effects in closed form."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["SpikeSlab", "spike_and_slab"]

START = 10.0
"""Sparsity that learning starts from."""

SWEEPS = 50


class SpikeSlab(NamedTuple):
    """The factorised posterior of effects that are zero or Gaussian."""

    logits_td: Tensor
    """Log-odds of an effect not being zero."""

    loc_td: Tensor
    """Mean of an effect that is not zero."""

    scale_td: Tensor
    """Its standard deviation."""

    sparsity: Tensor
    """Scalar: prior odds against an effect."""

    slab: Tensor
    """Scalar: prior scale of an effect."""

    discrepancy: Tensor
    """Scalar: spread of null effects beyond their standard errors."""


def spike_and_slab(
    gram_tt: Tensor, cross_td: Tensor, information_d: Tensor, sparsity: float | None = None
) -> SpikeSlab:
    r"""Return the posterior of spike-and-slab effects in d regressions with unit noise.

    For the effect of regressor a with :math:`n_a` cells' worth of doses and :math:`\bar z_a` what
    the other regressors leave of its least-squares estimate,

    .. math::
        \nu = \frac{1}{n_a\, i} + \omega^2,\quad s^2 = (1/\nu + 1/\sigma^2)^{-1},\quad
        \mu = s^2 \bar z_a / \nu,\quad
        \log\frac{\phi}{1 - \phi} = -\log\lambda + \log\frac{s}{\sigma} + \frac{\mu^2}{2 s^2}

    iterated over regressors (Carbonetto & Stephens, Bayesian Analysis 2012). σ, λ and the
    discrepancy ω, the spread of effects that are null but for an imperfect measurement, are
    learned by expectation maximisation (the empirical null of Efron, JASA 2004); λ never falls
    below 1.

    Parameters
    ----------
    gram_tt
        Shape (T, T), float64: :math:`X^\top X`.
    cross_td
        Shape (T, d), float64: :math:`X^\top Z`.
    information_d
        Shape (d,): share i of the information that a cell carries of its z, at most 1.
    sparsity
        λ; learned by default.

    Examples
    --------
    >>> gram, cross = 100 * torch.eye(2).double(), torch.tensor([[500.0], [1.0]]).double()
    >>> found = spike_and_slab(gram, cross, torch.ones(1), sparsity=9.0)
    >>> (found.logits_td > 0).flatten().tolist()
    [True, False]
    """
    n = gram_tt.diagonal()[:, None]
    seen = gram_tt.diagonal() > 0
    gram, cross, count = gram_tt[seen][:, seen], cross_td[seen], n[seen]
    noise = 1 / (count * information_d)
    effect = torch.linalg.solve(gram + torch.eye(len(gram), dtype=gram.dtype), cross)
    # Most effects are null: the median tells how they spread.
    spread = effect.abs().median() / 0.6745
    omega = (spread.square() - noise.mean()).clamp_min(0.0)
    slab = 4 * effect.square().mean() + 1e-2
    odds = effect.new_tensor(START if sparsity is None else sparsity)
    expected = effect.clone()
    for _ in range(SWEEPS):
        nu = noise + omega
        variance = 1 / (1 / nu + 1 / slab)
        offset = 0.5 * (variance / slab).log() - odds.log()
        for a in range(len(gram)):
            effect[a] = (cross[a] - gram[a] @ expected) / count[a] + expected[a]
            mean = variance[a] / nu[a] * effect[a]
            expected[a] = torch.sigmoid(offset[a] + mean.square() / (2 * variance[a])) * mean
        loc = variance / nu * effect
        logits = offset + loc.square() / (2 * variance)
        on = torch.sigmoid(logits)
        slab = ((on * (loc.square() + variance)).sum() + 1.0) / (on.sum() + 1.0)
        null = ((1 - on) * (effect.square() - noise)).sum() / ((1 - on).sum() + 1.0)
        omega = null.clamp_min(0.0)
        if sparsity is None:
            odds = ((1 - on).sum() / (on.sum() + 1.0)).clamp_min(1.0)
    out = SpikeSlab(
        (-odds.log()).expand(cross_td.shape).clone(),
        torch.zeros_like(cross_td),
        slab.sqrt().expand(cross_td.shape).clone(),
        odds,
        slab.sqrt(),
        omega.sqrt(),
    )
    out.logits_td[seen], out.loc_td[seen] = logits, loc
    out.scale_td[seen] = variance.sqrt().expand_as(loc)
    return out
