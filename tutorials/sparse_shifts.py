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
# # Sparse mechanism shifts in a CRISPR screen
#
# Stimulated THP-1 cells had one gene each knocked out (Papalexi et al. 2021). A knock-out does not
# remake a cell: it breaks one mechanism or a few. sVAE+ takes that at its word. Every cell is
# described by a list of latents, and every knock-out shifts a few of them, by masks that are
# learned. Knock-outs that break the same mechanism should then shift the same latent.
#
# Five of the genes form one pathway: interferon gamma binds IFNGR1 and IFNGR2, JAK2 passes the
# signal on to STAT1, which switches on IRF1. The model is told none of that.

# %%
# %matplotlib inline
import numpy as np
import pandas as pd

import pyro_fcr as pf
from pyro_fcr import plots

# %% [markdown]
# ## The data
#
# To be quick we keep six targets with effects, five without a trace, and at most 200 cells of
# each. IFNGR2 is left for the end. All 25 targets and 16,192 cells take a few minutes more.

# %%
everything = pf.datasets.thp1()
axis = ["IFNGR1", "JAK2", "STAT1", "IRF1"]
others, null = ["SMAD4", "BRD4"], ["ATF2", "CAV1", "CD86", "MARCH8", "TNFRSF14"]
rng = np.random.default_rng(0)
rows = []
for target in [*axis, *others, *null, "non-targeting"]:
    cells = np.flatnonzero(everything.obs["target"] == target)
    rows.extend(rng.permutation(cells)[: 600 if target == "non-targeting" else 200])
adata = everything[np.sort(rows)].copy()
adata.obs["target"].value_counts()

# %% [markdown]
# ## Fit
#
# The schema names the treatment and its control. The three replicates enter the decoder, so that
# no latent has to hold them. Encoder and decoder do not see the target.

# %%
schema = pf.Schema(treatment="target", control="non-targeting", batch="batch")
svae = pf.SVAE(adata, schema, sizes={"z": 8})
history = svae.fit(max_epochs=120, seed=0, progress=False)
history[["loss", "counts", "kl.z", "kl.priors.z.mask"]].iloc[[0, 59, -1]].round(1)

# %% [markdown]
# ## Which latents does a knock-out move?
#
# `targets` gives every pair of target and latent the posterior probability that the one moves the
# other, how far in standard deviations of an untreated cell, and an interval. `selected` marks the
# largest set of pairs of which, by the model's own account, no more than a tenth are wrong.

# %%
targets = svae.targets()
targets[targets["selected"]].round(2)

# %% [markdown]
# The same as a heat map: the pathway above, targets without a trace below.

# %%
order = [*axis, *others, *null]
inclusion = targets["inclusion"].unstack().loc[order]
plots.masks(inclusion, title="which latents a knock-out moves").figure

# %% [markdown]
# Whether the pathway shares its latents can be said in one number per gene: how likely is it to
# move the latent that IFNGR1 moves most surely?

# %%
shared = inclusion.loc["IFNGR1"].idxmax()
inclusion[shared].round(2)

# %%
prior = svae.model.priors["z"]
pd.Series(
    {
        "pathway": inclusion.loc[axis].to_numpy().mean(),
        "without a trace": inclusion.loc[null].to_numpy().mean(),
        "prior": 1 / (1 + float(prior.log_sparsity.detach().exp())),
    }
).round(2)

# %% [markdown]
# ## What does that latent do to genes?
#
# `gene_programs` moves the average cell by a standard deviation of a latent and reads the change
# of every gene off the decoder, as log2 fold change. A latent's sign is arbitrary. Here it is
# turned so that the knock-out's own direction is up.

# %%
direction = np.sign(targets.loc[("IFNGR1", shared), "shift"])
program = direction * svae.gene_programs(pseudocount=10)[shared]
program.sort_values().round(2).iloc[[0, 1, 2, 3, 4, 5, 6, 7, -4, -3, -2, -1]]

# %% [markdown]
# ## A knock-out the model has never seen
#
# IFNGR2 was left out above. `transfer` learns its masks and shifts from half of its cells and
# changes no other weight by a single bit. The other half are the judges: how much likelier are
# they as IFNGR2 knock-outs than as untouched cells, in nats per cell?

# %%
ifngr2 = everything[everything.obs["target"] == "IFNGR2"]
half = np.arange(ifngr2.n_obs) % 2 == 0
later = svae.transfer(ifngr2[half].copy())
later.targets().loc["IFNGR2"].round(2)

# %%
judges = ifngr2[~half][:200].copy()
untouched = judges.copy()
untouched.obs["target"] = "non-targeting"
gain = later.importance(judges, draws=50).bound - later.importance(untouched, draws=50).bound
round(float(gain.mean()), 2), round(float(gain.std() / np.sqrt(len(gain))), 2)
