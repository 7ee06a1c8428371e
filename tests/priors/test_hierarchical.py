"""Shrinkage against the conjugate posterior."""

import numpy as np
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule
from tiny import tiny_adata, tiny_cells

import pyro_fcr as pf
from pyro_fcr.nn import Block
from pyro_fcr.nn.conditions import GAIN
from pyro_fcr.priors import Hierarchical

TREATED = Block("z_t", 1, frozenset({"treatment"}))
BOTH = Block("z_tx", 2, frozenset({"treatment", "covariates"}))


@pytest.fixture(scope="module")
def cells():
    """Many cells of A, three of B."""
    adata = tiny_adata(per_condition=20)
    rare = adata.obs["drug"] == "B"
    keep = ~rare | (np.cumsum(rare) <= 3)
    with pytest.warns(pf.errors.DesignWarning):
        return tiny_cells(adata[keep].copy())


class Observed(PyroModule):
    """A block whose latents are seen."""

    def __init__(self, prior):
        super().__init__()
        self.prior = prior

    def forward(self, batch, z):
        pf.nn.touch_globals(self)
        with pf.model.pyro.plate("cells", len(batch)):
            return pf.model.pyro.sample("z", self.prior(batch), obs=z)


@pytest.mark.parametrize("centred", [False, True])
def test_a_rare_treatment_shrinks_as_the_conjugate_posterior_says(cells, centred):
    prior = Hierarchical(centred=centred, learn_scale=False)
    prior.bind(TREATED, cells.design)
    prior.double()
    batch = cells.batch()
    treatment = batch.treatment.double()
    batch = batch.replace(treatment=treatment)
    z = torch.randn(len(batch), 1, dtype=torch.float64) + 4 * treatment.sum(1, keepdim=True)
    mu, tau, sigma, m0 = 0.5, 0.7, 1.0, GAIN * prior.base.intercept.item()

    n = treatment.sum(0)
    assert n.tolist() == [60.0, 3.0]
    mean = ((z - m0) * treatment).sum(0) / n
    share = tau**2 / (tau**2 + sigma**2 / n)
    posterior = mu + share * (mean - mu)
    variance = 1 / (1 / tau**2 + n / sigma**2)
    assert share[1] < 0.75 < 0.95 < share[0], "the rare one shrinks"

    fixed = {"prior.location": torch.tensor([mu], dtype=torch.float64),
             "prior.spread": torch.tensor([tau], dtype=torch.float64)}  # fmt: skip

    def log_joint(effects):
        deviation = effects[:, None] if centred else (effects[:, None] - mu) / tau
        data = {**fixed, "prior.deviation": deviation}
        model = poutine.condition(Observed(prior), data=data)
        return poutine.trace(model).get_trace(batch, z).log_prob_sum()

    at = posterior.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(log_joint(at), at)
    torch.testing.assert_close(slope, torch.zeros(2).double(), atol=1e-8, rtol=0)
    curvature = torch.autograd.functional.hessian(log_joint, posterior)
    torch.testing.assert_close(torch.linalg.inv(-curvature), torch.diag(variance))


def test_the_mean_by_hand(cells):
    prior = Hierarchical()
    prior.bind(BOTH, cells.design)
    values = {
        "location": torch.tensor([0.1, 0.2]),
        "spread": torch.tensor([2.0, 3.0]),
        "deviation": torch.tensor([[1.0, -1.0], [0.5, 0.25]]),
        "interaction_spread": torch.tensor([0.5, 0.25]),
        "interaction_deviation": torch.randn(2, 3, 2),
    }
    model = Observed(prior)
    batch = cells.design.do(cells.subset([0]), {"treatment": "A+B", "type": "w"}).batch()
    data = {f"prior.{name}": value for name, value in values.items()}
    trace = poutine.trace(poutine.condition(model, data=data)).get_trace(batch, torch.zeros(1, 2))
    base = GAIN * (prior.base.intercept + prior.base.covariates[2])
    inside = values["interaction_deviation"][:, 2] * values["interaction_spread"]
    effect = torch.tensor([0.2 + 2 * 1.5, 0.4 + 3 * -0.75])
    torch.testing.assert_close(trace.nodes["z"]["fn"].mean[0], base + effect + inside.sum(0))


def test_both_forms_are_one_prior(cells):
    # Of an effect, with everything above it integrated out by draws: mean 0, variance 1 + 1.
    for centred in (False, True):
        prior = Hierarchical(centred=centred)
        prior.bind(TREATED, cells.design)
        model = Observed(prior)
        batch = cells.batch(slice(0, 2))
        drawn = []
        for _ in range(1500):
            nodes = poutine.trace(model).get_trace(batch, torch.zeros(2, 1)).nodes
            values = {k[6:]: v["value"] for k, v in nodes.items() if k.startswith("prior.")}
            effect = values["deviation"]
            if not centred:
                effect = values["location"] + values["spread"] * effect
            drawn.append(effect[:, 0])
        drawn = torch.stack(drawn)
        assert drawn.mean().abs() < 0.15
        assert drawn.var(0).mean().item() == pytest.approx(2.0, rel=0.2)
        assert torch.corrcoef(drawn.T)[0, 1].item() == pytest.approx(0.5, abs=0.1)


def test_a_block_without_treatment_has_no_effects(cells, caplog):
    prior = Hierarchical()
    with caplog.at_level("INFO"):
        prior.bind(Block("z_x", 2, frozenset({"covariates"})), cells.design)
    assert "z_x: no treatment among its parents" in caplog.text
    assert not prior._pyro_samples
    batch = cells.batch(slice(0, 5))
    torch.testing.assert_close(prior(batch).mean, prior.base(batch))
