"""Every wrong slot is refused before training, in a sentence that names it."""

import logging

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoGuideList
from pyro.nn import PyroSample
from tiny import tiny_adata, tiny_fcr
from torch import nn

import pyro_fcr as pf
from pyro_fcr.errors import SlotError


@pytest.fixture(scope="module")
def adata():
    return tiny_adata(per_condition=6)


def prior(make):
    class Own(pf.Prior):
        def forward(self, batch):
            return make(len(batch))

    return Own()


WRONG = {
    "event shape": (
        lambda n: dist.Normal(torch.zeros(n, 5), 1.0).to_event(1),
        r"site 'z_t' has the wrong shape .*event shape \(2,\), got \(2,\) and \(5,\); end with",
    ),
    "no to_event": (
        lambda n: dist.Normal(torch.zeros(n, 2), 1.0),
        r"site 'z_t' has the wrong shape .*got \(2, 2\) and \(\); end with \.to_event",
    ),
    "batch shape": (
        lambda n: dist.Normal(torch.zeros(2), 1.0).to_event(1),
        r"site 'z_t' has the wrong shape .*got \(\) and \(2,\)",
    ),
    "no distribution": (
        lambda n: torch.zeros(n, 2),
        r"site 'z_t' got no distribution .*got Tensor; return the distribution itself",
    ),
    "non-finite": (
        lambda n: dist.Normal(torch.zeros(n, 2), torch.full((n, 2), 1e-45) * 0,
                              validate_args=False).to_event(1),
        r"site 'z_t' scores its own draw as non-finite",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "match"), WRONG.values(), ids=WRONG.keys())
def test_wrong_priors(adata, make, match):
    with pytest.raises(SlotError, match=match):
        tiny_fcr(adata, priors={"z_t": prior(make)})


def test_no_place_for_a_prior(adata):
    own = prior(lambda n: dist.Normal(torch.zeros(n, 2), 1.0).to_event(1))
    with pytest.raises(
        SlotError, match=r"no place for the prior of 'z_q'.*\['z_x', 'z_t', 'z_tx'\]"
    ):
        tiny_fcr(adata, priors={"z_q": own})
    with pytest.raises(
        SlotError, match=r"no place for the prior of 'z_t'.*got a Normal for 'z_t'"
    ):
        tiny_fcr(adata, priors={"z_t": dist.Normal(0.0, 1.0)})


class Guide(pf.Guide):
    def __init__(self, sites):
        super().__init__()
        self.sites = sites
        self.loc = nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        with pyro.plate("cells", batch.n_cells, subsample=batch.index):
            for name, size in self.sites.items():
                loc = self.loc.expand(len(batch), size)
                pyro.sample(name, dist.Normal(loc, 1.0).to_event(1))


@pytest.mark.parametrize(
    ("sites", "match"),
    [
        ({"z_x": 3, "z_t": 2}, r"the guide misses the model's site 'z_tx' .*cell plate"),
        ({"z_x": 3, "z_t": 2, "z_tx": 2, "z_y": 1}, r"the guide samples 'z_y', which the model"),
        (
            {"z_x": 4, "z_t": 2, "z_tx": 2},
            r"site 'z_x' has another shape .*\(2, 3\), got \(2, 4\)",
        ),
    ],
    ids=["missing", "extra", "shape"],
)
def test_wrong_guides(adata, sites, match):
    with pytest.raises(SlotError, match=match):
        tiny_fcr(adata, guide=Guide(sites))


class Slope(pf.Prior):
    def __init__(self):
        super().__init__()
        self.slope = PyroSample(dist.Normal(0.0, 1.0).expand([2]).to_event(1))

    def forward(self, batch):
        return dist.Normal(self.slope * batch.dose[:, None], 1.0).to_event(1)


def test_a_guide_without_the_globals_is_told_of_autoguides(adata):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Guide({"z_x": 3, "z_t": 2, "z_tx": 2})

        def forward(self, batch):
            return self.inner(batch)

    with pytest.raises(SlotError, match=r"misses the model's site 'priors\.z_t\.slope'.*Composed"):
        tiny_fcr(adata, priors={"z_t": Slope()}, guide=Plain())


def test_autoguidelist_is_refused():
    with pytest.raises(SlotError, match=r"AutoGuideList cannot hold the globals.*use AutoNormal"):
        pf.guides.Composed(globals=AutoGuideList)


class PerCell(pf.Penalty):
    def forward(self, z, batch):
        return z["z_x"].square().sum(-1)


class NotANumber(pf.Penalty):
    def forward(self, z, batch):
        return z["z_x"].mean() * float("nan")


@pytest.mark.parametrize(
    ("part", "match"),
    [(NotANumber(), r"term 'own' is no finite scalar"), (PerCell(), r"own")],
)
def test_wrong_penalties(adata, part, match):
    with pytest.raises(SlotError, match=match):
        tiny_fcr(adata, penalties={"own": (part, 1.0)})


def test_unknown_penalty_names(adata):
    with pytest.raises(SlotError, match=r"no penalty is called 'z_x_vs_t'.*covariate_head"):
        tiny_fcr(adata, penalties={"z_x_vs_t": 1.0})


def test_a_likelihood_of_the_wrong_shape(adata):
    class Half(pf.Likelihood):
        def forward(self, decoded, batch):
            return dist.Poisson(decoded[:, :10].exp()).to_event(1)

    with pytest.raises(SlotError, match="counts"):
        tiny_fcr(adata, likelihood=Half())


def test_a_divergence_without_a_formula_is_said_once(adata, caplog):
    heavy = prior(lambda n: dist.StudentT(3.0, torch.zeros(n, 2), 1.0).to_event(1))
    with caplog.at_level(logging.INFO, logger="pyro_fcr"):
        tiny_fcr(adata, priors={"z_t": heavy})
    said = [r.getMessage() for r in caplog.records if "no analytic divergence" in r.getMessage()]
    assert said == ["z_t: no analytic divergence from a Gaussian; draws stand in"]
