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
# # Counterfactuals and their limits
#
# *What would this cell have looked like under another treatment?* No experiment can tell: a cell
# is killed to be counted. In a simulation we can ask the simulator, so here we learn which answers
# of a model to trust.

# %%
# %matplotlib inline
import numpy as np
import pandas as pd

import pyro_fcr as pf
from pyro_fcr import plots

adata = pf.simulate.factorised("hold", n_per_condition=100, n_genes=100, seed=2)
schema = pf.Schema(treatment="treatment", control="control", covariates="covariate")
unseen = adata.obs["held_out"].to_numpy()
adata.obs.loc[unseen, ["treatment", "covariate"]].drop_duplicates()

# %% [markdown]
# These combinations are kept from the model. Every treatment and every kind of cell in them was
# seen elsewhere.

# %%
train = adata[~unseen].copy()
fcr = pf.FCR(train, schema)
history = fcr.fit(max_epochs=120, seed=0, progress=False)

# %% [markdown]
# ## Ask, then ask the simulator
#
# We take untreated cells of one kind and give them every treatment. `X` of the answer holds the
# expected counts, layer `sd` how sure the model is.

# %%
control = adata[(adata.obs["treatment"] == "control") & (adata.obs["covariate"] == "x1")]
answers = {}
for treatment in adata.obs["treatment"].cat.categories[1:]:
    imagined = fcr.counterfactual(control, do={"treatment": treatment}, draws=20)
    real = pf.simulate.counterfactual_truth(control, treatment)
    before = pf.simulate.counterfactual_truth(control, "control")
    change = np.log2(real.mean(0) / before.mean(0))
    predicted = np.log2(imagined.X.mean(0) / before.mean(0))
    held = unseen[(adata.obs["treatment"] == treatment) & (adata.obs["covariate"] == "x1")]
    answers[treatment] = {"seen": not held.any(), "r": np.corrcoef(change, predicted)[0, 1]}
pd.DataFrame.from_dict(answers, orient="index").round(2)

# %% [markdown]
# `r` is the correlation of the predicted with the true change of the mean, over genes. Where the
# combination was seen, the model has learned it. Where it was not, this simulator is merciless:
# every combination has an interaction of its own, drawn at random, which nothing else tells of.
#
# ## Four limits
#
# 1. **A reconstruction is no prediction.** `reconstruct` has read the cell that it returns.

# %%
seen = adata[(adata.obs["treatment"] == "t1") & (adata.obs["covariate"] == "x2")]
again = np.log1p(fcr.reconstruct(seen, draws=10).X).ravel()
truth = np.log1p(pf.simulate.expected_counts(seen)).ravel()
round(np.corrcoef(again, truth)[0, 1].item(), 3)

# %% [markdown]
# 2. **What was never seen has wide intervals, and should.** Effects of unseen combinations are
#    as uncertain as the interactions found elsewhere are large.

# %%
effects = fcr.effects()
width = np.quantile(effects.draws, 0.95, axis=0) - np.quantile(effects.draws, 0.05, axis=0)
measured = np.isfinite(effects.measured).any(-1)
pd.Series({"measured": width[measured].mean(), "unseen": width[~measured].mean()}).round(2)

# %% [markdown]
# 3. **A mean can be asked for as a mean, with an interval.** `counterfactual` is the model's
#    belief alone, one cell at a time. How far off that belief is, the measured conditions tell: a
#    kind of cell whose level the model misses is missed under every treatment. `condition_means`
#    adds what conditions have in common, shrunk by how surely it is known. Here the model has no
#    such error, and nothing to correct: its distance from the true mean (root mean square over
#    genes) stays the same, and it is the intervals that are worth having. They hold interactions
#    of the usual size; a condition with a stronger one lies outside more often.

# %%
means = fcr.condition_means()
rows = []
for t, x in adata.obs.loc[unseen, ["treatment", "covariate"]].drop_duplicates().to_numpy():
    start = adata[(adata.obs["treatment"] == "control") & (adata.obs["covariate"] == x)]
    true = pf.evaluate.profile(pf.simulate.counterfactual_truth(start, t))
    found = means.of(t, x)
    off = {name: np.sqrt(((found[name] - true) ** 2).mean()) for name in ("model", "mean")}
    inside = ((found["low"] < true) & (true < found["high"])).mean()
    rows.append({"treatment": t, "covariate": x, **off, "inside 90 %": inside})
pd.DataFrame(rows).set_index(["treatment", "covariate"]).round(2)

# %% [markdown]
# 4. **A simple rule may do as well.** Always look at the table with the rules beside the model.

# %%
adata.obs["split"] = np.where(unseen, "test", "train")
split = pf.splits.column(adata, "split")
table = fcr.evaluate(adata, split)
table[["pearson_change", "pearson_change_top100", "energy_distance"]].round(2)

# %%
plots.evaluation(table, metrics=["pearson_change_top100", "energy_distance"])[0].figure
