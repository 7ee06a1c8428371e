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
# # Reading the diagnostics
#
# Variational inference always returns something. `diagnose` asks whether to believe it. We take a
# fit that is good and one that is not, and read what it says of both.

# %%
# %matplotlib inline
import numpy as np

import pyro_fcr as pf

adata = pf.simulate.factorised("base", n_per_condition=60, n_genes=80, seed=3)
schema = pf.Schema(treatment="treatment", control="control", covariates="covariate")
sizes = {"z_x": 3, "z_t": 3, "z_tx": 4}
good = pf.FCR(adata, schema, sizes=sizes)
good.fit(max_epochs=120, seed=0, progress=False)
print(good.diagnose())

# %%
hasty = pf.FCR(adata, schema, sizes=sizes)
hasty.fit(max_epochs=8, seed=0, progress=False)
print(hasty.diagnose())

# %% [markdown]
# Each line has a state: *fine*, *look* (not wrong, but know it) or *bad*, and where something can
# be done, what to try. Now the numbers behind the words.
#
# ## Is the guide close to the exact posterior?
#
# Draws of the guide are weighed by the model. If a few draws take all the weight, the guide misses
# the posterior: Pareto k-hat above 0.7. The weights also give a tighter bound on the evidence.

# %%
weights = good.importance(adata[:300], draws=200)
print(f"k-hat above 0.7 in {np.mean(weights.k_hat > 0.7):.0%} of cells")
print(f"bound {weights.bound.mean():.1f}, ELBO {weights.elbo.mean():.1f} nats a cell")
pf.plots.importance(weights)[0].figure

# %% [markdown]
# The weights can mend what the guide gets wrong: `reweighted_moments` are means and spreads under
# them.

# %%
mended = pf.diagnostics.reweighted_moments(weights)
plain = good.latents(adata[:300])["z_x"]["z_x_0"]
round(np.corrcoef(mended["z_x"][0][:, 0], plain)[0, 1].item(), 3)

# %% [markdown]
# ## Are the intervals of single cells honest?
#
# Simulation-based calibration: draw latents from the model, counts from the latents, and ask where
# the truth ranks among the guide's draws. The grey band is where the line should
# stay; a valley in the middle means that the intervals are too narrow.

# %%
ranks = good.simulated_ranks(adata[:1000])
pf.plots.rank_histogram(ranks, draws=99)[0].figure

# %% [markdown]
# ## Do replicated counts look like the counts?

# %%
checks = good.predictive_checks(adata, draws=5)
checks.round(3)

# %%
pf.plots.predictive_checks(checks)[0].figure

# %% [markdown]
# ## What does each block hold?
#
# Information in nats per cell, beyond what the condition says; how far posterior and prior
# overlap; how many components are in use.

# %%
use = good.block_use()
use.round(2)

# %%
pf.plots.block_use(use).figure

# %% [markdown]
# ## Would another seed have found the same?
#
# `stability` compares fits that differ in nothing but their seed: whole blocks, and components
# matched one by one. Every dot is a pair of fits, 1 is the same.

# %%
other = pf.FCR(adata, schema, sizes=sizes)
other.fit(max_epochs=120, seed=1, progress=False)
pf.plots.stability(pf.stability([good, other], adata)).figure
