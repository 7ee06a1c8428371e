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
# # Is it identified?
#
# A model can fit every count and still name its latents at random. Here the truth is known,
# because we simulate it: we can see what is recovered, what cannot be, and whether the model says
# so itself.
#
# ## Before training: count
#
# Single components of `z_tx` can be identified only if treatments act on kinds of cell in enough
# different ways: (T − 1)(X − 1) ≥ 2 · size of `z_tx`. Two treatments and a control on two kinds of
# cell allow one component. Ask for more, and you are told before any training:

# %%
# %matplotlib inline
import warnings

import pyro_fcr as pf

schema = pf.Schema(treatment="treatment", control="control", covariates="covariate")
small = pf.simulate.factorised("few_conditions", n_per_condition=50, n_genes=60, seed=1)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    pf.FCR(small, schema, sizes={"z_tx": 4})
print(caught[0].message)

# %% [markdown]
# ## A design that can work
#
# Seven treatments, the control among them, on six kinds of cell; three, three and four true
# dimensions. We give the model blocks of the true sizes. A short fit, for this page.

# %%
adata = pf.simulate.factorised("base", n_per_condition=100, n_genes=100, seed=1)
fcr = pf.FCR(adata, schema, sizes={"z_x": 3, "z_t": 3, "z_tx": 4})
history = fcr.fit(max_epochs=120, seed=0, progress=False)

# %% [markdown]
# ## What was recovered?
#
# Labels inflate everything: latents that hold nothing but the condition would already score well
# over all cells (`label_only`). So we look at what is left *within* conditions. On the diagonal,
# how much of a true block its estimate holds; off it, what it tells of the others.

# %%
latents = {name: frame.to_numpy() for name, frame in fcr.latents(adata).items()}
truth = {name: adata.obsm[name] for name in latents}
condition = adata.obs["treatment"].astype(str) + adata.obs["covariate"].astype(str)
scores = pf.evaluate.recovery(latents, truth, condition.to_numpy(), max_cells=1000)
r2 = scores[scores["metric"] == "r2"]
r2.pivot(index="latent", columns="truth", values="within").round(2)

# %%
r2[r2["latent"] == r2["truth"]].set_index("latent")[["within", "pooled", "label_only"]].round(2)

# %% [markdown]
# How good could it be? Counts are noisy: even a regression that was shown the true latents does
# not find all of them. That is the ceiling, and no method is to be blamed for staying below it.
# It is scored on cells that it has not seen, the model above, for shortness, on those it has: hold
# cells out for numbers to be reported.

# %%
ceiling = pf.evaluate.ceiling(adata.X, truth, condition.to_numpy(), max_cells=1000)
best = ceiling[(ceiling["metric"] == "r2") & (ceiling["latent"] == ceiling["truth"])]
best.set_index("truth")["within"].round(2)

# %% [markdown]
# ## What does the model say of itself?
#
# Without the truth, there is the certificate: it takes the interactions that the prior of `z_tx`
# learned and asks whether they reach every direction, as the theorem demands.

# %%
print(fcr.certificate(replicates=50))

# %% [markdown]
# ## A design that cannot work
#
# Now interactions are additive: a treatment shifts `z_tx` alike in every kind of cell. There are
# as many conditions as before, and the fit is as good, but no way to tell the axes.

# %%
additive = pf.simulate.factorised("additive", n_per_condition=100, n_genes=100, seed=1)
blind = pf.FCR(additive, schema, sizes={"z_x": 3, "z_t": 3, "z_tx": 4})
blind.fit(max_epochs=120, seed=0, progress=False)
print(blind.certificate(replicates=50))

# %% [markdown]
# *Not identified* is an answer: read `z_x` and `z_t`, compare conditions, predict; do not name the
# axes of `z_tx`. *Undetermined* is one too: the cells do not suffice to say.
