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
# # ArviZ on latents
#
# A latent is not a number but a distribution. `posterior` returns draws as a labelled tree, and
# everything that reads such trees works on it: xarray, ArviZ, Zarr.

# %%
# %matplotlib inline
import arviz as az
import numpy as np
from pyro.infer.autoguide import AutoLowRankMultivariateNormal

import pyro_fcr as pf

adata = pf.simulate.factorised("base", n_per_condition=60, n_genes=80, seed=4)
schema = pf.Schema(treatment="treatment", control="control", covariates="covariate")
fcr = pf.FCR(
    adata,
    schema,
    priors={"z_t": pf.priors.Hierarchical()},
    guide=pf.guides.Composed(globals=AutoLowRankMultivariateNormal),
)
history = fcr.fit(max_epochs=60, seed=0, progress=False)

# %% [markdown]
# The prior of `z_t` is hierarchical here: the treatments' effects are drawn from a population
# whose spread is unknown too. So besides the cells' latents there are global unknowns.

# %%
posterior = fcr.posterior(adata[::20], draws=300)
posterior

# %% [markdown]
# ## Labels travel along
#
# Coordinates are the cells' names and labels, so questions are asked by name.

# %%
z_t = posterior["posterior"]["z_t"]
z_t.groupby("treatment").mean(["chain", "draw", "cell"]).to_pandas().round(2)

# %% [markdown]
# ## Any ArviZ picture

# %%
axes = az.plot_forest(
    pf.to_arviz(posterior),
    var_names=["z_t"],
    coords={"cell": adata.obs_names[::20][:6].tolist(), "z_t_dim": 0},
    combined=True,
    figsize=(6, 3),
)

# %% [markdown]
# ## Globals

# %%
shared = [name for name, v in posterior["posterior"].data_vars.items() if "cell" not in v.dims]
az.summary(pf.to_arviz(posterior), var_names=shared, kind="stats").head(8)

# %% [markdown]
# ## Thousands of cells
#
# `az.summary` takes one variable at a time and minutes for many cells. `pf.summary` has the same
# rows and takes seconds.

# %%
table = pf.summary(fcr.posterior(adata[:2000], draws=200))
print(f"{len(table):,} quantities")
table.head(4).round(2)

# %% [markdown]
# ## A question of one's own
#
# Does treatment `t1` move cells further along the first direction of `z_t` than `t2` does? Count
# the draws.

# %%
by_treatment = z_t.isel(z_t_dim=0).groupby("treatment").mean("cell").squeeze("chain")
shift = np.abs(by_treatment - by_treatment.sel(treatment="control"))
further = shift.sel(treatment="t1") > shift.sel(treatment="t2")
print(f"P(t1 moves cells further than t2 does) = {float(further.mean()):.2f}")
