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
# # From counts to factors
#
# Blood cells of eight people were left alone or given interferon beta for six hours (Kang et al.
# 2018). Every kind of cell answers interferon, and they do not all answer alike. FCR describes
# each cell by three short lists of numbers:
#
# | block | what it is meant to hold |
# |---|---|
# | `z_x` | what the cell is, whatever was done to it |
# | `z_t` | what the treatment does to any cell |
# | `z_tx` | what the treatment does to this kind of cell alone |
#
# This page goes from raw counts to those numbers, looks at what they hold, and asks what
# untreated B cells would have looked like under interferon. It runs within three minutes on two
# cores.

# %%
# %matplotlib inline
import arviz as az
import numpy as np
import pandas as pd

import pyro_fcr as pf
from pyro_fcr.analysis import plots
from pyro_fcr.evaluate import profile, separability, top_de_genes

# %% [markdown]
# ## The data
#
# One row per cell, one column per gene, molecules counted. `obs` holds what is known of each
# cell: its `condition` (`ctrl` or `stim`), its `cell_type`, its `donor`.

# %%
adata = pf.datasets.kang()
adata.obs.groupby(["cell_type", "condition"], observed=True).size().unstack()

# %% [markdown]
# ## What is held out
#
# A model should be asked about something it has not seen. Here the treated B cells are set
# aside: training sees untreated B cells, and treated cells of every other type. A tenth of the
# remaining cells is kept to watch the training.

# %%
split = pf.splits.hold_out(adata, {"cell_type": "B cells", "condition": "stim"}, seed=0)
print(split.describe())

# %% [markdown]
# To be quick, we keep the 2,000 genes that vary most. Only training cells choose them: a gene
# picked with the help of the test cells would make the test easier than it is.

# %%
adata = pf.top_genes(adata, 2000, split=split)
adata.shape

# %% [markdown]
# ## Which column is what
#
# A `Schema` says it once. Counts are read from `X` unless you name a layer.

# %%
schema = pf.Schema(treatment="condition", control="ctrl", covariates="cell_type")

# %% [markdown]
# The data are checked before anything is trained. Normalised values, for example, are refused,
# since the model counts molecules. The message says what was found, where, and what to try.

# %%
normalised = adata.copy()
normalised.X = normalised.X / 2
try:
    pf.FCR(normalised, schema)
except pf.errors.CountsError as error:
    print(error)

# %% [markdown]
# The raw counts pass. The design decides how large `z_tx` may be: with T treatments (the control
# counts as one) and X cell types, (T − 1)(X − 1) must be at least twice its size.

# %%
fcr = pf.FCR(adata, schema)
{block.name: block.size for block in fcr.declaration.blocks}

# %% [markdown]
# ## Fit
#
# `fit` returns the history: one row per epoch, every term of the objective under its own name,
# in nats per cell. We stop early here to keep the page quick; leave `max_epochs` out for a fit
# you want to rely on.

# %%
history = fcr.fit(split=split, max_epochs=100, seed=0, progress=False)
history[["loss", "counts", "kl.z_x", "kl.z_t", "kl.z_tx"]].iloc[[0, 9, -1]].round(1)

# %%
plots.history(history)[0].figure

# %% [markdown]
# Solid lines are training cells, dashed ones the cells kept aside. `kl.z_x` is what a cell tells
# through `z_x` beyond its label, and so on for the other blocks. Watch those curves: they still
# move when the loss of the held-out cells has long been flat, or rises a little. This is why
# training does not stop on the loss alone.
#
# ## The three blocks
#
# `latents` returns one table per block, a row per cell. The cells' labels were not used to make
# them: the encoders read genes alone.

# %%
z = fcr.latents(adata)
z["z_t"].head(3)

# %%
plots.overview(z, adata.obs, color=["condition", "cell_type"])[0, 0].figure

# %% [markdown]
# Left: coloured by condition. Right: by cell type. In `z_x` the two conditions lie on one another
# and cell types part; in `z_t` it is the other way round. `z_tx` may hold both: it is about how
# cell types differ in their answer. Two axes show a part of each block only.
#
# ## What does `z_x` give away?
#
# A picture of two axes can hide things. So we train new classifiers, which the model has never
# met, to guess the condition of a cell from its `z_x`, within one cell type at a time: 0.5 is a
# coin toss, 1.0 is certainty. We ask the same of `z_t`, and the cell type of both.

# %%
condition = adata.obs["condition"].astype(str).to_numpy()
cell_type = adata.obs["cell_type"].astype(str).to_numpy()
questions = {
    "condition from z_x, within a type": ("z_x", condition, cell_type),
    "condition from z_t": ("z_t", condition, None),
    "cell type from z_x": ("z_x", cell_type, None),
    "cell type from z_t, within a condition": ("z_t", cell_type, condition),
}
probes = {}
for question, (block, label, within) in questions.items():
    metric = "auc" if label is condition else "balanced_accuracy"
    probes[question] = separability(z[block], label, within, metric=metric, max_cells=500)
pd.DataFrame(
    {name: {"score": probe.score, "chance": probe.chance} for name, probe in probes.items()}
).T.round(2)

# %% [markdown]
# The first row should be near chance and the second near 1: what interferon does to any cell is
# in `z_t`, not in `z_x`. Most of these cells trained the model; cells that did not may give a
# little more away.
#
# ## What if?
#
# `counterfactual` takes cells as they are, keeps what the treatment does not touch (`z_x`), draws
# the rest from what the model learnt about the treatment, and decodes. `X` holds expected counts
# at each cell's own library size; the layers `sd`, `q05` and `q95` say how sure the model is.

# %%
b_control = adata[(cell_type == "B cells") & (condition == "ctrl")]
b_treated = adata[(cell_type == "B cells") & (condition == "stim")]
predicted = fcr.counterfactual(b_control, do={"condition": "stim"}, draws=20)
predicted

# %% [markdown]
# Treated B cells were never seen in training, so they can judge the answer. Each point is a gene:
# its change against untreated B cells, observed and predicted.

# %%
before = profile(b_control.X)
changed = top_de_genes(b_treated.X, b_control.X, 100)
plots.counterfactual(
    profile(predicted.X) - before,
    profile(b_treated.X) - before,
    genes=list(adata.var_names),
    highlight=changed,
    title="B cells under interferon beta, never seen",
).figure

# %% [markdown]
# A prediction is worth something only beside simple rules. `evaluate` scores the model on the
# test condition beside three of them and more: nothing changes (*control mean*), B cells become
# the average treated cell (*treated mean*), B cells change as the other types do on average
# (*additive*). The last two rows are no predictions: the reconstruction has read the very cells it
# describes, and half of the test cells foretells the other half.

# %%
table = fcr.evaluate(adata, split)
table.round(2)

# %%
plots.evaluation(table)[0].figure

# %% [markdown]
# ## Is `z_tx` identified?
#
# Single components of `z_tx` mean something only if the treatments act on the cell types in
# enough different ways. `certificate` looks at what was learnt and says so: identified, not
# identified, or undetermined. With one treatment and few cells, do not be surprised by a no: the
# blocks as a whole can be sound where the single axes of `z_tx` are not.

# %%
print(fcr.certificate())

# %% [markdown]
# ## Keep it
#
# A saved model is a folder of plain files: weights (safetensors), a description (JSON) and the
# history (CSV). It knows its genes and labels; new data in another gene order are realigned.

# %%
fcr.save("kang_model")
again = pf.load("kang_model")
float(np.abs(again.latents(adata)["z_x"] - z["z_x"]).max().max())

# %% [markdown]
# ## The whole posterior
#
# Behind each latent is a distribution. `posterior` draws from it, as labelled arrays; `to_arviz`
# hands them to ArviZ. Here, the first direction of `z_t` in three untreated and three treated
# monocytes, with 94 % intervals.

# %%
monocytes = cell_type == "CD14+ Monocytes"
six = np.concatenate([np.flatnonzero(monocytes & (condition == c))[:3] for c in ("ctrl", "stim")])
posterior = fcr.posterior(adata[six], draws=200)
dict(posterior["posterior"]["z_t"].sizes)

# %%
tree = pf.to_arviz(posterior)
axes = az.plot_forest(
    tree, var_names=["z_t"], coords={"z_t_dim": 0}, combined=True, figsize=(7, 3)
)

# %% [markdown]
# ## Where to go on
#
# `fcr.report("report.html", split=split)` puts all of this on one page. `docs/model.md` has the
# model in formulae. Put your own file in: `anndata.read_h5ad`, a schema
# with your columns, and the same calls. On the command line, `pyro-fcr fit --help`.
