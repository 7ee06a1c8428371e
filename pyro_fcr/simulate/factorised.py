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
import scipy.sparse as sp

from pyro_fcr.errors import CategoryError, DesignError, SchemaError, sentence

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]

__all__ = ["VARIANTS", "counterfactual_truth", "expected_counts", "factorised"]

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
_WIDTH = 40
_THETA = 10.0
_LIBRARY_SD = 0.3
_NOISE_SD = 0.5
_FIXED_SCALE = 0.8
_CORRELATION = 0.6
_SELECTION_SD = 1.0
_BATCH_SD = 0.5
_CHUNK = 2048
_BLOCKS = ("z_x", "z_t", "z_tx")


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
    seed
        Same seed, same cells.

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
    _check(variant, n_t, n_x, n_cells, genes, size)

    # One stream per purpose, so that variants of one seed differ only where they mean to.
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(6)]
    rng_prior, rng_latent, rng_mix, rng_count, rng_design, rng_variant = streams
    prior = _prior(variant, n_t, n_x, size, rng_prior, rng_variant)
    correlation = _CORRELATION if variant == "correlated" else 0.0

    t_n = np.repeat(np.arange(n_t), n_x * n_cells)
    x_n = np.tile(np.repeat(np.arange(n_x), n_cells), n_t)
    latents = {
        name: _draw(prior[name], t_n, x_n, rng_latent, correlation if name == "z_tx" else 0.0)
        for name in _BLOCKS
    }
    z_nd = np.concatenate([latents[name] for name in _BLOCKS], axis=1)
    mixing = _mixing(z_nd, genes, rng_mix)
    library_n = depth * np.exp(_LIBRARY_SD * rng_design.standard_normal(len(t_n)))

    treatments = np.array(["control", *(f"t{i}" for i in range(1, n_t))], dtype=object)
    covariates = np.array([f"x{i}" for i in range(1, n_x + 1)], dtype=object)
    obs = pd.DataFrame(
        {
            "treatment": pd.Categorical.from_codes(t_n, categories=pd.Index(treatments)),
            "covariate": pd.Categorical.from_codes(x_n, categories=pd.Index(covariates)),
            "library": library_n,
        },
        index=pd.Index([f"cell{i}" for i in range(len(t_n))]),
    )
    batch_n = None
    if variant == "batch":
        batch_n = rng_variant.integers(n_batches, size=len(t_n))
        mixing["batch_offset"] = _BATCH_SD * rng_variant.standard_normal((n_batches, genes))
        names = pd.Index([f"b{i}" for i in range(1, n_batches + 1)])
        obs["batch"] = pd.Categorical.from_codes(batch_n, categories=names)
    if variant == "hold":
        obs["held_out"] = _hold_out(n_t, n_x, held_out, rng_variant)[t_n, x_n]

    observation = "gaussian" if variant == "gaussian" else "negative_binomial"
    adata = ad.AnnData(
        X=_observe(z_nd, library_n, batch_n, mixing, observation, rng_count),
        obs=obs,
        var=pd.DataFrame(index=pd.Index([f"gene{i}" for i in range(genes)])),
    )
    for name in _BLOCKS:
        adata.obsm[name] = latents[name].astype(np.float32)
    factor = 2 if variant == "dim" else 1
    adata.uns["simulation"] = {
        "variant": variant,
        "description": VARIANTS[variant],
        "seed": seed,
        "n_per_condition": n_cells,
        "treatments": treatments,
        "covariates": covariates,
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
        "rank": _rank_condition(prior["z_tx"]["loc"], prior["z_tx"]["scale"]),
    }
    return adata


def expected_counts(adata: ad.AnnData) -> Floats:
    """Compute the true mean expression of every cell as it is.

    Parameters
    ----------
    adata
        A simulation of `factorised`, or a subset of its cells.

    Returns
    -------
    mean_ng
        Expected counts (cells, genes); the noiseless logits in "gaussian".
    """
    simulation = _simulation(adata)
    z_nd = np.concatenate([np.asarray(adata.obsm[name], float) for name in _BLOCKS], axis=1)
    return _mean(z_nd, adata, simulation)


def counterfactual_truth(
    adata: ad.AnnData, treatment: str, *, draws: int = 20, seed: int = 0
) -> Floats:
    """Compute the true mean expression of cells had they received another treatment.

    Keeps each cell's z_x, library, batch and covariate; z_t and z_tx are drawn afresh from the
    true prior at the new treatment, and the mean expression is averaged over the draws.

    Parameters
    ----------
    adata
        A simulation of `factorised`, or a subset of its cells.
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
        The AnnData is not a simulation of `factorised`.
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
    z_x = np.asarray(adata.obsm["z_x"], float)
    total = np.zeros(adata.shape)
    for _ in range(draws):
        z_t = _draw(simulation["prior"]["z_t"], t_n, x_n, rng, 0.0)
        z_tx = _draw(simulation["prior"]["z_tx"], t_n, x_n, rng, float(simulation["correlation"]))
        total += _mean(np.concatenate([z_x, z_t, z_tx], axis=1), adata, simulation)
    return total / draws


def _check(
    variant: str, n_t: int, n_x: int, n_cells: int, genes: int, size: Mapping[str, int]
) -> None:
    d = sum(size.values())
    problems = [
        (set(size) != set(_BLOCKS), "sizes", "z_x, z_t and z_tx", ", ".join(size)),
        (min(size.values()) < 1, "sizes", "at least 1 dimension a block", str(dict(size))),
        (d > _WIDTH, "sizes", f"at most {_WIDTH} dimensions in all", str(d)),
        (min(n_t, n_x) < 2, "levels", "two treatments and two covariates", f"{n_t} and {n_x}"),
        (n_cells < 1, "n_per_condition", "at least 1", str(n_cells)),
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
    for wrong, where, expected, got in problems:
        if wrong:
            raise DesignError(
                sentence(
                    "the simulation cannot be drawn",
                    where=where,
                    expected=expected,
                    got=got,
                    hint="change that argument",
                )
            )


def _prior(
    variant: str,
    n_t: int,
    n_x: int,
    size: Mapping[str, int],
    rng: np.random.Generator,
    rng_variant: np.random.Generator,
) -> dict[str, dict[str, Floats]]:
    """Loc and scale of every block, each broadcast to (T, X, d) so that readers need no cases."""

    def loc(*shape: int) -> Floats:
        return rng.normal(0.0, 1.5, shape)

    def scale(*shape: int) -> Floats:
        return np.exp(rng.uniform(np.log(0.4), np.log(1.6), shape))

    d_x, d_t, d_tx = (size[name] for name in _BLOCKS)
    loc_x, scale_x = loc(1, n_x, d_x), scale(1, n_x, d_x)
    loc_t, scale_t = loc(n_t, 1, d_t), scale(n_t, 1, d_t)
    loc_t[0], scale_t[0] = 0.0, 1.0
    loc_tx, scale_tx = loc(n_t, n_x, d_tx), scale(n_t, n_x, d_tx)
    if variant == "additive":
        # The mean of two natural parameters: additive by construction, precision positive.
        m_t, m_x = loc_tx[:, :1], loc_tx[:1]
        p_t, p_x = scale_tx[:, :1] ** -2, scale_tx[:1] ** -2
        precision = (p_t + p_x) / 2
        loc_tx = (m_t * p_t + m_x * p_x) / 2 / precision
        scale_tx = precision**-0.5
    elif variant == "fixed_variance":
        scale_tx = np.full_like(scale_tx, _FIXED_SCALE)
    elif variant == "selection":
        shift = _SELECTION_SD * rng_variant.standard_normal((n_t, 1, d_x))
        shift[0] = 0.0
        loc_x = loc_x + shift
    elif variant == "null":
        loc_t, scale_t = np.zeros_like(loc_t), np.ones_like(scale_t)
        loc_tx, scale_tx = np.zeros_like(loc_tx), np.ones_like(scale_tx)
    blocks = {"z_x": (loc_x, scale_x), "z_t": (loc_t, scale_t), "z_tx": (loc_tx, scale_tx)}
    return {
        name: {
            "loc": np.broadcast_to(m, (n_t, n_x, size[name])).copy(),
            "scale": np.broadcast_to(s, (n_t, n_x, size[name])).copy(),
        }
        for name, (m, s) in blocks.items()
    }


def _draw(
    prior: Mapping[str, Any],
    t_n: NDArray[np.integer[Any]],
    x_n: NDArray[np.integer[Any]],
    rng: np.random.Generator,
    correlation: float,
) -> Floats:
    loc_nd, scale_nd = np.asarray(prior["loc"])[t_n, x_n], np.asarray(prior["scale"])[t_n, x_n]
    noise_nd = rng.standard_normal(loc_nd.shape)
    if correlation:
        shared = rng.standard_normal((len(loc_nd), 1))
        noise_nd = np.sqrt(1 - correlation) * noise_nd + np.sqrt(correlation) * shared
    return loc_nd + scale_nd * noise_nd


def _semi_orthogonal(rng: np.random.Generator, n_in: int, n_out: int) -> Floats:
    q, r = np.linalg.qr(rng.standard_normal((n_out, n_in)))
    # Signs of R's diagonal fixed: without that QR does not draw from the Haar measure.
    return (q * np.sign(np.diag(r))).T


def _mixing(z_nd: Floats, genes: int, rng: np.random.Generator) -> dict[str, Any]:
    spread = z_nd.std(0)
    mixing: dict[str, Any] = {
        "center": z_nd.mean(0),
        "spread": np.where(spread > 0, spread, 1.0),
        "first": _semi_orthogonal(rng, z_nd.shape[1], _WIDTH),
        "second": _semi_orthogonal(rng, _WIDTH, _WIDTH),
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


def _logits(z_nd: Floats, mixing: Mapping[str, Any]) -> Floats:
    h = (z_nd - mixing["center"]) / mixing["spread"] @ mixing["first"]
    h = np.where(h > 0, h, 0.2 * h) @ mixing["second"]
    return np.where(h > 0, h, 0.2 * h) @ mixing["out"] + mixing["offset"]


def _chunks(n: int) -> Iterator[slice]:
    return (slice(i, min(i + _CHUNK, n)) for i in range(0, n, _CHUNK))


def _decode(
    z_nd: Floats,
    library_n: Floats,
    batch_n: NDArray[np.integer[Any]] | None,
    mixing: Mapping[str, Any],
    observation: str,
) -> Floats:
    logits = _logits(z_nd, mixing)
    if batch_n is not None:
        logits = logits + mixing["batch_offset"][batch_n]
    if observation == "gaussian":
        return logits
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p * (library_n / p.sum(1))[:, None]


def _observe(
    z_nd: Floats,
    library_n: Floats,
    batch_n: NDArray[np.integer[Any]] | None,
    mixing: Mapping[str, Any],
    observation: str,
    rng: np.random.Generator,
) -> Any:
    parts = []
    for rows in _chunks(len(z_nd)):
        batch = None if batch_n is None else batch_n[rows]
        mean = _decode(z_nd[rows], library_n[rows], batch, mixing, observation)
        if observation == "gaussian":
            parts.append((mean + _NOISE_SD * rng.standard_normal(mean.shape)).astype(np.float32))
        else:
            rate = rng.standard_gamma(_THETA, mean.shape) * (mean / _THETA)
            parts.append(sp.csr_matrix(rng.poisson(rate).astype(np.float32)))
    return np.concatenate(parts) if observation == "gaussian" else sp.vstack(parts, format="csr")


def _mean(z_nd: Floats, adata: ad.AnnData, simulation: Mapping[str, Any]) -> Floats:
    library_n = adata.obs["library"].to_numpy(float)
    batch_n = None
    if "batch_offset" in simulation["mixing"]:
        # Names, not codes: a subset of cells may have dropped a category.
        batch_n = adata.obs["batch"].astype(str).str[1:].astype(int).to_numpy() - 1
    out = np.empty(adata.shape)
    for rows in _chunks(adata.n_obs):
        batch = None if batch_n is None else batch_n[rows]
        out[rows] = _decode(
            z_nd[rows], library_n[rows], batch, simulation["mixing"], simulation["observation"]
        )
    return out


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


def _rank_condition(loc: Floats, scale: Floats) -> dict[str, Any]:
    """Rank of the interaction contrasts of the true natural parameters (theorem of FCR)."""
    eta = np.concatenate([loc / scale**2, -0.5 / scale**2], axis=-1)
    contrasts = (eta - eta[:1] - eta[:, :1] + eta[:1, :1])[1:, 1:].reshape(-1, eta.shape[-1])
    # Columns of one size; a column of zeros (means that never move) stays one.
    size = np.sqrt((eta**2).mean((0, 1)))
    values = np.linalg.svd(contrasts / np.where(size > 0, size, 1.0), compute_uv=False)
    rank = int((values > 1e-8 * max(1.0, values.max())).sum())
    needed = eta.shape[-1]
    return {
        "rank": rank,
        "needed": needed,
        "holds": rank == needed,
        "singular_values": values,
        "ratio": float(values[-1] / values[0]) if rank == needed else 0.0,
    }


def _simulation(adata: ad.AnnData) -> Mapping[str, Any]:
    needed = [key for key in _BLOCKS if key not in adata.obsm]
    if "simulation" not in adata.uns or needed:
        raise SchemaError(
            sentence(
                "not a simulation with known latents",
                where="uns['simulation'], obsm",
                expected="both as simulate.factorised writes them",
                got=f"uns keys {sorted(adata.uns)}, obsm keys {sorted(adata.obsm)}",
                hint="pass the AnnData that simulate.factorised returned",
            )
        )
    return adata.uns["simulation"]
