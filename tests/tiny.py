"""A tiny experiment: three treatments, three cell types, two lanes, structured counts."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import torch

import pyro_fcr as pf
from pyro_fcr.data import Batch, Cells, Design
from pyro_fcr.likelihoods import GeneStatistics, gene_statistics, resolve

TREATMENTS = ("ctrl", "A", "B")
TYPES = ("u", "v", "w")
SIZES = {"z_x": 3, "z_t": 2, "z_tx": 2}


def tiny_adata(*, per_condition: int = 24, n_genes: int = 20, seed: int = 0, combo: bool = False):
    """Poisson counts whose log rates are a type's profile plus a treatment's plus a pair's."""
    rng = np.random.default_rng(seed)
    treatments = [*TREATMENTS, "A+B"] if combo else list(TREATMENTS)
    rows = [(t, x) for t in treatments for x in TYPES for _ in range(per_condition)]
    by_type = {x: rng.normal(size=n_genes) for x in TYPES}
    by_treatment = {t: rng.normal(size=n_genes) for t in ("A", "B")}
    by_pair = {(t, x): 0.5 * rng.normal(size=n_genes) for t in ("A", "B") for x in TYPES}
    log_rate = np.stack(
        [
            by_type[x] + sum(by_treatment[p] + by_pair[p, x] for p in t.split("+") if p != "ctrl")
            for t, x in rows
        ]
    )
    depth = rng.gamma(20, 20, size=(len(rows), 1))
    rate = np.exp(log_rate - log_rate.max(1, keepdims=True))
    counts = rng.poisson(depth * rate / rate.sum(1, keepdims=True) * 1.0) + 0.0
    counts[:, 0] += 1
    obs = pd.DataFrame(
        {
            "drug": pd.Categorical([t for t, _ in rows]),
            "type": pd.Categorical([x for _, x in rows]),
            "lane": pd.Categorical([f"l{i % 2}" for i in range(len(rows))]),
        },
        index=[f"cell{i}" for i in range(len(rows))],
    )
    var = pd.DataFrame(index=[f"g{i}" for i in range(n_genes)])
    order = rng.permutation(len(rows))
    return ad.AnnData(counts.astype("float32"), obs=obs, var=var)[order].copy()


def tiny_schema(**changes) -> pf.Schema:
    return pf.Schema(**{"treatment": "drug", "control": "ctrl", "covariates": ["type"], **changes})


def tiny_cells(adata: ad.AnnData | None = None, **changes) -> Cells:
    adata = tiny_adata() if adata is None else adata
    return Design.fit(adata, tiny_schema(**changes)).encode(adata)


def tiny_genes(cells: Cells) -> GeneStatistics:
    return gene_statistics(resolve("nb"), [cells.batch()])


def tiny_fcr(adata: ad.AnnData | None = None, *, schema: pf.Schema | None = None, **options):
    adata = tiny_adata() if adata is None else adata
    options = {"sizes": SIZES, "hidden": (16,), "guide": pf.guides.Amortised(width=16, depth=1),
               **options}  # fmt: skip
    return pf.FCR(adata, schema or tiny_schema(), **options)


def fit(fcr, **options):
    return fcr.fit(**{"max_epochs": 2, "batch_size": 64, "progress": False, "device": "cpu",
                      **options})  # fmt: skip


def labelled(treatment, covariate) -> Batch:
    """Cells of which only the treatment group and the joint covariate group matter."""
    treatment, covariate = torch.as_tensor(treatment), torch.as_tensor(covariate)
    n = len(treatment)
    return Batch(
        counts=torch.ones(n, 2), library=torch.full((n,), 2.0),
        treatment=torch.zeros(n, 1), treatment_id=treatment, dose=torch.zeros(n),
        covariates=covariate[:, None], covariate_id=covariate,
        batch=torch.zeros(n, dtype=torch.int64), index=torch.arange(n), n_cells=n,
    )  # fmt: skip


def levels_design(n_treatment: int, n_covariate: int) -> Design:
    """A design of so many treatment groups (control included) and covariate levels."""
    rows = [(f"t{i}", f"x{j}") for i in range(n_treatment) for j in range(n_covariate)] * 6
    obs = pd.DataFrame(rows, columns=["drug", "type"], index=[f"c{i}" for i in range(len(rows))])
    adata = ad.AnnData(np.ones((len(rows), 2), "float32"), obs=obs)
    schema = tiny_schema(control="t0", **({} if n_covariate > 1 else {"covariates": None}))
    return Design.fit(adata, schema)


def penalties_off() -> dict[str, float]:
    """The system's own independence penalties, switched off."""
    terms = pf.FCR.declare(tiny_cells().design, SIZES).terms
    return {name: 0 for name, term in terms.items() if term.weight}


def treated(names, *, per_treatment: int, n_genes: int = 6, seed: int = 0) -> ad.AnnData:
    """Poisson counts of so many cells of each named treatment."""
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame({"drug": np.repeat(list(names), per_treatment)})
    obs.index = obs.index.map("cell{}".format)
    counts = rng.poisson(5.0, (len(obs), n_genes)).astype("float32")
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))


def tiny_adata_with(treatment: str) -> ad.AnnData:
    """Tiny cells, those of B under another name."""
    adata = tiny_adata()
    renamed = adata.obs["drug"].astype(str).replace({"B": treatment})
    adata.obs["drug"] = pd.Categorical(renamed)
    return adata
