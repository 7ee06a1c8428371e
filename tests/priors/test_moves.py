"""A prior with Bayesian parameters moves with its model."""

import copy

import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroSample
from tiny import SIZES, tiny_fcr
from torch import nn
from torch.distributions import AffineTransform

import pyro_fcr as pf
from pyro_fcr.nn import LocalModule


class Slope(pf.Prior):
    """As a user writes it: a distribution of plain tensors."""

    def __init__(self, made):
        super().__init__()
        self.slope = PyroSample(made)

    def forward(self, batch):
        return dist.Normal(self.slope * batch.dose[:, None], 1.0).to_event(1)


MADE = {
    "normal": dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1),
    "expanded": dist.Normal(0.0, 1.0).expand([2]).to_event(1),
    "transformed": dist.TransformedDistribution(
        dist.Normal(torch.zeros(2), 1.0),
        [AffineTransform(torch.ones(2), torch.full((2,), 2.0)), AffineTransform(0.0, 3.0).inv],
    ).to_event(1),
    "full": dist.MultivariateNormal(torch.zeros(2), scale_tril=torch.eye(2)),
    "bounded": dist.Beta(torch.ones(2), torch.ones(2)).to_event(1),
}


@pytest.mark.parametrize("kind", MADE)
def test_the_distribution_of_a_bayesian_parameter_moves(kind):
    made = copy.deepcopy(MADE[kind])
    model = LocalModule()
    model.prior = Slope(made)
    model.double()
    moved = model.prior._pyro_samples["slope"]
    assert moved.sample().dtype == model.prior.slope.dtype == torch.float64
    assert (moved.batch_shape, moved.event_shape) == (made.batch_shape, made.event_shape)
    value = torch.tensor([0.25, 0.5])
    torch.testing.assert_close(moved.log_prob(value.double()).float(), made.log_prob(value))
    assert made.sample().dtype == torch.float32, "what the user holds stays as it was"
    if kind == "bounded":
        return  # torch draws no Beta without values
    model.to("meta")
    assert model.prior.slope.device.type == "meta"


def test_a_transform_is_still_its_inverse_after_the_move():
    inverse = AffineTransform(torch.zeros(2), torch.full((2,), 3.0)).inv
    model = LocalModule()
    model.prior = Slope(dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0), [inverse]))
    model.double()
    moved = model.prior._pyro_samples["slope"].transforms[0]
    x = torch.tensor([3.0, 6.0], dtype=torch.float64)
    assert moved(x).tolist() == [1.0, 2.0]
    assert torch.equal(moved.inv(moved(x)), x)


def test_a_parameter_that_depends_on_another_is_made_anew():
    class Two(LocalModule):
        def __init__(self):
            super().__init__()
            self.wide = PyroSample(dist.HalfNormal(1.0))
            self.slope = PyroSample(lambda self: dist.Normal(0.0, self.wide).expand([2]))

    assert Two().double().slope.dtype == torch.float64


def test_bayesian_layers_inside_move_as_well():
    model = LocalModule()
    model.layer = PyroModule[nn.Linear](2, 1)
    model.layer.weight = PyroSample(dist.Normal(torch.zeros(1, 2), 1.0).to_event(2))
    model.double()
    assert model.layer.weight.dtype == torch.float64


@pytest.mark.parametrize(
    "prior", [pf.priors.Hierarchical(), pf.priors.Hill(), pf.priors.GPDose()], ids=str
)
def test_a_fitted_model_runs_after_the_move(prior):
    fcr = tiny_fcr(priors=dict.fromkeys(SIZES, prior))
    batch = fcr.cells.batch(slice(0, 4))
    fcr.model.double()
    values = {"counts": batch.counts.double(), "library": batch.library.double(),
              "treatment": batch.treatment.double(), "dose": batch.dose.double()}  # fmt: skip
    double = batch.replace(**values)
    assert fcr.model.priors["z_tx"](double).sample().dtype == torch.float64
