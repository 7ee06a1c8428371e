"""Every prior, guide, decoder and penalty in every system: it trains, comes back and embeds.

Parts and systems are found by the packages' public names, so that a new one is in the table on
its first day. What does not fit is refused when the model is made; ``REFUSED`` says which.
"""

import inspect

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
from tiny import fit, tiny_adata, tiny_schema
from torch import nn

import pyro_fcr as pf
from pyro_fcr import decoders, guides, penalties, priors, systems
from pyro_fcr.data import Design
from pyro_fcr.errors import SlotError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def adata():
    made = tiny_adata(per_condition=5, n_genes=12, combo=True)
    made.obs["dose"] = [{"ctrl": "0", "A+B": "1+2"}.get(drug, "0.5") for drug in made.obs["drug"]]
    made.uns["known"] = {"A": [1.0, 0.0], "B": [0.0, 1.0]}
    return made


SCHEMA = tiny_schema(dose="dose", batch="lane", treatment_features="known")


def public(room, base):
    """The concrete subclasses of a base that a package names."""
    found = {name: getattr(room, name) for name in room.__all__}
    return {
        name: cls
        for name, cls in found.items()
        if isinstance(cls, type)
        and issubclass(cls, base)
        and not any(getattr(getattr(cls, n), "__isabstractmethod__", False) for n in dir(cls))
    }


SYSTEMS = {name: getattr(systems, name) for name in systems.__all__}
PRIORS = public(priors, priors.Prior)
GUIDES = public(guides, pf.Guide)
DECODERS = public(decoders, pf.Decoder)
TERMS = public(penalties, (penalties.Penalty, penalties.Head))


def blocks_of(system, adata):
    return system.declare(Design.fit(adata, SCHEMA), {}).blocks


def normal(size):
    """A prior of the user's own, as a function."""
    return lambda batch: dist.Normal(batch.library.new_zeros(len(batch), size), 1.0).to_event(1)


def make_prior(name, size):
    return priors.LambdaPrior(normal(size)) if name == "LambdaPrior" else PRIORS[name]()


def make_guide(name):
    small = {"width": 8, "depth": 1}
    known = inspect.signature(GUIDES[name]).parameters
    options = {k: v for k, v in {**small, "steps": 2}.items() if k in known}
    inner = {k: guides.Amortised(**small) for k in ("base", "locals") if k in known}
    return GUIDES[name](**options, **inner)


def make_term(name, blocks):
    """A penalty or head of the system's first blocks, whatever its arguments are called."""
    names = [block.name for block in blocks]
    second = names[1] if len(names) > 1 else "treatment"
    fill = {"block": names[0], "blocks": tuple(names), "left": names[0], "right": second,
            "label": "treatment", "given": "covariates"}  # fmt: skip
    known = inspect.signature(TERMS[name]).parameters
    return TERMS[name](**{k: v for k, v in fill.items() if k in known})


def check(system, adata, tmp_path, *, own=None, **options):
    """Train two epochs, save, load, embed; return the model."""
    blocks = blocks_of(system, adata)
    options = {"guide": guides.Amortised(width=8, depth=1), **options}
    model = system(adata, SCHEMA, sizes={b.name: 2 for b in blocks}, hidden=(8,), **options)
    history = fit(model, max_epochs=2, batch_size=64)
    assert np.isfinite(history["loss"]).all()
    again = pf.load(model.save(tmp_path / "m"), **(own or {}))
    for name, frame in model.latents(adata).items():
        assert np.isfinite(frame.to_numpy()).all()
        assert again.latents(adata)[name].equals(frame)
    return model


def outcome(part, system, action):
    """Run, or see it refused if it is known to be: at once, in one sentence."""
    if (part, system) not in REFUSED:
        return action()
    with pytest.raises(SlotError) as refused:
        action()
    message = str(refused.value)
    assert "\n" not in message
    assert message.endswith(".")
    return None


SINGLE = set(SYSTEMS) - {"FCR", "InVAE"}
REFUSED = {("TotalCorrelation", name) for name in SINGLE}
REFUSED |= {("DensityRatioTC", name) for name in SINGLE}
"""One block is independent of nothing."""
REFUSED |= {(name, "effects") for name in ("Flow", "NonFactorised", "VampPrior")}
"""Nothing is learned of them by their mean."""
REFUSED |= {("Own", name) for name in ("SVAE", "SAMSVAE")}
"""A bare guide of the cells leaves the masks without; a ``pf.Guide`` is composed with theirs."""


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("prior", PRIORS)
def test_prior(prior, system, adata, tmp_path):
    blocks = blocks_of(SYSTEMS[system], adata)
    given = {b.name: make_prior(prior, 2) for b in blocks}
    own = {"priors": given} if prior == "LambdaPrior" else {}
    outcome(prior, system, lambda: check(SYSTEMS[system], adata, tmp_path, priors=given, own=own))


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("guide", GUIDES)
def test_guide(guide, system, adata, tmp_path):
    given = make_guide(guide)
    outcome(guide, system, lambda: check(SYSTEMS[system], adata, tmp_path, guide=given))


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_decoder(decoder, system, adata, tmp_path):
    given = DECODERS[decoder]()
    outcome(decoder, system, lambda: check(SYSTEMS[system], adata, tmp_path, decoder=given))


@pytest.mark.parametrize("prior", PRIORS)
def test_prior_as_added_effects(prior, adata, tmp_path):
    decoder = decoders.AdditiveDecoder(effects=make_prior(prior, 2))
    own = {"decoder": decoder} if prior == "LambdaPrior" else {}
    outcome(prior, "effects", lambda: check(pf.VAE, adata, tmp_path, decoder=decoder, own=own))


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("term", TERMS)
def test_penalty(term, system, adata, tmp_path):
    part = make_term(term, blocks_of(SYSTEMS[system], adata))

    def run():
        model = check(SYSTEMS[system], adata, tmp_path, penalties={"own": (part, 1.0)})
        assert "own" in model.history

    outcome(term, system, run)


class Own(nn.Module):
    """A guide of the user's own: encoders, no base class."""

    def __init__(self, names, n_genes=12):
        super().__init__()
        self.names = names
        self.encoder = nn.Linear(n_genes, 4 * len(names))

    def forward(self, batch):
        parts = self.encoder(batch.counts.log1p()).split(4, dim=-1)
        with pyro.plate("cells", batch.n_cells, subsample=batch.index):
            for name, part in zip(self.names, parts, strict=True):
                loc, raw = part.chunk(2, dim=-1)
                pyro.sample(name, dist.Normal(loc, raw.exp()).to_event(1))


@pytest.mark.parametrize("system", SYSTEMS)
def test_guide_of_ones_own(system, adata, tmp_path):
    names = [b.name for b in blocks_of(SYSTEMS[system], adata)]
    own = {"guide": Own(names)}
    outcome("Own", system, lambda: check(SYSTEMS[system], adata, tmp_path, own=own, **own))


def test_the_table_is_not_empty():
    assert {"FCR", "InVAE", "VAE"} <= set(SYSTEMS)
    assert {"Gaussian", "Standard"} <= set(PRIORS)
    assert {"Amortised", "Joint", "SemiAmortised"} <= set(GUIDES)
    assert {"ConditionalHSIC", "Adversary", "CovariateHead"} <= set(TERMS)
    assert {"NetworkDecoder", "AdditiveDecoder"} <= set(DECODERS)
