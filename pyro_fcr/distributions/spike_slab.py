"""The posterior of sparse effects in closed form."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import gamma
from torch import Tensor

__all__ = ["SpikeSlab", "spike_and_slab"]

START = 10.0
"""Sparsity that learning starts from."""

SWEEPS = 30

FREEDOM = 4.0
"""Degrees of freedom of the discrepancies: what is wrong in a network is seldom Gaussian."""

MEDIAN_NORMAL, MEDIAN_T = 0.6745, 0.7407
"""Medians of the absolute values of a standard normal and of Student's t with 4 degrees."""

N_SCALES = 64

MOMENT = 3.0
"""Mean square of an effect under the moment prior, in units of σ²."""


class SpikeSlab(NamedTuple):
    """The factorised posterior of effects that are zero or of some size."""

    logits_td: Tensor
    """Log-odds of an effect not being zero."""

    loc_td: Tensor
    """Mean of an effect that is not zero."""

    scale_td: Tensor
    """Its standard deviation."""

    sparsity: Tensor
    """Scalar: prior odds against an effect."""

    slab: Tensor
    """Scalar: prior root mean square of an effect that is not zero."""

    discrepancy: Tensor
    """Scalar: spread of null effects beyond their standard errors."""


def spike_and_slab(
    gram_tt: Tensor,
    cross_td: Tensor,
    information_d: Tensor,
    sparsity: float | None = None,
    *,
    known: tuple[Tensor, Tensor, Tensor] | None = None,
) -> SpikeSlab:
    r"""Return the posterior of spike-and-slab effects in d regressions with unit noise.

    An effect is zero or has the moment prior :math:`p(\mu) \propto \mu^2 N(\mu; 0, \sigma^2)`,
    which says that effects worth the name are not small (Johnson & Rossell, JRSS B 2010). For the
    effect of regressor a with :math:`n_a` cells' worth of doses and :math:`\bar z_a` what
    the other regressors leave of its least-squares estimate,

    .. math::
        \nu = \frac{1}{n_a\, i} + \omega^2,\quad s^2 = (1/\nu + 1/\sigma^2)^{-1},\quad
        \mu = s^2 \bar z_a / \nu,\quad
        \frac{\phi}{1 - \phi} = \frac{N(\bar z_a;\, 0,\, \nu + \sigma^2)\,(\mu^2 + s^2) / \sigma^2}
        {\lambda\, [N(0,\, 1 / n_a i) * t_4(0,\, \omega)](\bar z_a)}

    iterated over regressors (Carbonetto & Stephens, Bayesian Analysis 2012). σ and λ, which
    never falls below 1, are learned by expectation maximisation. The discrepancy ω, the spread of
    effects that are null but for an imperfect measurement, is read off the median effect: most
    are null (an empirical null: Efron, JASA 2004). It has the tails of Student's t, and is a
    mixture of Gaussians here.

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
    known
        λ, root mean square and ω where they are known; nothing is learned then.

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
    spread = effect.abs().median() / MEDIAN_NORMAL
    omega = (spread.square() - noise.mean()).clamp_min(0.0) * (MEDIAN_NORMAL / MEDIAN_T) ** 2
    slab = effect.square().mean() + 1e-2
    odds = effect.new_tensor(START if sparsity is None else sparsity)
    if known is not None:
        odds, rms, omega = (value.to(effect) for value in known)
        slab, omega = rms**2 / MOMENT, omega**2
    expected, logits = effect.clone(), torch.zeros_like(effect)
    for _ in range(SWEEPS):
        nu = noise + omega
        variance = 1 / (1 / nu + 1 / slab)
        for a in range(len(gram)):
            effect[a] = (cross[a] - gram[a] @ expected) / count[a] + expected[a]
            mean = variance[a] / nu[a] * effect[a]
            real = _log_normal(effect[a], nu[a] + slab)
            real = real + ((mean.square() + variance[a]) / slab).log()
            logits[a] = real - _log_null(effect[a], noise[a], omega) - odds.log()
            expected[a] = torch.sigmoid(logits[a]) * mean
        loc = variance / nu * effect
        if known is not None:
            continue
        on = torch.sigmoid(logits)
        slab = ((on * (loc.square() + variance)).sum() / MOMENT + 1.0) / (on.sum() + 1.0)
        if sparsity is None:
            odds = ((1 - on).sum() / (on.sum() + 1.0)).clamp_min(1.0)
    rms = (MOMENT * slab).sqrt()
    out = SpikeSlab(
        (-odds.log()).expand(cross_td.shape).clone(),
        torch.zeros_like(cross_td),
        rms.expand(cross_td.shape).clone(),
        odds,
        rms,
        omega.sqrt(),
    )
    out.logits_td[seen], out.loc_td[seen] = logits, loc
    out.scale_td[seen] = variance.sqrt().expand_as(loc)
    return out


def _log_normal(value: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * (value.square() / variance + (2 * math.pi * variance).log())


@cache
def _precisions() -> Tensor:
    # Student's t is a Gaussian whose precision is Gamma(freedom / 2, freedom / 2).
    shares = (np.arange(N_SCALES) + 0.5) / N_SCALES
    return torch.from_numpy(gamma.ppf(shares, FREEDOM / 2, scale=2 / FREEDOM))


def _log_null(value: Tensor, noise: Tensor, omega: Tensor) -> Tensor:
    wider = noise.unsqueeze(-1) + omega / _precisions().to(omega)
    density = _log_normal(value.unsqueeze(-1), wider)
    return density.logsumexp(-1) - math.log(N_SCALES)
