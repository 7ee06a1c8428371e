"""Parameters of a module's own: nothing shared, nothing in the global store."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

import pyro_fcr as pf
from pyro_fcr.errors import SlotError
from pyro_fcr.nn import LocalModule, parameters_unseen, touch_globals


class Scaled(LocalModule):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)
        self.scale = PyroParam(torch.tensor(1.0), dist.constraints.positive)

    def forward(self, x):
        with pyro.plate("cells", len(x)):
            return pyro.sample("y", dist.Normal(self.linear(x).squeeze(-1), self.scale))


def test_two_modules_train_apart_and_leave_the_store_alone():
    first, second = Scaled(), Scaled()
    before = {k: v.detach().clone() for k, v in second.state_dict().items()}
    optimiser = torch.optim.SGD(first.parameters(), lr=0.1)
    x, y = torch.randn(8, 2), torch.randn(8)
    moved = {k: v.detach().clone() for k, v in first.state_dict().items()}
    for _ in range(3):
        conditioned = poutine.condition(first, data={"y": y})
        loss = -poutine.trace(conditioned).get_trace(x).log_prob_sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert all(not torch.equal(moved[k], v) for k, v in first.state_dict().items())
    assert all(torch.equal(before[k], v) for k, v in second.state_dict().items())
    assert len(list(second.parameters())) == 3
    assert not list(pyro.get_param_store().keys())


def test_the_users_global_store_goes_on_working():
    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    data = torch.tensor([2.0, 4.0])
    svi = pyro.infer.SVI(
        model, lambda x: None, pyro.optim.SGD({"lr": 0.25}), pyro.infer.Trace_ELBO()
    )
    module = Scaled()
    module(torch.zeros(3, 2))
    for _ in range(60):
        svi.step(data)
        module(torch.zeros(3, 2))
    assert pyro.param("loc").item() == pytest.approx(3.0, abs=1e-3)
    assert list(pyro.get_param_store().keys()) == ["loc"]


def test_the_setting_is_put_back_even_after_an_error():
    class Broken(LocalModule):
        def forward(self):
            assert pyro.settings.get("module_local_params")
            raise RuntimeError("broken")

    for chosen in (False, True):
        with pyro.settings.context(module_local_params=chosen):
            with pytest.raises(RuntimeError, match="broken"):
                Broken()()
            assert pyro.settings.get("module_local_params") is chosen


class Bayesian(LocalModule):
    def __init__(self):
        super().__init__()
        self.child = PyroModule[nn.Module]()
        self.child.slope = PyroSample(dist.Normal(0.0, 1.0).expand([2]).to_event(1))


@pytest.mark.parametrize("touch", [True, False])
def test_a_global_touched_outside_the_plate_is_one_variable(touch):
    class Model(Bayesian):
        def forward(self):
            if touch:
                touch_globals(self)
            with pyro.plate("cells", 5):
                return self.child.slope

    site = poutine.trace(Model()).get_trace().nodes["child.slope"]
    assert tuple(site["value"].shape) == ((2,) if touch else (5, 2))


def test_touching_twice_makes_one_site_per_call():
    module = Bayesian()

    class Twice(LocalModule):
        def __init__(self):
            super().__init__()
            self.part = module

        def forward(self):
            touch_globals(self)
            touch_globals(self)
            return self.part.child.slope

    trace = poutine.trace(Twice()).get_trace()
    assert [n for n in trace.nodes if n.endswith("slope")] == ["part.child.slope"]


@pytest.mark.parametrize(
    ("kind", "lacks"),
    [
        (pf.priors.DoseResponse, "bind_response, response"),
        (pf.Prior, "forward"),
        (pf.guides.Encoders, "draw, marginals, place, turn"),
        (pf.penalties.Adversarial, "critic_loss, forward"),
    ],
)
def test_an_abstract_part_says_what_it_lacks(kind, lacks):
    told = rf"{kind.__name__} is no part by itself.*a subclass that writes {lacks}"
    with pytest.raises(SlotError, match=told):
        kind()
    mine = type("Mine", (kind,), {name: lambda self: None for name in lacks.split(", ")})
    assert isinstance(mine(), kind)


def test_parameters_may_be_read_without_telling_handlers():
    class Net(LocalModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1)
            self.bias = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return pyro.sample("y", dist.Normal(self.layer(x) + self.bias, 1.0).to_event(2))

    net, x = Net(), torch.zeros(3, 2)
    told = poutine.trace(net).get_trace(x)
    assert {"bias", "layer$$$weight"} <= {n for n, s in told.nodes.items() if s["type"] == "param"}
    with parameters_unseen():
        silent = poutine.trace(net).get_trace(x)
    assert not [n for n, s in silent.nodes.items() if s["type"] == "param"]
    torch.testing.assert_close(silent.nodes["y"]["fn"].mean, told.nodes["y"]["fn"].mean)
