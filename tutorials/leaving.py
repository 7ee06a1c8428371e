# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Leaving is easy
#
# A model here is two plain Pyro programs, `model` and `guide`, each called with a batch of cells.
# Whatever Pyro can do with such programs can be done with these, without asking this package:
#
# 1. a training loop of one's own;
# 2. `poutine.condition` and `poutine.do`;
# 3. NUTS over the global parameters, everything else held fixed;
# 4. a `Messenger` of one's own;
# 5. a likelihood of one's own;
# 6. a whole new system, in fewer than sixty lines.

# %%
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, TraceMeanField_ELBO
from pyro.nn import PyroSample
from pyro.poutine.messenger import Messenger
from torch import nn

import pyro_fcr as pf
from pyro_fcr.assembly import Declaration
from pyro_fcr.estimator import Estimator
from pyro_fcr.infer import Weighted

torch.set_num_threads(1)
adata = pf.simulate.factorised(n_per_condition=20, n_genes=60, seed=0)
schema = pf.Schema(treatment="treatment", control="control", covariates="covariate")
small = {"guide": pf.guides.Amortised(width=32, depth=1), "hidden": (32,)}

# %% [markdown]
# ## A training loop of one's own
#
# The constructor has built and checked everything; `fit` is a convenience. The parameters are
# the modules' own, so any optimiser of torch takes them, and the param store stays empty.

# %%
pyro.set_rng_seed(0)
fcr = pf.FCR(adata, schema, **small)
model, guide, cells = fcr.model, fcr.guide, fcr.cells
elbo = TraceMeanField_ELBO()
optimiser = torch.optim.Adam([*model.parameters(), *guide.parameters()], lr=3e-3)
losses = []
for step in range(150):
    rows = np.random.default_rng(step).choice(len(cells), 128, replace=False)
    loss = elbo.differentiable_loss(model, guide, cells.batch(rows)) / len(cells)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    losses.append(float(loss.detach()))

assert np.mean(losses[-20:]) < np.mean(losses[:20]) - 5
assert not list(pyro.get_param_store().keys())
np.mean(losses[:20]), np.mean(losses[-20:])

# %% [markdown]
# ## Conditioning and intervening
#
# `poutine.condition` sets a latent and counts its density as evidence; `poutine.do` sets what
# comes after it and leaves the latent itself as the model draws it. The counts are decoded from
# the same values, and only the density tells the two apart.

# %%
batch = cells.batch(np.arange(64))
with torch.no_grad():
    others = {name: torch.zeros(64, size) for name, size in (("z_x", 8), ("z_tx", 4))}
    z_t = {"z_t": torch.full((64, 4), 0.5)}
    given = poutine.condition(model, data=others)
    seen = poutine.trace(poutine.condition(given, data=z_t)).get_trace(batch)
    done = poutine.trace(poutine.do(given, data=z_t)).get_trace(batch)

assert torch.equal(seen.nodes["counts"]["fn"].mean, done.nodes["counts"]["fn"].mean)
assert torch.equal(seen.nodes["z_t"]["value"], z_t["z_t"])
assert seen.nodes["z_t"]["is_observed"]
assert not torch.equal(done.nodes["z_t"]["value"], z_t["z_t"])

# %% [markdown]
# An intervention on a *label* is a change of the batch: what `counterfactual` decodes, one cell at
# a time. Latents that do not descend from the label keep their values.

# %%
intervened = fcr.design.do(cells, {"treatment": cells.design.treatments[0]}).batch(np.arange(64))
with torch.no_grad():
    factual = poutine.trace(guide).get_trace(batch)
    kept = {name: factual.nodes[name]["value"] for name in ("z_x",)}
    there = poutine.trace(poutine.condition(model, data=kept)).get_trace(intervened)

assert torch.equal(there.nodes["z_x"]["value"], kept["z_x"])
assert there.nodes["counts"]["fn"].mean.shape == (64, 60)

# %% [markdown]
# ## NUTS over the globals
#
# A prior with a Bayesian parameter: `z_t` moves along one direction with the dose. With the cells'
# latents held at their posterior means nothing but that direction is left to sample, and NUTS
# needs no guide. Here the answer is known (both are Gaussian), so we can check it.


# %%
class Slope(pf.Prior):
    """z_t is normal around the dose times an unknown slope."""

    def __init__(self, size):
        super().__init__()
        self.slope = PyroSample(dist.Normal(0.0, 1.0).expand([size]).to_event(1))

    def forward(self, batch):
        return dist.Normal(self.slope * batch.dose[:, None], 1.0).to_event(1)


bayes = pf.FCR(adata, schema, priors={"z_t": Slope(4)}, **small)
bayes.fit(max_epochs=10, seed=0, device="cpu", progress=False)
for parameter in bayes.model.parameters():
    parameter.requires_grad_(False)

everything = bayes.cells.batch()
means = {name: torch.tensor(frame.to_numpy()) for name, frame in bayes.latents().items()}
frozen = poutine.condition(bayes.model, data=means)
pyro.set_rng_seed(0)
mcmc = MCMC(NUTS(frozen), num_samples=200, warmup_steps=100, disable_progbar=True)
mcmc.run(everything)
drawn = mcmc.get_samples()["priors.z_t.slope"]

precision = 1 + everything.dose.square().sum()
exact = (everything.dose @ means["z_t"]) / precision
assert drawn.shape == (200, 4)
assert float(((drawn.mean(0) - exact) * precision.sqrt()).abs().max()) < 0.5
assert float((drawn.std(0) * precision.sqrt() - 1).abs().max()) < 0.3
drawn.mean(0), exact

# %% [markdown]
# ## A Messenger of one's own
#
# Effects compose: this one takes some genes out of the likelihood, in any model with counts,
# without touching the model. The counts left out are then a fair test of what the others tell.


# %%
class WithoutGenes(Messenger):
    """Score the counts by some genes only."""

    def __init__(self, keep):
        super().__init__()
        self.keep = keep

    def _pyro_sample(self, msg):
        if msg["name"] == "counts":
            inner = dist.Poisson(msg["fn"].mean)
            msg["fn"] = inner.mask(self.keep).to_event(1)


keep = torch.arange(60) < 40
with torch.no_grad():
    pyro.set_rng_seed(2)
    plain = poutine.trace(model).get_trace(batch)
    pyro.set_rng_seed(2)
    with WithoutGenes(keep):
        partial = poutine.trace(model).get_trace(batch)
    rate = plain.nodes["counts"]["fn"].mean
    by_hand = dist.Poisson(rate).log_prob(batch.counts)[:, keep].sum(-1)

assert torch.allclose(partial.nodes["counts"]["fn"].log_prob(batch.counts), by_hand, rtol=1e-4)

# %% [markdown]
# ## A likelihood of one's own
#
# Is a gene high in a cell, or low? A Bernoulli for each, as chromatin data would need. A
# likelihood maps the decoder's output to a distribution over genes; `start` says which output
# gives the mean cell, and `features` what encoders read.


# %%
class High(pf.Likelihood):
    """y ~ Bernoulli(sigmoid(decoded)): whether a gene is high."""

    reads_counts = False

    def forward(self, decoded, batch):
        return dist.Bernoulli(logits=decoded).to_event(1)

    def start(self, rate):
        return torch.logit(rate.clamp(0.01, 0.99))

    def features(self, batch):
        return batch.counts


binary = adata.copy()
counts = binary.X.toarray()
binary.X = (counts > np.median(counts, axis=0)).astype("float32")
high = pf.FCR(binary, schema, likelihood=High(), **small)
history = high.fit(max_epochs=8, device="cpu", progress=False)
chance = high.reconstruct(binary[:50], draws=5).X

assert history["counts"].iloc[-1] > history["counts"].iloc[0]
assert (chance > 0).all()
assert (chance < 1).all()
assert np.corrcoef(chance.ravel(), binary.X[:50].ravel())[0, 1] > 0.2

# %% [markdown]
# ## A whole new system
#
# A declaration says what the blocks are, what they depend on and which terms stand in the
# objective. Training, `do`, saving, evaluation and the report follow from that. The one below
# knows a block that tells cell types and is blind to treatments, one that does the reverse, and a
# decoder to which the treatments are also told.


# %%
class Responses(Estimator):
    """z_x | covariates and z_t | treatment, with treatments added to the latents."""

    requires = ("treatment", "covariates")

    @classmethod
    def declare(cls, design, sizes, *, weight=5.0, heavy_tails=False):
        blocks = (
            pf.Block("z_x", sizes.get("z_x", 6), frozenset({"covariates"})),
            pf.Block("z_t", sizes.get("z_t", 3), frozenset({"treatment"})),
        )
        tails = pf.priors.StudentT() if heavy_tails else pf.priors.Gaussian()
        independent = pf.penalties.ConditionalHSIC("z_x", "treatment", given="covariates")
        return Declaration(
            blocks,
            {"z_x": tails, "z_t": pf.priors.Gaussian()},
            {"z_x_vs_treatment": Weighted(independent, weight)},
            decoder=pf.decoders.AdditiveDecoder("treatment"),
        )


mine = Responses(adata, schema, weight=3.0, heavy_tails=True, **small)
mine.fit(max_epochs=8, device="cpu", progress=False)
again = pf.load(mine.save("responses"), system=Responses)
treatment = mine.design.treatments[0]
found = mine.counterfactual(adata[:20], do={"treatment": treatment}, draws=4)

assert sorted(mine.latents()) == ["z_t", "z_x"]
assert again.latents(adata)["z_x"].equals(mine.latents(adata)["z_x"])
assert np.array_equal(
    again.counterfactual(adata[:20], do={"treatment": treatment}, draws=4).X, found.X
)
assert isinstance(mine.model, nn.Module)

# %% [markdown]
# Where to go next: `ARCHITECTURE.md` lists the contracts of all parts on one page, and the
# tutorial "Swap the guide" does for guides what this one does for everything else.
