"""What holds for every prior of the package, in every slot."""

import numpy as np
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from pyro.infer.autoguide import (
    AutoDelta,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from tiny import SIZES, fit, tiny_adata, tiny_fcr, tiny_schema

import pyro_fcr as pf
from pyro_fcr import priors
from pyro_fcr.io import describe, rebuild

PRIORS = {
    "gaussian": priors.Gaussian(),
    "gaussian_fixed": priors.Gaussian(learn_scale=False),
    "gaussian_embedding": priors.Gaussian(condition="embedding"),
    "gaussian_mlp": priors.Gaussian(condition="mlp"),
    "gaussian_features": priors.Gaussian(condition="features"),
    "standard": priors.Standard(),
    "mixture": priors.Mixture(components=3),
    "vamp": priors.VampPrior(components=3),
    "student": priors.StudentT(learn_df=True),
    "hierarchical": priors.Hierarchical(),
    "hierarchical_centred": priors.Hierarchical(centred=True),
    "hill": priors.Hill(),
    "gp": priors.GPDose(points=3),
    "low_rank": priors.LowRank(),
    "full": priors.FullCovariance(),
    "flow": priors.Flow(layers=2),
    "non_factorised": priors.NonFactorised(features=4, width=8),
    "interaction": priors.Interaction(),
    "interaction_centred": priors.Interaction(centre_scale=True, weights="cells"),
    "features": priors.TreatmentFeatures(hidden=(4,)),
}
ANALYTIC = {"low_rank", "full", "standard", "hierarchical", "hierarchical_centred", "hill", "gp",
            "non_factorised",
            "features"}  # fmt: skip
BAYESIAN = ("hierarchical", "hierarchical_centred", "hill", "gp")


@pytest.fixture(scope="module")
def adata():
    made = tiny_adata(per_condition=8, combo=True)
    made.obs["dose"] = [
        {"ctrl": "0", "A+B": "1+2"}.get(drug, ("0.5", "3")[n % 2])
        for n, drug in enumerate(made.obs["drug"])
    ]
    made.uns["known"] = {"A": [1.0, 0.0], "B": [0.0, 1.0], "C": [1.0, 1.0]}
    return made


@pytest.fixture(scope="module")
def schema():
    return tiny_schema(dose="dose", treatment_features="known")


def everywhere(adata, schema, prior, **options):
    return tiny_fcr(adata, schema=schema, priors=dict.fromkeys(SIZES, prior), **options)


def check_same(fcr, again, rows):
    for block, frame in fcr.latents(rows).items():
        assert np.isfinite(frame.to_numpy()).all()
        assert again.latents(rows)[block].equals(frame)
    do = {"treatment": "A+B", "dose": "0.3+1"}
    made = fcr.counterfactual(rows, do=do, draws=2).X
    np.testing.assert_array_equal(again.counterfactual(rows, do=do, draws=2).X, made)
    assert np.isfinite(made).all()


@pytest.mark.parametrize("name", PRIORS)
def test_trains_saves_and_loads_in_every_slot(name, adata, schema, tmp_path, caplog):
    with caplog.at_level("INFO"):
        fcr = everywhere(adata, schema, PRIORS[name])
    said = "no analytic divergence" in caplog.text
    assert said is not (name in ANALYTIC or name.startswith(("gaussian", "interaction")))
    history = fit(fcr, max_epochs=2)
    assert np.isfinite(history.to_numpy(dtype=float)).all()
    again = pf.load(fcr.save(tmp_path / "m"))
    check_same(fcr, again, adata[:9])
    new = {"treatment": "C", "dose": 1.0}
    if all(fcr.model.priors[block].extrapolates for block in ("z_t", "z_tx")):
        assert np.isfinite(fcr.counterfactual(adata[:9], do=new, draws=2).X).all()
    else:
        with pytest.raises(pf.errors.DesignError, match="knows nothing of 'C'"):
            fcr.counterfactual(adata[:9], do=new, draws=2)


@pytest.mark.parametrize("name", PRIORS)
def test_description_is_json_and_back(name):
    prior = PRIORS[name]
    made = rebuild(describe(prior), None, slot="priors")
    assert type(made) is type(prior)
    assert made.config() == prior.config()


@pytest.mark.parametrize("name", PRIORS)
def test_one_dimension_and_one_cell(name, adata, schema):
    fcr = everywhere(adata, schema, PRIORS[name], sizes=dict.fromkeys(SIZES, 1))
    for block in SIZES:
        made = fcr.model.priors[block](fcr.cells.batch([0]))
        assert (made.batch_shape, made.event_shape) == ((1,), (1,))


@pytest.mark.parametrize("name", PRIORS)
def test_particles_at_once_are_particles_one_by_one(name, adata, schema):
    fcr = everywhere(adata, schema, PRIORS[name])
    batch = fcr.cells.batch(slice(0, 5))
    model = poutine.uncondition(fcr.model)
    with torch.no_grad():
        drawn = Predictive(model, num_samples=3, parallel=True)(batch)
        assert drawn["z_tx"].shape == (3, 5, 2)
        # Each draw of the globals gives the same prior alone as it did among the others.
        kept = {k: v for k, v in drawn.items() if k not in (*SIZES, "counts")}
        for k in range(3):
            own = {site: value[k].reshape(value.shape[2:]) for site, value in kept.items()}
            alone = poutine.trace(poutine.condition(model, data=own)).get_trace(batch)
            with pf.model.pyro.plate("particles", 3, dim=-2):
                together = poutine.trace(poutine.condition(model, data=kept)).get_trace(batch)
            for block in SIZES:
                value = drawn[block]
                torch.testing.assert_close(
                    together.nodes[block]["fn"].log_prob(value)[k],
                    alone.nodes[block]["fn"].log_prob(value[k]),
                    rtol=1e-4,
                    atol=1e-4,
                )


@pytest.mark.parametrize("name", BAYESIAN)
@pytest.mark.parametrize(
    "made",
    [AutoDelta, AutoNormal, AutoLowRankMultivariateNormal, AutoMultivariateNormal],
    ids=lambda cls: cls.__name__,
)
def test_globals_take_any_guide(name, made, adata, schema, tmp_path):
    guide = pf.guides.Composed(locals=pf.guides.Amortised(width=8, depth=1), globals=made)
    fcr = tiny_fcr(adata, schema=schema, priors={"z_tx": PRIORS[name]}, guide=guide)
    history = fit(fcr, max_epochs=2)
    assert np.isfinite(history.to_numpy(dtype=float)).all()
    told = history.filter(like="kl.priors.z_tx.")
    assert not told.empty
    assert (told.iloc[0] != told.iloc[1]).all(), "every global learns"
    check_same(fcr, pf.load(fcr.save(tmp_path / "m")), adata[:9])


def test_a_list_of_guides_is_refused():
    from pyro.infer.autoguide import AutoGuideList

    with pytest.raises(pf.errors.SlotError, match="AutoGuideList cannot hold the globals"):
        pf.guides.Composed(globals=AutoGuideList)


def test_one_object_in_two_slots_is_two_priors(adata, schema):
    fcr = everywhere(adata, schema, PRIORS["gaussian"])
    assert len({id(prior) for prior in fcr.model.priors.values()}) == 3


@pytest.mark.parametrize("name", PRIORS)
def test_a_block_that_depends_on_nothing(name, adata, schema):
    vae = pf.VAE(adata, schema, priors={"z": PRIORS[name]}, hidden=(8,))
    assert np.isfinite(fit(vae, max_epochs=1)["loss"]).all()
    batch = vae.cells.batch()
    names = [key for key in poutine.trace(vae.model).get_trace(batch).nodes if key == "z"]
    assert names == ["z"]
    with torch.no_grad():
        prior = poutine.trace(vae.model).get_trace(batch).nodes["z"]["fn"]
        density = prior.log_prob(torch.full((len(batch), prior.event_shape[0]), 0.7))
    # Every cell's label is another's too: the prior knows none of them.
    torch.testing.assert_close(density, density[:1].expand_as(density))
