"""Hill curves and Gaussian processes over the dose, against pharmacology and scikit-learn."""

import numpy as np
import pytest
import torch
from pyro import poutine
from pyro.nn import PyroModule
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from tiny import tiny_adata, tiny_cells

from pyro_fcr.nn import Block
from pyro_fcr.priors import GPDose, Hierarchical, Hill
from pyro_fcr.priors.gp_dose import whitened_features

TREATED = Block("z_t", 2, frozenset({"treatment"}))
BOTH = Block("z_tx", 2, frozenset({"treatment", "covariates"}))
DOSES = [1.0, 10.0, 100.0, 1000.0]


@pytest.fixture(scope="module")
def cells():
    adata = tiny_adata(per_condition=24)
    dose = np.asarray(DOSES)[np.arange(adata.n_obs) % 4]
    adata.obs["dose"] = np.where(adata.obs["drug"] == "ctrl", 0.0, dose)
    return tiny_cells(adata, dose="dose")


class Holder(PyroModule):
    """Reads a method of a prior with its Bayesian parameters set."""

    def __init__(self, prior):
        super().__init__()
        self.prior = prior

    def forward(self, read):
        return read(self.prior)


def under(prior, read, **values):
    data = {f"prior.{name}": value for name, value in values.items()}
    return poutine.condition(Holder(prior), data=data)(read)


def at(cells, treatment, dose, kind="u"):
    do = {"treatment": treatment, "dose": dose, "type": kind}
    return cells.design.do(cells.subset([0]), do).batch()


def hill_values(prior, n=2, size=2):
    return {"emax": torch.randn(n, size), "log_ec50": torch.randn(n, size),
            "log_slope": 0.3 * torch.randn(n, size)}  # fmt: skip


def test_hill_is_half_of_emax_at_ec50_and_nothing_without_treatment(cells):
    prior = Hill()
    prior.bind(TREATED, cells.design)
    values = hill_values(prior)
    unit = cells.design.dose_unit
    np.testing.assert_allclose(unit, np.exp(np.mean(np.log(DOSES))), rtol=1e-5)
    control = cells.design.do(cells.subset([0]), {"treatment": "ctrl"}).batch()
    zero = under(prior, lambda p: p(control).mean, **values)[0]
    for d in range(2):
        dose = float(unit[1] * values["log_ec50"][1, d].exp())
        batch = at(cells, "B", f"{dose:.6g}")
        mean = under(prior, lambda p, batch=batch: p(batch).mean, **values)[0]
        effect = (mean - zero)[d].item()
        assert effect == pytest.approx(values["emax"][1, d].item() / 2, rel=1e-3)


def test_hill_by_the_formula(cells):
    prior = Hill()
    prior.bind(TREATED, cells.design)
    values = hill_values(prior)
    dose = torch.tensor([[0.0, 0.02], [3.0, 0.5], [1e6, 1e-6]])
    e, c, h = values["emax"], values["log_ec50"].exp(), values["log_slope"].exp()
    expected = (e * dose[..., None] ** h / (c**h + dose[..., None] ** h)).sum(1)
    found = under(prior, lambda p: p.response(dose, None), **values)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-3)


def test_hill_rises_and_saturates(cells):
    prior = Hill()
    prior.bind(TREATED, cells.design)
    dose = torch.logspace(-8, 8, 50)[:, None].expand(-1, 2)
    curve = under(prior, lambda p: p.curve(dose), **hill_values(prior))
    assert (curve.diff(dim=0) >= 0).all()
    assert curve.min() >= 0
    torch.testing.assert_close(curve[-1], torch.ones(2, 2), atol=0.02, rtol=0)


@pytest.mark.parametrize("extreme", [-1e3, 1e3])
def test_hill_keeps_finite_gradients(cells, extreme):
    prior = Hill()
    prior.bind(TREATED, cells.design)
    values = {name: torch.full((2, 2), extreme, requires_grad=True)
              for name in ("emax", "log_ec50", "log_slope")}  # fmt: skip
    under(prior, lambda p: p(cells.batch()).mean, **values).sum().backward()
    assert all(torch.isfinite(value.grad).all() for value in values.values())


def test_a_level_adds_to_emax(cells):
    prior = Hill()
    prior.bind(BOTH, cells.design)
    values = hill_values(prior)
    extra = torch.randn(2, 3, 2)
    zero = under(prior, lambda p: p(at(cells, "A", 5.0, "v")).mean, emax_interaction=0 * extra,
                 **values)  # fmt: skip
    full = under(prior, lambda p: p(at(cells, "A", 5.0, "v")).mean, emax_interaction=extra,
                 **values)  # fmt: skip
    dose = torch.tensor([[5.0 / float(cells.design.dose_unit[0]), 0.0]])
    share = under(prior, lambda p: p.curve(dose), **values)[0, 0]
    torch.testing.assert_close((full - zero)[0], share * extra[0, 1])


def test_the_process_is_the_kernel_at_the_doses_of_training(cells):
    prior = GPDose(points=8, lengthscale=1.7)
    prior.bind(TREATED, cells.design)
    doses = torch.tensor(DOSES) / float(cells.design.dose_unit[0])
    torch.testing.assert_close(prior.inducing, doses.log(), rtol=1e-4, atol=1e-4)
    features = whitened_features(doses.log(), prior.inducing, torch.tensor(1.7))
    kernel = RBF(1.7)(doses.log().numpy()[:, None])
    np.testing.assert_allclose(features @ features.T, kernel, atol=1e-4)


def test_the_curve_is_scikit_learns_regression(cells):
    # Weights are standard normal: their posterior mean under unit noise is ridge regression's.
    prior = GPDose(lengthscale=1.5, amplitude=1.3)
    prior.bind(TREATED, cells.design)
    unit = float(cells.design.dose_unit[0])
    log_dose = (torch.tensor(DOSES) / unit).log().double()
    y = torch.tensor([0.1, 0.4, 1.5, 1.2], dtype=torch.float64)
    phi = 1.3 * prior.features(torch.stack([log_dose.exp(), 0 * log_dose], 1).float()).double()
    phi = phi[:, :4]
    noise = 0.3
    weights = torch.linalg.solve(phi.T @ phi + noise * torch.eye(4), phi.T @ y).float()
    table = torch.zeros(8, 2)
    table[:4, 0] = weights
    new = torch.tensor([[3.0, 0.0], [30.0, 0.0], [1000.0, 0.0]]) / unit
    found = under(prior, lambda p: p.response(new, None), weights=table)[:, 0]
    kernel = 1.3**2 * RBF(1.5, "fixed")
    judge = GaussianProcessRegressor(kernel, alpha=noise, optimizer=None)
    judge.fit(log_dose[:, None], y)
    expected = judge.predict(new[:, :1].log())
    np.testing.assert_allclose(found.detach(), expected, atol=2e-3)


def test_the_process_lets_the_control_alone_and_forgets_far_away(cells):
    prior = GPDose()
    prior.bind(TREATED, cells.design)
    dose = torch.tensor([[0.0, 0.0], [1e-9, 0.0], [1.0, 0.0]])
    made = under(prior, lambda p: p.response(dose, None), weights=torch.ones(8, 2)).detach()
    assert (made[0] == 0).all()
    assert made[1].abs().max() < 1e-6 < made[2].abs().min()


def test_many_doses_share_a_grid(cells):
    prior = GPDose(points=3)
    prior.bind(TREATED, cells.design)
    unit = float(cells.design.dose_unit[0])
    ends = np.log(np.asarray([1.0, 1000.0]) / unit)
    np.testing.assert_allclose(prior.inducing, [ends[0], ends.mean(), ends[1]], atol=1e-4)


def test_levels_have_curves_of_their_own(cells):
    prior = GPDose(interaction_scale=0.5)
    prior.bind(BOTH, cells.design)
    weights, extra = torch.randn(8, 2), torch.randn(8, 3, 2)
    batch = at(cells, "A", 10.0, "w")
    dose = batch.treatment / prior.dose_unit
    common = under(prior, lambda p: p(batch).mean, weights=weights, interaction_weights=0 * extra)
    full = under(prior, lambda p: p(batch).mean, weights=weights, interaction_weights=extra)
    torch.testing.assert_close(full - common, 0.5 * prior.features(dose) @ extra[:, 2])


@pytest.mark.parametrize("learn_scale", [True, False])
@pytest.mark.parametrize("kind", [Hill, GPDose, Hierarchical])
def test_no_curve_is_known_of_a_treatment_without_cells(cells, kind, learn_scale):
    prior = kind(learn_scale=learn_scale)
    prior.bind(TREATED, cells.design)
    assert not prior.extrapolates
