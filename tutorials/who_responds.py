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
# # Who responds to the drug?
#
# Interferon beta reaches every blood cell. Some of its genes answer in all of them, some in
# monocytes alone. Which are which, and how sure can we be? Kang et al. (2018) counted RNA in blood
# cells of eight donors with and without interferon; here is the whole analysis.

# %%
# %matplotlib inline
import numpy as np

import pyro_fcr as pf
from pyro_fcr import plots

adata = pf.top_genes(pf.datasets.kang(), 1000)
schema = pf.Schema(treatment="condition", control="ctrl", covariates=["cell_type"])
fcr = pf.FCR(adata, schema)
history = fcr.fit(max_epochs=60, seed=0, progress=False)

# %% [markdown]
# A quick fit, for this page. Before reading anything into a model, ask it how it is:

# %%
print(fcr.diagnose())

# %% [markdown]
# ## The answer of one kind of cell
#
# `effects` compares treated with untreated cells of the same kind: log2 fold changes, 90 %
# intervals, and the probability that a change is larger than a quarter of a doubling. The donors
# were treated apart from one another, so we say so: cells of one donor are no independent
# evidence, and the intervals follow the spread between donors.

# %%
effects = fcr.effects(adata, replicate="donor")
monocytes = effects.genes_of("stim", "CD14+ Monocytes")
monocytes[["lfc", "low", "high", "p_effect", "selected"]].head(8).round(2)

# %% [markdown]
# ## Monocytes like this, T cells like that
#
# `compare` subtracts one answer from the other, gene by gene, with the interval of the difference.

# %%
difference = effects.compare("stim", "CD14+ Monocytes", "CD4 T cells", least=1.0)
difference[["CD14+ Monocytes", "CD4 T cells", "lfc", "low", "high", "p_effect"]].head(8).round(2)

# %%
t_cells = effects.genes_of("stim", "CD4 T cells")
common = monocytes.query("selected").index.intersection(t_cells.query("selected").index, False)
apart = difference.query("selected").index
shown = [*common.difference(apart, False)[:6], *apart[:8]]
plots.intervals({"CD14+ Monocytes": monocytes, "CD4 T cells": t_cells}, shown).figure

# %% [markdown]
# At the top, genes that answer in both kinds of cell; below, genes that answer in one of them far
# more than in the other.
#
# ## How much of a gene's answer is shared?
#
# `decompose` splits each gene's changes over all cell types into what is common and what belongs
# to single types. The shares add up to one and have intervals too.

# %%
shares = effects.decompose("stim").head(200)
alone = shares.sort_values("interaction", ascending=False).filter(regex="size|interaction")
alone.head(8).round(2)

# %%
shares.sort_values("common", ascending=False).filter(regex="size|common").head(8).round(2)

# %% [markdown]
# ## Which cell types answer in a way of their own?
#
# `interactions` ranks cell types by how far their answer departs from the usual one; an interval
# that starts at zero says that the donors' differences alone may explain it. `genes` is the
# expected number of genes that depart by more than a doubling.

# %%
effects.interactions(least=1.0)[["covariate", "strength", "low", "high", "genes"]].round(2)

# %% [markdown]
# ## The sentence for the paper

# %%
top, line = difference.index[0], difference.iloc[0]
print(
    f"IFN-β changes {top} by {line['CD14+ Monocytes']:.1f} in CD14+ monocytes and by "
    f"{line['CD4 T cells']:.1f} in CD4 T cells (log2); the difference is {line['lfc']:.1f} "
    f"({line['low']:.1f} to {line['high']:.1f}, 90 % interval)."
)
assert np.isfinite(line["lfc"])

# %% [markdown]
# The intervals tell of cells and donors that were sampled, and of what the model got wrong where
# it could be checked. They do not tell of what was never measured: for a cell type without treated
# cells, `measured` is missing, and the interval is as wide as the other types' answers differ.
