"""The truth of a simulation: mean expression of its cells as they are, and under ``do``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyro_fcr.errors import CategoryError, SchemaError, sentence
from pyro_fcr.simulate.latents import BLOCKS, draw_block
from pyro_fcr.simulate.observation import chunks, decode

if TYPE_CHECKING:
    from collections.abc import Mapping

    import anndata as ad
    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]

__all__ = ["counterfactual_truth", "expected_counts", "true_changes", "true_shares"]


def expected_counts(adata: ad.AnnData) -> Floats:
    """Compute the true mean expression of every cell as it is.

    Parameters
    ----------
    adata
        A simulation of `factorised` or `from_data`, or a subset of its cells.

    Returns
    -------
    mean_ng
        Expected counts (cells, genes); the noiseless logits in "gaussian".

    Raises
    ------
    SchemaError
        The AnnData is no such simulation.
    """
    simulation = _simulation(adata)
    return _mean({name: np.asarray(adata.obsm[name], float) for name in BLOCKS}, adata, simulation)


def counterfactual_truth(
    adata: ad.AnnData, treatment: str, *, draws: int = 20, seed: int = 0
) -> Floats:
    """Compute the true mean expression of cells had they received another treatment.

    Keeps each cell's z_x (and what it has beside the blocks), library, batch and covariate; z_t
    and z_tx are drawn afresh from the true prior at the new treatment, and the mean expression is
    averaged over the draws.

    Parameters
    ----------
    adata
        A simulation of `factorised` or `from_data`, or a subset of its cells.
    treatment
        The treatment to give, "control" included.
    draws
        Monte-Carlo draws per cell.
    seed
        Seed of the draws.

    Returns
    -------
    mean_ng
        Expected counts (cells, genes); the noiseless logits in "gaussian".

    Raises
    ------
    CategoryError
        The simulation has no such treatment.
    SchemaError
        The AnnData is no such simulation.
    """
    simulation = _simulation(adata)
    known = [str(name) for name in simulation["treatments"]]
    if treatment not in known:
        raise CategoryError(
            sentence(
                "no such treatment in the simulation",
                where="treatment",
                expected=", ".join(known),
                got=repr(treatment),
                hint="choose one of these",
            )
        )
    rng = np.random.default_rng(seed)
    levels = pd.Index([str(name) for name in simulation["covariates"]])
    x_n = levels.get_indexer(pd.Index(adata.obs["covariate"].astype(str)))
    t_n = np.full(adata.n_obs, known.index(treatment))
    prior, correlation = simulation["prior"], float(simulation["correlation"])
    z = {"z_x": np.asarray(adata.obsm["z_x"], float)}
    total = np.zeros(adata.shape)
    for _ in range(draws):
        z["z_t"] = draw_block(prior["z_t"], t_n, x_n, rng, 0.0)
        z["z_tx"] = draw_block(prior["z_tx"], t_n, x_n, rng, correlation)
        total += _mean(z, adata, simulation)
    return total / draws


def true_changes(adata: ad.AnnData, *, cells: int = 2000, seed: int = 0) -> Floats:
    """Compute the true log2 fold change of every gene's share of the counts in every condition.

    Of a condition's cells against the control cells of the same covariate: what z_x loses or
    gains by "selection" counts as well. The same noise serves all conditions, so where the
    treatment changes nothing the change is exactly zero.

    Parameters
    ----------
    adata, cells, seed
        As for `true_shares`.

    Returns
    -------
    change
        (treatments without the control, covariates, genes), in the order of
        ``uns["simulation"]``.

    Raises
    ------
    SchemaError
        The AnnData is no such simulation.
    """
    share = true_shares(adata, cells=cells, seed=seed)
    return np.log2(share[1:] / share[:1])


def true_shares(adata: ad.AnnData, *, cells: int = 2000, seed: int = 0) -> Floats:
    """Compute each gene's true share of the counts of every condition's cells.

    Parameters
    ----------
    adata
        A simulation of `factorised` or `from_data` with counts and without batches.
    cells
        Monte-Carlo cells per condition.
    seed
        Seed of their latents, which are the same noise in all conditions.

    Returns
    -------
    share
        (treatments, covariates, genes), in the order of ``uns["simulation"]``; sums over genes
        to one.

    Raises
    ------
    SchemaError
        The AnnData is no such simulation.
    """
    simulation = _simulation(adata)
    counted = (
        simulation["observation"] != "gaussian" and "batch_offset" not in simulation["mixing"]
    )
    if not counted:
        raise SchemaError(
            sentence(
                "no fold changes in this simulation",
                where="adata",
                expected="counts, and no batches",
                got="values that are no counts, or several batches",
                hint="use counterfactual_truth",
            )
        )
    prior = simulation["prior"]
    n_t, n_x = len(simulation["treatments"]), len(simulation["covariates"])
    beside = adata.obsm["background"].shape[1] if "background" in adata.obsm else 0
    share = np.empty((n_t, n_x, adata.n_vars))
    for t in range(n_t):
        for x in range(n_x):
            rng = np.random.default_rng(seed)
            where = np.full(cells, t), np.full(cells, x), rng
            correlation = {"z_tx": float(simulation["correlation"])}
            z = [draw_block(prior[k], *where, correlation.get(k, 0.0)) for k in BLOCKS]
            z_nd = np.concatenate([*z, rng.standard_normal((cells, beside))], axis=1)
            observation = simulation["observation"]
            share[t, x] = decode(
                z_nd, np.ones(cells), None, simulation["mixing"], observation
            ).mean(0)
    return share


def _mean(z: Mapping[str, Floats], adata: ad.AnnData, simulation: Mapping[str, Any]) -> Floats:
    beside = [np.asarray(adata.obsm["background"], float)] if "background" in adata.obsm else []
    z_nd = np.concatenate([*(z[name] for name in BLOCKS), *beside], axis=1)
    library_n = adata.obs["library"].to_numpy(float)
    batch_n = None
    if "batch_offset" in simulation["mixing"]:
        # Names, not codes: a subset of cells may have dropped a category.
        batch_n = adata.obs["batch"].astype(str).str[1:].astype(int).to_numpy() - 1
    out = np.empty(adata.shape)
    for rows in chunks(adata.n_obs):
        batch = None if batch_n is None else batch_n[rows]
        out[rows] = decode(
            z_nd[rows], library_n[rows], batch, simulation["mixing"], simulation["observation"]
        )
    return out


def _simulation(adata: ad.AnnData) -> Mapping[str, Any]:
    missing = [key for key in BLOCKS if key not in adata.obsm]
    if "simulation" not in adata.uns or missing:
        raise SchemaError(
            sentence(
                "not a simulation with known latents",
                where="uns['simulation'], obsm",
                expected="both as simulate.factorised and simulate.from_data write them",
                got=f"uns keys {sorted(adata.uns)}, obsm keys {sorted(adata.obsm)}",
                hint="pass the AnnData that one of them returned",
            )
        )
    return adata.uns["simulation"]
