"""Cells of several biologies from several batches, with known invariant and spurious latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd

from pyro_fcr.simulate.checks import refuse
from pyro_fcr.simulate.factorised import draw_mixing
from pyro_fcr.simulate.observation import collect, observe

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["environments"]

LIBRARY_SD = 0.3
THETA = 10.0


def environments(
    *,
    confounding: float = 0.0,
    n_cells: int = 4000,
    n_genes: int = 300,
    n_biologies: int | None = None,
    n_batches: int | None = None,
    sizes: Mapping[str, int] | None = None,
    library: float = 5000.0,
    seed: int = 0,
) -> ad.AnnData:
    """Draw cells whose latents descend from biology (z_inv) and from batch (z_spur).

    Each biology d has means N(0, 1.5²) and log-scales U(log 0.4, log 1.6) of its own in every
    dimension of z_inv, each batch e likewise in z_spur: 2n + 1 of them identify n components of a
    conditional Gaussian prior (Khemakhem et al. 2020, theorem 1). Latents are mixed into genes as
    in `factorised`.

    Parameters
    ----------
    confounding
        Share of the cells whose batch is the one their biology prefers; the others' is drawn
        uniformly, so that every pair occurs. 0 makes biology and batch independent.
    n_cells, n_genes
        Cells and genes.
    n_biologies, n_batches
        Levels; by default 2n + 1, which is also the least, with n the size of the block.
    sizes
        Dimensions of ``z_inv`` and ``z_spur``; 4 and 2 unless told.
    library
        Median library size.
    seed
        Same seed, same cells.

    Returns
    -------
    adata
        ``X`` counts, obs ``biology`` ("d1", ...), ``batch`` ("e1", ...) and ``library``; obsm
        ``z_inv`` and ``z_spur``; ``uns["simulation"]``.

    Raises
    ------
    DesignError
        The levels are too few for the sizes, or a number is out of its range.

    Examples
    --------
    >>> adata = environments(n_cells=100, n_genes=30, confounding=0.9)
    >>> adata.obsm["z_inv"].shape, adata.obs["biology"].nunique(), adata.obs["batch"].nunique()
    ((100, 4), 9, 5)
    """
    size = {"z_inv": 4, "z_spur": 2} | dict(sizes or {})
    least = {name: 2 * d + 1 for name, d in size.items()}
    n_d, n_e = n_biologies or least["z_inv"], n_batches or least["z_spur"]
    problems = [
        (set(size) != {"z_inv", "z_spur"}, "sizes", "z_inv and z_spur", ", ".join(size)),
        (min(size.values()) < 1, "sizes", "at least 1 dimension a block", str(size)),
        (n_d < least["z_inv"], "n_biologies", f"at least {least['z_inv']}", str(n_d)),
        (n_e < least["z_spur"], "n_batches", f"at least {least['z_spur']}", str(n_e)),
        (not 0 <= confounding <= 1, "confounding", "a share from 0 to 1", str(confounding)),
        (n_cells < 1 or n_genes < 2, "n_cells, n_genes", "some of each", f"{n_cells}, {n_genes}"),
    ]
    refuse(problems)
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(5)]
    rng_prior, rng_latent, rng_mix, rng_count, rng_design = streams
    d_n = rng_design.integers(n_d, size=n_cells)
    preferred = np.arange(n_d) % n_e
    follows = rng_design.random(n_cells) < confounding
    e_n = np.where(follows, preferred[d_n], rng_design.integers(n_e, size=n_cells))
    library_n = library * np.exp(LIBRARY_SD * rng_design.standard_normal(n_cells))
    labels = {"z_inv": (d_n, n_d), "z_spur": (e_n, n_e)}
    prior, latents = {}, {}
    for name, (code, n) in labels.items():
        loc = rng_prior.normal(0.0, 1.5, (n, size[name]))
        scale = np.exp(rng_prior.uniform(np.log(0.4), np.log(1.6), (n, size[name])))
        prior[name] = {"loc": loc, "scale": scale}
        noise = rng_latent.standard_normal((n_cells, size[name]))
        latents[name] = loc[code] + scale[code] * noise
    z_nd = np.concatenate(list(latents.values()), axis=1)
    names = [("biology", "d", d_n, n_d), ("batch", "e", e_n, n_e)]
    obs = {
        column: pd.Categorical.from_codes(code, categories=[f"{k}{i + 1}" for i in range(n)])
        for column, k, code, n in names
    }
    index = pd.Index([f"cell{i}" for i in range(n_cells)])
    genes = pd.Index([f"gene{i}" for i in range(n_genes)])
    adata = ad.AnnData(
        obs=pd.DataFrame(obs, index=index).assign(library=library_n), var=pd.DataFrame(index=genes)
    )
    for name, values in latents.items():
        adata.obsm[name] = values.astype(np.float32)
    adata.uns["simulation"] = {
        "variant": "environments",
        "confounding": confounding,
        "seed": seed,
        "sizes": size,
        "observation": "negative_binomial",
        "library": library,
        "library_sd": LIBRARY_SD,
        "theta": THETA,
        "prior": prior,
        "mixing": draw_mixing(z_nd, n_genes, rng_mix),
    }
    return collect(observe(z_nd, library_n, None, adata.uns["simulation"], rng_count), adata)
