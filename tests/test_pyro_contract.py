"""What this package believes of Pyro. An upgrade that moves one of these must be noticed here."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from pyro.ops.indexing import Vindex
from torch import nn
from torch.distributions import kl_divergence


def test_a_plate_scales_by_population_over_subsample():
    def model():
        with pyro.plate("cells", 100, subsample=torch.tensor([3, 7])):
            pyro.sample("x", dist.Normal(torch.zeros(2), 1.0), obs=torch.zeros(2))

    site = poutine.trace(model).get_trace().nodes["x"]
    assert site["scale"] == 50.0


def test_module_local_parameters_stay_out_of_the_store():
    class Module(PyroModule):
        def __init__(self):
            super().__init__()
            self.a = PyroParam(torch.tensor(1.0))
            self.b = nn.Parameter(torch.tensor(1.0))

        def forward(self):
            return self.a + self.b

    with pyro.settings.context(module_local_params=True):
        Module()()
    assert not list(pyro.get_param_store().keys())
    Module()()
    assert sorted(pyro.get_param_store().keys()) == ["a", "b"]


def test_global_parameters_make_a_second_model_read_the_first():
    # The trap that LocalModule is there for.
    class Module(PyroModule):
        def __init__(self, value):
            super().__init__()
            self.weight = PyroParam(torch.tensor(value))

        def forward(self):
            return self.weight

    first, second = Module(1.0), Module(2.0)
    assert first() == 1.0
    assert second() == 1.0
    with pyro.settings.context(module_local_params=True):
        assert Module(3.0)() == 3.0


@pytest.mark.parametrize("has_rsample", [True, False])
def test_a_guides_factor_adds_to_the_loss_and_only_rsample_has_its_gradient(has_rsample):
    loc = torch.tensor(0.3, requires_grad=True)

    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide(factor=True):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        if factor:
            pyro.factor("penalty", 5.0 * z, has_rsample=has_rsample)

    def loss(factor):
        pyro.set_rng_seed(0)
        value = Trace_ELBO().differentiable_loss(model, lambda: guide(factor))
        return value, torch.autograd.grad(value, loc)[0]

    (with_value, with_grad), (value, grad) = loss(True), loss(False)
    pyro.set_rng_seed(0)
    z = poutine.trace(guide).get_trace().nodes["z"]["value"].detach()
    torch.testing.assert_close((with_value - value).detach(), 5.0 * z)
    right = torch.isclose(with_grad - grad, torch.tensor(5.0), atol=1e-4)
    assert bool(right) is has_rsample


def test_a_scalar_factor_inside_the_plate_is_counted_for_every_cell():
    def guide():
        pyro.factor("outside", torch.tensor(1.0), has_rsample=True)
        with pyro.plate("cells", 30, subsample=torch.arange(3)):
            pyro.factor("inside", torch.tensor(1.0), has_rsample=True)

    trace = poutine.trace(guide).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["outside"]["log_prob_sum"] == 1.0
    assert trace.nodes["inside"]["log_prob_sum"] == 30.0


def test_vindex_keeps_event_dimensions_under_parallel_predictive():
    def model():
        means = pyro.sample("means", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
        with pyro.plate("cells", 4):
            loc = Vindex(means)[..., torch.tensor([0, 2, 1, 0]), :]
            return pyro.sample("z", dist.Normal(loc, 1e-6).to_event(1))

    drawn = Predictive(model, num_samples=5, parallel=True)()
    means = drawn["means"].reshape(5, 3, 2)
    torch.testing.assert_close(drawn["z"].reshape(5, 4, 2)[:, 1], means[:, 2], rtol=0, atol=1e-4)


def test_only_the_guides_scale_reaches_an_analytic_divergence():
    def half(on):
        return poutine.scale(scale=0.5) if on else poutine.scale(scale=1.0)

    def model(on):
        with half(on):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide(on):
        with half(on):
            pyro.sample("z", dist.Normal(1.0, 1.0))

    elbo = TraceMeanField_ELBO()

    def loss(m, g):
        return float(elbo.differentiable_loss(lambda: model(m), lambda: guide(g)))

    assert loss(False, False) == pytest.approx(0.5)
    assert loss(True, False) == pytest.approx(0.5)
    assert loss(False, True) == pytest.approx(0.25)


@pytest.mark.parametrize(
    "prior",
    [
        dist.StudentT(3.0, torch.zeros(2), 1.0).to_event(1),
        dist.MixtureSameFamily(
            dist.Categorical(torch.ones(2, 2)), dist.Normal(torch.zeros(2, 2), 1.0)
        ).to_event(1),
    ],
    ids=["student", "mixture"],
)
def test_which_divergences_have_no_formula(prior):
    with pytest.raises(NotImplementedError):
        kl_divergence(dist.Normal(torch.zeros(2), 1.0).to_event(1), prior)


def test_the_divergence_of_a_delta_forgets_its_density():
    # SiteELBO takes the Delta's own density instead.
    q, p = dist.Delta(torch.tensor(2.0), log_density=torch.tensor(-7.0)), dist.Normal(0.0, 1.0)
    torch.testing.assert_close(kl_divergence(q, p), -p.log_prob(torch.tensor(2.0)))
    assert q.log_prob(torch.tensor(2.0)) == -7.0


def test_a_forgotten_to_event_can_pass_for_another_plate():
    # Two dimensions in a plate of two: Pyro sees a batch, not an event, and says nothing.
    def model():
        with pyro.plate("cells", 2):
            pyro.sample("z", dist.Normal(torch.zeros(2, 2), 1.0))

    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["z"]["log_prob"].shape == (2, 2)


def test_a_guide_without_a_site_fails_with_a_bare_key_error():
    # What check_coverage says in a sentence.
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(KeyError), pytest.warns(UserWarning, match="Found vars in model"):
        TraceMeanField_ELBO().loss(model, lambda: None)


def test_autoguides_make_their_parameters_at_the_first_call():
    def model():
        pyro.sample("a", dist.Normal(0.0, 1.0))

    with pyro.settings.context(module_local_params=True):
        guide = AutoNormal(model)
        assert not list(guide.parameters())
        guide()
        assert len(list(guide.parameters())) == 2


def test_autoguidelist_cannot_share_a_plate_with_amortised_locals():
    def model():
        pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("cells", 3):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))

    def amortised():
        with pyro.plate("cells", 3):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))

    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, expose=["a"])))
    guide.append(amortised)
    loss = TraceMeanField_ELBO().loss
    with pytest.raises(RuntimeError, match="Multiple sample sites named 'cells'"):
        loss(model, guide)


def test_a_pyrosample_first_read_in_the_plate_is_one_per_cell():
    class Module(PyroModule):
        def __init__(self):
            super().__init__()
            self.w = PyroSample(dist.Normal(0.0, 1.0))

        def forward(self):
            with pyro.plate("cells", 3):
                return self.w

    assert Module()().shape == (3,)


def test_condition_makes_observed_and_do_cuts():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0))

    data = {"z": torch.tensor(5.0)}
    conditioned = poutine.trace(poutine.condition(model, data=data)).get_trace()
    assert conditioned.nodes["z"]["is_observed"]
    done = poutine.trace(poutine.do(model, data=data)).get_trace()
    assert done.nodes["y"]["fn"].loc == 5.0


def test_pyro_samples_private_registry_is_where_touch_globals_looks():
    class Module(PyroModule):
        def __init__(self):
            super().__init__()
            self.w = PyroSample(dist.Normal(0.0, 1.0))

    assert list(Module().__dict__["_pyro_samples"]) == ["w"]


def test_logits_of_a_softmax_in_bfloat16_lose_molecules():
    assert torch.tensor(1001.0).bfloat16() == 1000.0
