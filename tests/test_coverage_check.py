"""The check that a guide covers its model, on models of a few lines."""

from contextlib import nullcontext
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta

from pyro_fcr.errors import SlotError
from pyro_fcr.guides import check_coverage


def program(batch, *, shared=None, cells=None, auxiliary=(), plate="cells"):
    for name, size in (shared or {}).items():
        infer = {"is_auxiliary": True} if name in auxiliary else {}
        pyro.sample(name, dist.Normal(torch.zeros(size), 1.0).to_event(1), infer=infer)
    with pyro.plate(plate, 10, subsample=torch.arange(2)):
        for name, size in (cells or {}).items():
            pyro.sample(name, dist.Normal(torch.zeros(2, size), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(torch.zeros(2), 1.0), obs=torch.zeros(2)) if shared else None


MODEL = partial(program, shared={"w": 1}, cells={"a": 2, "b": 3})


def guide(**sites):
    return lambda batch: program(batch, **sites)


def test_a_full_guide_passes_and_observed_sites_are_not_asked_for():
    check_coverage(MODEL, MODEL, None)


@pytest.mark.parametrize(
    ("sites", "match"),
    [
        ({"cells": {"a": 2, "b": 3}}, r"misses the model's site 'w'.*AutoGuide"),
        ({"shared": {"w": 1}, "cells": {"a": 2}}, r"misses the model's site 'b'.*cell plate"),
        ({"shared": {"w": 1}, "cells": {"a": 2, "b": 4}},
         r"site 'b' has another shape.*expected \(2, 3\), got \(2, 4\)"),
        ({"shared": {"w": 1, "u": 1}, "cells": {"a": 2, "b": 3}},
         r"samples 'u', which the model does not have.*is_auxiliary"),
    ],
)  # fmt: skip
def test_each_gap_is_named(sites, match):
    with pytest.raises(SlotError, match=match):
        check_coverage(MODEL, guide(**sites), None)


@pytest.mark.parametrize("told", [False, True])
def test_a_cells_site_without_moments_is_told(told):
    def bent(batch):
        pyro.sample("w", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        with pyro.plate("cells", 10, subsample=torch.arange(2)):
            for name, size in {"a": 2, "b": 3}.items():
                plain = dist.Normal(torch.zeros(2, size), 1.0)
                bend = dist.transforms.TanhTransform()
                infer = {"marginal": plain.to_event(1)} if told else {}
                made = dist.TransformedDistribution(plain, [bend]).to_event(1)
                pyro.sample(name, made, infer=infer)

    refused = pytest.raises(SlotError, match=r"site 'a' has no known mean in the guide.*marginal")
    with nullcontext() if told else refused:
        check_coverage(MODEL, bent, None)


def test_a_cell_plate_of_another_name_is_told():
    sites = {"shared": {"w": 1}, "cells": {"a": 2, "b": 3}}
    with pytest.raises(SlotError, match=r"site 'a' is outside the cell plate.*plate\('cells'"):
        check_coverage(MODEL, guide(**sites, plate="data"), None)


def test_a_global_drawn_once_per_cell_is_told():
    with pytest.raises(SlotError, match=r"site 'w' is in the cell plate.*expected outside"):
        check_coverage(MODEL, guide(cells={"w": 1, "a": 2, "b": 3}), None)


class NoGradientNormal(dist.Normal):
    has_rsample = False


@pytest.mark.parametrize("name", ["w", "a"])
def test_a_site_that_passes_no_gradient_is_told(name):
    def stiff(batch):
        plates = {"w": nullcontext(), "a": pyro.plate("cells", 10, subsample=torch.arange(2))}
        for site, shape in {"w": (1,), "a": (2, 2)}.items():
            made = NoGradientNormal if site == name else dist.Normal
            with plates[site]:
                pyro.sample(site, made(torch.zeros(shape), 1.0).to_event(1))

    model = partial(program, shared={"w": 1}, cells={"a": 2})
    with pytest.raises(SlotError, match=f"site '{name}' is not reparametrised.*NoGradientNormal"):
        check_coverage(model, stiff, None)


def test_point_estimates_are_reparametrised():
    automatic = AutoDelta(poutine.block(MODEL, expose=["w"]))

    def mixed(batch):
        automatic(batch)
        program(batch, cells={"a": 2, "b": 3})

    check_coverage(MODEL, mixed, None)


def test_auxiliary_sites_are_the_guides_own_affair():
    sites = {"shared": {"w": 1, "u": 1}, "cells": {"a": 2, "b": 3}}
    check_coverage(MODEL, guide(**sites, auxiliary=("u",)), None)


def test_the_check_draws_no_gradients():
    weight = torch.zeros(1, requires_grad=True)

    def with_weight(batch):
        pyro.sample("w", dist.Normal(weight, 1.0).to_event(1))

    check_coverage(with_weight, with_weight, None)
    assert weight.grad is None
