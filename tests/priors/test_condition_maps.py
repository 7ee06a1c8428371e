"""Embeddings, networks and features in place of tables."""

import pytest
import torch
from tiny import tiny_adata, tiny_cells

from pyro_fcr.errors import SlotError
from pyro_fcr.nn import MAPS, Block, condition_map
from pyro_fcr.priors import Gaussian, TreatmentFeatures, bounded_exp

VECTORS = {"A": [1.0, 0.0], "B": [0.0, 2.0], "new": [1.0, 1.0]}
PARENTS = frozenset({"treatment", "covariates"})


@pytest.fixture(scope="module")
def cells():
    adata = tiny_adata(combo=True, per_condition=8)
    adata.uns["known"] = VECTORS
    return tiny_cells(adata, treatment_features="known")


def conditions(cells):
    """A cell of every condition."""
    code = cells.treatment_id * 3 + cells.covariate_id
    return cells.batch([int((code == c).argmax()) for c in range(12)])


def one(cells, **do):
    return cells.design.do(cells.subset([0]), do).batch()


def shaken(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def test_embedding_is_a_product_by_hand(cells):
    made = shaken(condition_map("embedding", cells.design, PARENTS, torch.ones(3)))
    treatment, rest = made.factors["treatment"], made.factors["others"]
    for name, row in {"ctrl": [0, 0, 0], "A+B": [1, 1, 0]}.items():
        e = treatment.intercept + torch.tensor(row, dtype=torch.float32) @ treatment.treatment
        a = rest.intercept + rest.covariates[2]
        expected = (5 * e * 5 * a) @ made.weight + made.bias
        torch.testing.assert_close(made(one(cells, treatment=name, type="w"))[0], expected)


def test_features_by_hand(cells):
    made = shaken(condition_map("features", cells.design, PARENTS, torch.ones(2)))
    raw = torch.tensor(list(VECTORS.values()))
    known = (raw - raw.mean(0)) / raw.std(0, correction=0)
    g = made.effect.last(known)
    h = made.interaction.last(known).unflatten(1, (3, 2))
    base = made.base(one(cells, treatment="ctrl", type="v"))[0]
    torch.testing.assert_close(made(one(cells, treatment="ctrl", type="v"))[0], base)
    torch.testing.assert_close(
        made(one(cells, treatment="A+new", type="v"))[0], base + g[0] + g[2] + h[0, 1] + h[2, 1]
    )


def test_a_constant_feature_tells_nothing(cells):
    adata = tiny_adata(combo=True, per_condition=8)
    adata.uns["known"] = {name: [*value, 1e6] for name, value in VECTORS.items()}
    design = tiny_cells(adata, treatment_features="known").design
    made = condition_map("features", design, {"treatment"}, torch.ones(2))
    assert torch.isfinite(made.features).all()
    assert not made.features[:, 2].any()


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize(
    "parents", [(), ("treatment",), ("covariates",), tuple(sorted(PARENTS))], ids=str
)
def test_a_map_reads_its_parents_alone(cells, kind, parents):
    made = shaken(condition_map(kind, cells.design, parents, torch.ones(3)))
    batch = cells.batch()
    assert made(batch).shape == (len(batch), 3)
    changes = {
        "covariates": {"covariates": (batch.covariates + 1) % 3,
                       "covariate_id": (batch.covariate_id + 1) % 3},
        "treatment": {"treatment": 1 - batch.treatment},
    }  # fmt: skip
    for parent, change in changes.items():
        same = torch.equal(made(batch), made(batch.replace(**change)))
        assert same is (parent not in parents), parent
    assert made.extrapolates is ("treatment" not in parents or kind == "features")


@pytest.mark.parametrize("kind", MAPS)
def test_the_start_spreads_as_asked(cells, kind):
    torch.manual_seed(0)
    start = torch.cat([torch.full((2000,), 0.5), torch.full((2000,), 0.05)])
    made = condition_map(kind, cells.design, {"treatment"}, start)
    # Treatments beside the control, which has none of the effect.
    out = made(cells.batch(cells.treatment_id > 0))
    spread = (out - made(one(cells, treatment="ctrl"))).pow(2).mean(0).sqrt()
    ratio = (spread[:2000].mean() / spread[2000:].mean()).item()
    assert ratio == pytest.approx(10, rel=0.15)
    assert 0.2 < spread[:2000].mean().item() < 1.5


@pytest.mark.parametrize("kind", MAPS)
def test_refit_meets_what_the_map_can_hold(cells, kind):
    # A target that the map itself produced can be met; tables are exact elsewhere.
    batch = conditions(cells)
    torch.manual_seed(1)
    target = shaken(condition_map(kind, cells.design, PARENTS, torch.ones(4)))(batch).detach()
    made = condition_map(kind, cells.design, PARENTS, torch.full((4,), 0.3))
    before = (made(batch) - target).square().mean()
    made.refit(batch, target)
    after = (made(batch) - target).square().mean()
    assert after < 0.02 * before
    assert all(p.grad is None or not p.grad.any() for p in made.parameters())


@pytest.mark.parametrize("kind", MAPS)
def test_gaussian_of_every_map(cells, kind):
    prior = Gaussian(condition=kind)
    prior.bind(Block("z_tx", 2, PARENTS), cells.design)
    batch = cells.batch(slice(0, 9))
    made, raw = prior(batch), prior.table(batch)
    torch.testing.assert_close(made.mean, raw[:, :2])
    torch.testing.assert_close(made.variance.sqrt(), bounded_exp(raw[:, 2:]))


def test_a_network_on_features(cells):
    prior = TreatmentFeatures(hidden=(8,))
    prior.bind(Block("z_t", 2, frozenset({"treatment"})), cells.design)
    assert prior.extrapolates
    different = prior(one(cells, treatment="new")).mean - prior(one(cells, treatment="A")).mean
    assert different.abs().min() > 0
    target = torch.randn(4, 2)
    few = cells.batch([int((cells.treatment_id == t).argmax()) for t in (0, 1, 3)])
    prior.refit(few, target[:3], torch.ones(3, 2))
    torch.testing.assert_close(prior(few).mean, target[:3], atol=0.05, rtol=0.05)


def test_no_such_map(cells):
    with pytest.raises(SlotError, match=r"condition=.*'table'.*got 'forest'"):
        Gaussian(condition="forest").bind(Block("z", 2), cells.design)
