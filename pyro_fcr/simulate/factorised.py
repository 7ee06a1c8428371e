"""Count data with known latents: the factorised generator that the recovery evidence stands on.

    z_x | x        ~ Normal(m_x, s_x)               block of the covariate
    z_t | t        ~ Normal(m_t, s_t)               block of the treatment, N(0, 1) in the control
    z_tx | t, x    ~ Normal(m_tx, s_tx)             block of their interaction
    counts | z     ~ NB(library * softmax(f(z)), theta)

with ``f`` a fixed, almost surely injective network (semi-orthogonal maps and leaky ReLUs).
The theory is that of Mao et al., NeurIPS 2024 (arXiv 2410.22472); the generator is ours.
Everything needed to compute the truth again, counterfactuals included, travels in
``uns["simulation"]``, which ``h5ad`` can store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import anndata as ad
import numpy as np
import pandas as pd

from pyro_fcr.errors import DesignError, sentence
from pyro_fcr.simulate.checks import refuse
from pyro_fcr.simulate.latents import (
    BLOCKS,
    conditional_prior,
    draw_block,
    rank_condition,
    semi_orthogonal,
)
from pyro_fcr.simulate.observation import collect, observe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]

__all__ = ["VARIANTS", "design_obs", "draw_mixing", "factorised"]

Variant = Literal[
    "base",
    "gaussian",
    "cond",
    "sparse",
    "dim",
    "hold",
    "batch",
    "additive",
    "fixed_variance",
    "few_conditions",
    "selection",
    "correlated",
    "null",
]

#: Every variant with the one thing that sets it apart from ``base``.
VARIANTS: dict[str, str] = {
    "base": "meets every condition of the theorem",
    "gaussian": "F0: Gaussian observations of the logits instead of counts",
    "cond": "F-cond: 10 treatments (control included) and 8 covariates",
    "sparse": "F-sparse: library 1,500 over 2,000 genes",
    "dim": "F-dim: the data of base; the model is to be given blocks of twice the size",
    "hold": "F-hold: 20 % of the treated conditions flagged in obs['held_out']",
    "batch": "F-batch: a batch enters the decoder",
    "additive": "V1: natural parameters of z_tx are additive in treatment and covariate",
    "fixed_variance": "V2: the scale of z_tx is the same in every condition",
    "few_conditions": "V3: (T - 1)(X - 1) < 2 n_tx",
    "selection": "V4: z_x depends on the treatment",
    "correlated": "V5: the components of z_tx are correlated within a condition",
    "null": "V6: no effect and no interaction: z_t and z_tx are N(0, 1) everywhere",
}

_ALIASES = {
    "V1": "additive",
    "V2": "fixed_variance",
    "V3": "few_conditions",
    "V4": "selection",
    "V5": "correlated",
    "V6": "null",
}
_GRADED = ("batch", "additive", "fixed_variance", "selection", "correlated", "null")
_WIDTH = 40
_THETA = 10.0
_LIBRARY_SD = 0.3
_NOISE_SD = 0.5
_CORRELATION = 0.6
_BATCH_SD = 0.5


def factorised(
    variant: Variant | str = "base",
    *,
    n_per_condition: int | None = None,
    n_genes: int | None = None,
    n_treatments: int | None = None,
    n_covariates: int | None = None,
    sizes: Mapping[str, int] | None = None,
    library: float | None = None,
    held_out: float = 0.2,
    n_batches: int = 3,
    strength: float = 1.0,
    path: str | Path | None = None,
    seed: int = 0,
) -> ad.AnnData:
    """Draw cells from the factorised generator with known latents.

    Means are N(0, 1.5^2) and log-scales U(log 0.4, log 1.6) per condition and dimension. The
    latents are standardised and mixed by two semi-orthogonal layers of width 40 with leaky ReLU
    0.2, then mapped to logits of standard deviation 1, to which gene offsets N(0, 1) are added.

    Parameters
    ----------
    variant
        A key of `VARIANTS`, or "V1" to "V6".
    n_per_condition
        Cells per (treatment, covariate); 200 unless told.
    n_genes
        Genes; 300 unless told (2,000 in "sparse").
    n_treatments, n_covariates
        Levels, the control included; 7 and 6 unless told (10 and 8 in "cond", 3 and 3 in
        "few_conditions").
    sizes
        Dimensions of the true blocks; 3, 3 and 4 for z_x, z_t and z_tx unless told.
    library
        Median library size; 5,000 unless told (1,500 in "sparse").
    held_out
        Share of the treated conditions that "hold" flags.
    n_batches
        Batches of "batch", drawn independently of everything else.
    strength
        How much of what sets the variant apart: 1 all of it, 0 none (then "base"), a number
        between a graded violation. For "batch", "additive", "fixed_variance", "selection",
        "correlated" and "null"; parameters move linearly (natural parameters in "additive",
        log-scales in the others).
    path
        A new ``*.h5ad`` file or ``*.zarr`` folder: counts go there a chunk of cells at a time and
        stay there, so that memory does not grow with them.
    seed
        Same seed, same cells, in memory or on disk.

    Returns
    -------
    adata
        ``X`` counts (csr float32; dense float32 in "gaussian"), obs ``treatment`` ("control",
        "t1", ...), ``covariate`` ("x1", ...), ``library`` and, where they apply, ``batch`` and
        ``held_out``; obsm ``z_x``, ``z_t``, ``z_tx``; ``uns["simulation"]``.

    Raises
    ------
    DesignError
        The variant is unknown, or the sizes cannot carry it.
    SchemaError
        The path has another ending, or exists already.

    Examples
    --------
    >>> adata = factorised("base", n_per_condition=5, n_genes=30, seed=1)
    >>> adata.shape, adata.obsm["z_tx"].shape, bool(adata.uns["simulation"]["rank"]["holds"])
    ((210, 30), (210, 4), True)
    """
    variant = _ALIASES.get(variant, variant)
    if variant not in VARIANTS:
        raise DesignError(
            sentence(
                "no such simulation",
                where="variant",
                expected=", ".join(VARIANTS),
                got=repr(variant),
                hint="choose one of these, or V1 to V6",
            )
        )
    size = {"z_x": 3, "z_t": 3, "z_tx": 4} | dict(sizes or {})
    n_t = n_treatments or {"cond": 10, "few_conditions": 3}.get(variant, 7)
    n_x = n_covariates or {"cond": 8, "few_conditions": 3}.get(variant, 6)
    n_cells = n_per_condition or 200
    genes = n_genes or (2000 if variant == "sparse" else 300)
    depth = library or (1500.0 if variant == "sparse" else 5000.0)
    _check(variant, n_t, n_x, n_cells, genes, size, strength)

    # One stream per purpose, so that variants of one seed differ only where they mean to.
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(6)]
    rng_prior, rng_latent, rng_mix, rng_count, rng_design, rng_variant = streams
    prior = conditional_prior(variant, n_t, n_x, size, rng_prior, rng_variant, strength)
    correlation = strength * _CORRELATION if variant == "correlated" else 0.0

    t_n = np.repeat(np.arange(n_t), n_x * n_cells)
    x_n = np.tile(np.repeat(np.arange(n_x), n_cells), n_t)
    latents = {
        name: draw_block(prior[name], t_n, x_n, rng_latent, correlation if name == "z_tx" else 0.0)
        for name in BLOCKS
    }
    z_nd = np.concatenate([latents[name] for name in BLOCKS], axis=1)
    mixing = draw_mixing(z_nd, genes, rng_mix)
    library_n = depth * np.exp(_LIBRARY_SD * rng_design.standard_normal(len(t_n)))

    obs = design_obs(t_n, x_n, library_n)
    batch_n = None
    if variant == "batch":
        batch_n = rng_variant.integers(n_batches, size=len(t_n))
        mixing["batch_offset"] = (
            strength * _BATCH_SD * rng_variant.standard_normal((n_batches, genes))
        )
        names = pd.Index([f"b{i}" for i in range(1, n_batches + 1)])
        obs["batch"] = pd.Categorical.from_codes(batch_n, categories=names)
    if variant == "hold":
        obs["held_out"] = _hold_out(n_t, n_x, held_out, rng_variant)[t_n, x_n]

    observation = "gaussian" if variant == "gaussian" else "negative_binomial"
    adata = ad.AnnData(
        obs=obs, var=pd.DataFrame(index=pd.Index([f"gene{i}" for i in range(genes)]))
    )
    for name in BLOCKS:
        adata.obsm[name] = latents[name].astype(np.float32)
    factor = 2 if variant == "dim" else 1
    adata.uns["simulation"] = {
        "variant": variant,
        "description": VARIANTS[variant],
        "strength": strength,
        "seed": seed,
        "n_per_condition": n_cells,
        "treatments": np.array(obs["treatment"].cat.categories, dtype=object),
        "covariates": np.array(obs["covariate"].cat.categories, dtype=object),
        "sizes": size,
        "model_sizes": {name: factor * d for name, d in size.items()},
        "observation": observation,
        "library": depth,
        "library_sd": _LIBRARY_SD,
        "theta": _THETA,
        "noise_sd": _NOISE_SD,
        "correlation": correlation,
        "prior": prior,
        "mixing": mixing,
        "rank": rank_condition(prior["z_tx"]["loc"], prior["z_tx"]["scale"]),
    }
    parts = observe(z_nd, library_n, batch_n, adata.uns["simulation"], rng_count)
    return collect(parts, adata, path)


def design_obs(
    t_n: NDArray[np.integer[Any]], x_n: NDArray[np.integer[Any]], library_n: Floats
) -> pd.DataFrame:
    """Name the cells and their labels: treatments "control", "t1", ..., covariates "x1", ..."""
    treatments = pd.Index(["control", *(f"t{i}" for i in range(1, t_n.max() + 1))])
    covariates = pd.Index([f"x{i}" for i in range(1, x_n.max() + 2)])
    return pd.DataFrame(
        {
            "treatment": pd.Categorical.from_codes(t_n, categories=treatments),
            "covariate": pd.Categorical.from_codes(x_n, categories=covariates),
            "library": library_n,
        },
        index=pd.Index([f"cell{i}" for i in range(len(t_n))]),
    )


def _check(
    variant: str,
    n_t: int,
    n_x: int,
    n_cells: int,
    genes: int,
    size: Mapping[str, int],
    strength: float,
) -> None:
    d = sum(size.values())
    problems = [
        (set(size) != set(BLOCKS), "sizes", "z_x, z_t and z_tx", ", ".join(size)),
        (min(size.values()) < 1, "sizes", "at least 1 dimension a block", str(dict(size))),
        (d > _WIDTH, "sizes", f"at most {_WIDTH} dimensions in all", str(d)),
        (min(n_t, n_x) < 2, "levels", "two treatments and two covariates", f"{n_t} and {n_x}"),
        (n_cells < 1, "n_per_condition", "at least 1", str(n_cells)),
        (not 0 <= strength <= 1, "strength", "a number from 0 to 1", str(strength)),
        (
            strength != 1 and variant not in _GRADED,
            "strength",
            f"1, as {variant!r} has no grades",
            str(strength),
        ),
        (genes < 2, "n_genes", "at least 2", str(genes)),
        (
            variant == "few_conditions" and (n_t - 1) * (n_x - 1) >= 2 * size["z_tx"],
            "few_conditions",
            "(T - 1)(X - 1) < 2 n_tx",
            f"{(n_t - 1) * (n_x - 1)} and {2 * size['z_tx']}",
        ),
        (
            variant == "hold" and min(n_t, n_x) < 3,
            "hold",
            "at least 2 treatments beside the control, and 3 covariates",
            f"{n_t - 1} and {n_x}",
        ),
    ]
    refuse(problems)


def draw_mixing(z_nd: Floats, genes: int, rng: np.random.Generator) -> dict[str, Any]:
    """Draw the decoder of cells: maps whose logits have standard deviation 1 over these cells."""
    spread = z_nd.std(0)
    mixing: dict[str, Any] = {
        "center": z_nd.mean(0),
        "spread": np.where(spread > 0, spread, 1.0),
        "first": semi_orthogonal(rng, z_nd.shape[1], _WIDTH),
        "second": semi_orthogonal(rng, _WIDTH, _WIDTH),
    }
    # The rescaling is folded into the weights: counterfactual cells meet the same function.
    h = (z_nd - mixing["center"]) / mixing["spread"] @ mixing["first"]
    h = np.where(h > 0, h, 0.2 * h)
    first = h.std() or 1.0
    h = h / first @ mixing["second"]
    h = np.where(h > 0, h, 0.2 * h)
    second = h.std() or 1.0
    h /= second
    weight = rng.standard_normal((_WIDTH, genes)) / np.sqrt(_WIDTH)
    # Variance of h @ weight per gene from the covariance of h: no (cells, genes) array needed.
    variance = np.einsum("kg,kl,lg->g", weight, np.cov(h.T, bias=True), weight)
    sd = np.sqrt(variance.mean()) or 1.0
    mixing["second"] /= first
    mixing["out"] = weight / second / sd
    mixing["offset"] = rng.standard_normal(genes) - h.mean(0) @ weight / sd
    return mixing


def _hold_out(n_t: int, n_x: int, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Flag treated conditions (never controls), leaving two to every treatment and covariate."""
    held = np.zeros((n_t, n_x), dtype=bool)
    wanted = max(1, round(share * (n_t - 1) * n_x))
    for index in rng.permutation((n_t - 1) * n_x):
        t, x = 1 + index // n_x, index % n_x
        keeps_row = (~held[t]).sum() > 2
        keeps_column = (~held[1:, x]).sum() > min(2, n_t - 2)
        if held.sum() < wanted and keeps_row and keeps_column:
            held[t, x] = True
    if held.sum() < wanted:
        raise DesignError(
            sentence(
                "too many conditions to hold out",
                where="held_out",
                expected=f"at most {int(held.sum())} of {(n_t - 1) * n_x} treated conditions",
                got=str(wanted),
                hint="lower held_out, or simulate more conditions",
            )
        )
    return held
