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
# # Swap the guide
#
# The guide is the approximate posterior. It is a slot of its own: the model, the penalties and
# every verb stay as they are when it is swapped. This page fits one small model with several and
# compares what they reach.
#
# | guide | q of a cell |
# |---|---|
# | `Amortised()` | independent Gaussians, encoders that see genes alone (the default) |
# | `Amortised(labels=True)` | the same, told the labels that each block's prior reads |
# | `Joint()` | one Gaussian over all blocks with full covariance |
# | `FlowRefined()` | a flow on top: curved and skewed posteriors |
# | `SemiAmortised(base)` | any of these, then gradient steps on each cell's own ELBO |
# | `Composed(locals, globals=)` | the globals, where there are any, by an AutoGuide |
# | your own | any module that samples the blocks' sites |

# %%
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.easyguide import EasyGuide
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.autoguide import AutoLowRankMultivariateNormal
from pyro.nn import PyroSample
from torch import nn

import pyro_fcr as pf
from pyro_fcr.errors import SlotError

torch.set_num_threads(1)
adata = pf.simulate.factorised(n_per_condition=20, n_genes=60, seed=0)
schema = pf.Schema(treatment="treatment", control="control", covariates="covariate")
small = {"width": 32, "depth": 1}


def fitted(**options):
    model = pf.FCR(adata, schema, hidden=(32,), **options)
    model.fit(max_epochs=12, seed=0, device="cpu", progress=False)
    return model


# %% [markdown]
# ## Four families
#
# The ELBO is a bound on the same evidence whatever the guide, so a higher one is a better
# posterior, or a model that could be trained further with it.


# %%
def elbo(model, repeats=5):
    """The bound in nats per cell, by Pyro's own estimator."""
    batch = model.cells.batch()
    loss = TraceMeanField_ELBO().loss
    pyro.set_rng_seed(0)
    with torch.no_grad():
        values = [loss(model.model, model.guide, batch) for _ in range(repeats)]
    return -sum(values) / repeats / len(model.cells)


guides = {
    "mean field": pf.guides.Amortised(**small),
    "told the labels": pf.guides.Amortised(labels=True, **small),
    "joint": pf.guides.Joint(**small),
    "flow": pf.guides.FlowRefined(**small),
}
models = {name: fitted(guide=guide) for name, guide in guides.items()}
bounds = pd.Series({name: elbo(model) for name, model in models.items()}, name="ELBO")
assert bounds.notna().all()
bounds

# %% [markdown]
# What a joint posterior adds are correlations: latents that explain the same genes.

# %%
drawn = models["joint"].posterior(adata[:20], draws=300).posterior
z = torch.tensor(drawn["z_x"].values[0, :, 0])
correlation = torch.corrcoef(z.T).fill_diagonal_(0)
flat = torch.tensor(models["mean field"].posterior(adata[:20], draws=300).posterior["z_x"].values)
alone = torch.corrcoef(flat[0, :, 0].T).fill_diagonal_(0)

assert float(correlation.abs().max()) > float(alone.abs().max())

# %% [markdown]
# ## Steps for each cell
#
# An encoder answers for all cells at once and misses each one's optimum by a little. A
# semi-amortised guide takes gradient steps from the encoder's answer whenever cells are embedded;
# training is as before. The gap it closes can be read off the ELBO.

# %%
semi = fitted(guide=pf.guides.SemiAmortised(pf.guides.Amortised(**small)))
refined = elbo(semi)
guide = semi.guide.locals
steps, guide.steps = guide.steps, 0
amortised = elbo(semi)
guide.steps = steps

assert refined > amortised
refined - amortised

# %% [markdown]
# ## Globals by an AutoGuide
#
# A prior with a Bayesian parameter needs no guide code. By default it gets an `AutoNormal`; any
# AutoGuide will do.


# %%
class Slope(pf.Prior):
    def __init__(self, size):
        super().__init__()
        self.slope = PyroSample(dist.Normal(0.0, 1.0).expand([size]).to_event(1))

    def forward(self, batch):
        return dist.Normal(self.slope * batch.dose[:, None], 1.0).to_event(1)


low_rank = pf.guides.Composed(pf.guides.Amortised(**small), globals=AutoLowRankMultivariateNormal)
bayes = fitted(guide=low_rank, priors={"z_t": Slope(4)})
found = bayes.posterior(adata[:5], draws=50).posterior

assert found["priors.z_t.slope"].shape == (1, 50, 4)
assert set(found.data_vars) == {"z_x", "z_t", "z_tx", "priors.z_t.slope"}

# %% [markdown]
# ## A guide of one's own
#
# No base class is needed: sample each block in the cell plate. One encoder for all blocks, say.


# %%
SIZES = {"z_x": 8, "z_t": 4, "z_tx": 4}


class Mine(nn.Module):
    def __init__(self, blocks=SIZES, n_genes=60):
        super().__init__()
        self.blocks = blocks
        self.encoder = nn.Linear(n_genes, 2 * sum(blocks.values()))

    def forward(self, batch):
        loc, raw = self.encoder(batch.counts.log1p()).chunk(2, dim=-1)
        sizes = list(self.blocks.values())
        with pyro.plate("cells", batch.n_cells, subsample=batch.index):
            parts = zip(self.blocks, loc.split(sizes, -1), raw.split(sizes, -1), strict=True)
            for name, m, s in parts:
                pyro.sample(name, dist.Normal(m, s.clamp(-4, 4).exp()).to_event(1))


mine = fitted(guide=Mine())
assert elbo(mine) == elbo(mine)
assert mine.latents()["z_x"].shape == (len(adata), 8)

# %% [markdown]
# Pyro's `EasyGuide` joins sites into groups. It reads the model once to learn them, so it is made
# from a model of the same shape.


# %%
class Grouped(EasyGuide):
    def __init__(self, model):
        super().__init__(model)
        self.encoder = nn.Linear(60, 32)

    def guide(self, batch):
        loc, raw = self.encoder(batch.counts.log1p()).chunk(2, dim=-1)
        group = self.group(match="z_.*")
        with self.plate("cells", batch.n_cells, subsample=batch.index):
            posterior = dist.Normal(loc, raw.clamp(-4, 4).exp()).to_event(1)
            group.sample("latents", posterior)


grouped = fitted(guide=Grouped(pf.FCR(adata, schema, hidden=(32,)).model))
assert set(grouped.latents()) == set(SIZES)

# %% [markdown]
# ## What is checked
#
# Before anything is trained, the guide is held against the model: a site that is missing, of
# another shape, in the wrong plate or without a gradient is named, with whose it is to sample.

# %%
with pytest.raises(SlotError, match="the guide misses the model's site 'z_tx'"):
    fitted(guide=Mine({"z_x": 8, "z_t": 4}))

with pytest.raises(SlotError, match="site 'z_t' has another shape"):
    fitted(guide=Mine({**SIZES, "z_t": 3}))
