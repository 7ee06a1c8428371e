"""Count likelihoods in float32 where depth, logits and dispersion are at their extremes."""

import itertools
import math

import mpmath
import pytest
import torch
from tiny import labelled

from pyro_fcr.likelihoods import resolve

LIBRARIES = (1.0, 50.0, 2e4, 1e7)
GAPS = (0.0, 3.0, 40.0, -40.0, 120.0)
"""Difference of two genes' logits; at 120 the rarer one has e^-120 of the cell."""
LOG_THETAS = (-8.0, 0.0, 12.0)
COUNTS = (0.0, 1.0, 15.0, 16.0, 17.0, 900.0, 1e5)
GATES = (-40.0, -3.0, 0.0, 30.0)
EPS = torch.finfo(torch.float32).eps


def log_mean(library, gap):
    """Of the first of two genes."""
    return mpmath.log(library) - mpmath.log1p(mpmath.exp(-mpmath.mpf(gap)))


def nb(y, m, t):
    mu, theta = mpmath.exp(m), mpmath.exp(t)
    return (
        mpmath.loggamma(y + theta) - mpmath.loggamma(theta) - mpmath.loggamma(y + 1)
        + y * (m - mpmath.log(mu + theta)) + theta * (t - mpmath.log(mu + theta))
    )  # fmt: skip


def nb_size(y, m, t):
    """Size of the terms whose difference the density is: what rounding is relative to."""
    theta = mpmath.exp(t)
    gammas = theta * abs(t) + y * mpmath.log(y + theta + 1) if y else 0
    return float(abs(nb(y, m, t)) + y * abs(m - t) + gammas + theta * math.exp(min(0, m - t)))


def zinb(y, m, t, g):
    present = nb(y, m, t) - mpmath.log1p(mpmath.exp(g))
    if y:
        return present
    structural = -mpmath.log1p(mpmath.exp(-g))
    return mpmath.log(mpmath.exp(present) + mpmath.exp(structural))


def poisson(y, m):
    return y * m - mpmath.exp(m) - mpmath.loggamma(y + 1)


def made(name, library, gap, y, log_theta=None, gate=None):
    """The density of one gene's count as a fitted model evaluates it, and what it depends on.

    The second gene has no count; its own term is taken away.
    """
    likelihood = resolve(name)
    likelihood.bind(2)
    decoded = torch.tensor([[gap, 0.0]])
    if gate is not None:
        # The gate starts at a small share of structural zeros: 3 below what is decoded.
        decoded = torch.cat([decoded, torch.tensor([[gate + 3.0, -200.0]])], 1)
    decoded.requires_grad_()
    if log_theta is not None:
        with torch.no_grad():
            likelihood.log_dispersion.copy_(torch.tensor([log_theta, log_theta]))
    batch = labelled([0], [0]).replace(
        counts=torch.tensor([[y, 0.0]]), library=torch.tensor([library])
    )
    return likelihood(decoded, batch), batch, decoded, likelihood


@pytest.mark.parametrize("name", ["nb", "zinb", "poisson"])
def test_densities_are_exact_to_rounding_and_gradients_finite(name):
    worst = 0.0
    thetas = LOG_THETAS if name != "poisson" else (None,)
    gates = GATES if name == "zinb" else (None,)
    for library, gap, t, g, y in itertools.product(LIBRARIES, GAPS, thetas, gates, COUNTS):
        found, batch, decoded, likelihood = made(name, library, gap, y, t, g)
        value = found.log_prob(batch.counts).squeeze()
        value.backward()
        assert torch.isfinite(decoded.grad).all(), (library, gap, t, g, y)
        if t is not None:
            assert torch.isfinite(likelihood.log_dispersion.grad).all(), (library, gap, t, g, y)
        with mpmath.workdps(60):
            m, other = log_mean(library, gap), log_mean(library, -gap)
            if name == "poisson":
                exact = poisson(y, m) + poisson(0, other)
                size = abs(y * m) + mpmath.exp(m) + mpmath.loggamma(y + 1) + mpmath.exp(other)
            elif name == "nb":
                exact, size = nb(y, m, t) + nb(0, other, t), nb_size(y, m, t)
                size += nb_size(0, other, t)
            else:
                exact = zinb(y, m, t, g) + zinb(0, other, t, -203.0)
                size = nb_size(y, m, t) + nb_size(0, other, t) + abs(g)
            # A log-mean m is itself rounded to |m| eps, and y, μ and θ multiply it.
            slope = y + mpmath.exp(min(m, t if t is not None else m)) + library * (t is None)
            size = float(size + slope * (abs(m) + abs(gap) + 1) + 1)
        worst = max(worst, abs(float(value.detach()) - float(exact)) / size / EPS)
    assert worst < 20


@pytest.mark.parametrize("name", ["nb", "zinb", "poisson"])
def test_float32_gradients_are_those_of_float64(name):
    thetas = LOG_THETAS if name != "poisson" else (None,)
    gates = GATES if name == "zinb" else (None,)
    for library, gap, t, g, y in itertools.product(LIBRARIES, GAPS, thetas, gates, COUNTS):
        found, batch, decoded, _ = made(name, library, gap, y, t, g)
        found.log_prob(batch.counts).sum().backward()
        logits = torch.tensor([[gap, 0.0]], dtype=torch.float64, requires_grad=True)
        log_means = torch.log_softmax(logits, -1) + math.log(library)
        counts, mu = batch.counts.double(), log_means.exp()
        if name == "poisson":
            exact = counts * log_means - mu
        else:
            theta = math.exp(t)
            exact = counts * log_means - (counts + theta) * (theta + mu).log()
        if name == "zinb":
            gate = torch.tensor([[g, -203.0]], dtype=torch.float64)
            zero = -theta * torch.log1p(mu / theta)
            exact = torch.where(counts > 0, exact, torch.logaddexp(gate, zero))
        exact.sum().backward()
        ours, theirs = decoded.grad[:, :2].double(), logits.grad
        scale = y + min(library, math.exp(t) if t is not None else library) + 1
        assert (ours - theirs).abs().max() < 2e-5 * scale, (library, gap, t, g, y, ours, theirs)


@pytest.mark.parametrize("name", ["nb", "zinb", "poisson"])
def test_parameters_far_outside_stay_where_float32_can_evaluate_them(name):
    for t in (-1e4, 1e4):
        found, batch, decoded, likelihood = made(
            name, 1e7, 1e4, 1e5, t if name != "poisson" else None, 1e4 if name == "zinb" else None
        )
        value = found.log_prob(batch.counts)
        value.sum().backward()
        assert torch.isfinite(value).all()
        assert torch.isfinite(decoded.grad).all()
        assert torch.isfinite(found.sample()).all()
        assert torch.isfinite(found.mean).all()
        if name != "poisson":
            assert torch.isfinite(likelihood.log_dispersion.grad).all()
