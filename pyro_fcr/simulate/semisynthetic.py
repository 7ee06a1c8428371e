r"""Known factors planted into the means, dispersions and covariance of a real data set.

    log rate = offset + z_x . W_x + background . W_b + z_t . W_t + z_tx . W_tx
    counts   ~ NB(library * softmax(log rate), theta_gene)

``W_x`` and ``W_b`` together are a low-rank factor of the real genes' covariance on the log scale:
z_x carries its leading directions, a background that no label moves the others. ``W_t`` and
``W_tx`` are sparse, so that most genes do not respond and the truth of every gene in every
condition is known. Libraries are drawn from the real cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.sparse.linalg import eigsh

from pyro_fcr.errors import CountsError, DesignError, sentence
from pyro_fcr.simulate.checks import refuse
from pyro_fcr.simulate.factorised import design_obs
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

__all__ = ["from_data"]

THETA_RANGE = (0.1, 1e4)
CELLS_FOR_MOMENTS = 20_000
FACTOR_ITERATIONS = 10


class _Moments(NamedTuple):
    """Of a real data set: shares (genes,), factor (rank, genes), dispersion (genes,)."""

    share: Floats
    factor: Floats
    theta: Floats


def from_data(
    adata: ad.AnnData,
    *,
    layer: str | None = None,
    sizes: Mapping[str, int] | None = None,
    n_treatments: int = 7,
    n_covariates: int = 6,
    n_per_condition: int = 200,
    rank: int = 10,
    responding: float = 0.1,
    effect: float = 0.5,
    interaction: float = 0.25,
    interacting: float = 1.0,
    path: str | Path | None = None,
    seed: int = 0,
) -> ad.AnnData:
    """Draw cells with known factors that look like a real data set's.

    Parameters
    ----------
    adata
        Real counts, best of one tissue and without treatment; at most 20,000 cells are read.
    layer
        The layer with the counts; ``X`` by default.
    sizes
        Dimensions of the true blocks; 3, 3 and 4 for z_x, z_t and z_tx unless told.
    n_treatments, n_covariates, n_per_condition
        Levels (the control included) and cells per condition, as in `factorised`.
    rank
        Rank of the genes' covariance on the log scale; z_x takes its leading directions.
    responding
        Share of genes that each dimension of z_t and of z_tx acts on.
    effect, interaction
        Standard deviation over cells of what z_t and z_tx add to the log rate of a gene that
        responds to them. With ``interaction=0`` z_tx is N(0, 1) in every condition.
    interacting
        Share of treated conditions that interact, drawn at random: in the others z_tx is as in
        the control cells of the same covariate. ``uns["simulation"]["interacting"]``, shape
        (treatments, covariates), says which.
    path
        As in `factorised`.
    seed
        Same seed, same cells.

    Returns
    -------
    adata
        As `factorised` gives, with the genes' real names, ``obsm["background"]``, and per gene:
        ``var["responds"]``, ``varm["effect"]`` (a column per treatment: the change of the mean log
        rate against the control, averaged over covariates) and ``varm["interaction"]`` (a column
        "t|x" per condition: what is left of its change). Log rates are before the softmax: what
        responding genes gain is shared out among all.

    Raises
    ------
    CountsError
        The counts are negative or not finite.
    DesignError
        The sizes do not fit, or fewer than two genes are expressed.
    SchemaError
        The path has another ending, or exists already.

    Examples
    --------
    >>> real = ad.AnnData(np.random.default_rng(0).poisson(2.0, (300, 40)))
    >>> adata = from_data(real, n_per_condition=5, rank=5, seed=1)
    >>> adata.shape, adata.varm["interaction"].shape
    ((210, 40), (40, 42))
    """
    size = {"z_x": 3, "z_t": 3, "z_tx": 4} | dict(sizes or {})
    _check(size, n_treatments, n_covariates, n_per_condition, rank, responding, interacting)
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(6)]
    rng_prior, rng_latent, rng_mix, rng_count, rng_design, rng_variant = streams
    counts, kept = _counts(adata, layer, rng_design)
    moments = _moments(counts, rank, size["z_x"])
    genes = len(moments.share)

    prior = conditional_prior("base", n_treatments, n_covariates, size, rng_prior, rng_variant)
    if interaction == 0:
        prior["z_tx"] = {
            "loc": np.zeros_like(prior["z_tx"]["loc"]),
            "scale": np.ones_like(prior["z_tx"]["scale"]),
        }
    planted = rng_variant.permutation((n_treatments - 1) * n_covariates)
    interacts = np.zeros((n_treatments, n_covariates), bool)
    interacts[1:] = (planted < round(interacting * planted.size)).reshape(-1, n_covariates)
    interacts &= interaction != 0
    if interaction != 0:
        for name, values in prior["z_tx"].items():
            prior["z_tx"][name] = np.where(interacts[..., None], values, values[:1])
    t_n = np.repeat(np.arange(n_treatments), n_covariates * n_per_condition)
    x_n = np.tile(np.repeat(np.arange(n_covariates), n_per_condition), n_treatments)
    blocks = [draw_block(prior[name], t_n, x_n, rng_latent, 0.0) for name in BLOCKS]
    background = rng_latent.standard_normal((len(t_n), len(moments.factor) - size["z_x"]))
    z_nd = np.concatenate([*blocks, background], axis=1)
    d_x, d_t = size["z_x"], size["z_t"]
    # The sparse loadings act on standardised latents: a row's size is its sd over cells.
    w_t = _sparse_loading(d_t, genes, responding, effect, rng_mix)
    w_tx = _sparse_loading(size["z_tx"], genes, responding, interaction, rng_mix)
    turned = semi_orthogonal(rng_mix, d_x, d_x) @ moments.factor[:d_x]
    # The mean of exp of a Gaussian log rate is shifted by half its variance: taken off again.
    offset = np.log(moments.share) - (moments.factor**2).sum(0) / 2
    mixing = {
        # About the controls, so that these keep the real means.
        "center": z_nd[t_n == 0].mean(0),
        "spread": z_nd.std(0),
        "loading": np.concatenate([turned, w_t, w_tx, moments.factor[d_x:]]),
        "offset": offset,
    }
    totals = np.asarray(counts.sum(1)).ravel()
    obs = design_obs(t_n, x_n, rng_design.choice(totals[totals > 0], len(t_n)))
    made = ad.AnnData(obs=obs, var=pd.DataFrame(index=adata.var_names[kept]))
    for name, z in zip([*BLOCKS, "background"], [*blocks, background], strict=True):
        made.obsm[name] = z.astype(np.float32)
    _add_truth(made, prior, mixing, size)
    made.uns["simulation"] = {
        "variant": "from_data",
        "description": "factors planted into a real data set's means, dispersions and covariance",
        "seed": seed,
        "n_per_condition": n_per_condition,
        "treatments": np.array(obs["treatment"].cat.categories, dtype=object),
        "covariates": np.array(obs["covariate"].cat.categories, dtype=object),
        "sizes": size,
        "model_sizes": size,
        "observation": "negative_binomial",
        "library": float(np.median(totals)),
        "theta": moments.theta,
        "correlation": 0.0,
        "interacting": interacts,
        "prior": prior,
        "mixing": mixing,
        "rank": rank_condition(prior["z_tx"]["loc"], prior["z_tx"]["scale"]),
    }
    parts = observe(z_nd, obs["library"].to_numpy(), None, made.uns["simulation"], rng_count)
    return collect(parts, made, path)


def _check(
    size: Mapping[str, int],
    n_t: int,
    n_x: int,
    n_cells: int,
    rank: int,
    responding: float,
    interacting: float,
) -> None:
    problems = [
        (set(size) != set(BLOCKS), "sizes", "z_x, z_t and z_tx", ", ".join(size)),
        (min(size.values()) < 1, "sizes", "at least 1 dimension a block", str(dict(size))),
        (min(n_t, n_x) < 2, "levels", "two treatments and two covariates", f"{n_t} and {n_x}"),
        (n_cells < 1, "n_per_condition", "at least 1", str(n_cells)),
        (rank < size.get("z_x", 0), "rank", f"at least z_x's {size.get('z_x')}", str(rank)),
        (not 0 <= interacting <= 1, "interacting", "a share of conditions", str(interacting)),
        (not 0 < responding <= 1, "responding", "a share of genes above 0", str(responding)),
    ]
    refuse(problems)


def _counts(
    adata: ad.AnnData, layer: str | None, rng: np.random.Generator
) -> tuple[sp.csr_matrix, NDArray[np.bool_]]:
    """Read counts of at most 20,000 real cells, and which genes are expressed among them."""
    rows = np.arange(adata.n_obs)
    if len(rows) > CELLS_FOR_MOMENTS:
        rows = np.sort(rng.choice(rows, CELLS_FOR_MOMENTS, replace=False))
    stored = adata.X if layer is None else adata.layers[layer]
    counts = sp.csr_matrix(stored[rows], dtype=np.float64)
    if counts.nnz and (counts.data.min() < 0 or not np.isfinite(counts.data).all()):
        raise CountsError(
            sentence(
                "the real data cannot seed a simulation",
                where="X" if layer is None else f"layers[{layer!r}]",
                expected="finite counts >= 0",
                got=f"a minimum of {counts.data.min():.3g}",
                hint="name the layer with raw counts",
            )
        )
    kept = np.asarray(counts.sum(0)).ravel() > 0
    if kept.sum() < 2:
        raise DesignError(
            sentence(
                "the real data cannot seed a simulation",
                where="genes",
                expected="at least 2 with counts",
                got=str(int(kept.sum())),
                hint="pass counts that are not empty",
            )
        )
    return counts[:, kept], kept


def _moments(counts: sp.csr_matrix, rank: int, least: int) -> _Moments:
    """Shares, low-rank log covariance and residual dispersion, by the method of moments.

    With expected counts mu of a cell's library and a gene's share,
    C_gh = sum_n (y - mu)_g (y - mu)_h / sum_n mu_g mu_h, less the Poisson part on the diagonal, is
    the covariance of relative rates; for log-normal rates log(1 + C) is that of log rates. Its
    leading directions are found by iterated principal factors, with weights sqrt(share), the
    precision of each gene.
    """
    library_n = np.asarray(counts.sum(1)).ravel()
    total_g = np.asarray(counts.sum(0)).ravel()
    share = total_g / total_g.sum()
    squares = float((library_n**2).sum())
    # sum_n y_g mu_h = (y_g . library) share_h, so nothing dense but (genes, genes) is formed.
    cross = counts.T @ library_n
    second = np.asarray((counts.T @ counts).todense())
    mixed = np.outer(cross, share)
    between = squares * np.outer(share, share)
    excess = second - mixed - mixed.T + between
    excess[np.diag_indices(len(share))] -= total_g
    relative = excess / between
    # Beyond these a relative covariance is noise of genes with a handful of counts.
    log_covariance = np.log1p(np.clip(relative, -0.9, 50.0))
    own = np.log1p(np.clip(np.diag(relative), 0.0, 50.0))
    weight = np.sqrt(share)
    weighted = log_covariance * np.outer(weight, weight)
    for _ in range(FACTOR_ITERATIONS):
        values, vectors = eigsh(weighted, k=min(rank, len(share) - 1), v0=np.ones(len(share)))
        values, vectors = values[::-1], vectors[:, ::-1]
        factor = (vectors * np.sqrt(np.maximum(values, 0.0)) / weight[:, None]).T
        # A gene never varies more through the factor than it does in all.
        factor *= np.sqrt(np.minimum(1.0, own / np.maximum((factor**2).sum(0), 1e-12)))
        # What is a gene's own belongs to its dispersion, not to the factor.
        weighted[np.diag_indices(len(share))] = share * (factor**2).sum(0)
    if len(factor) < least:
        raise DesignError(
            sentence(
                "too few genes for the factors",
                where="sizes",
                expected=f"z_x below the {len(share)} expressed genes",
                got=str(least),
                hint="use more genes or a smaller z_x",
            )
        )
    residual = np.exp(own - (factor**2).sum(0)) - 1
    return _Moments(share, factor, np.clip(1 / np.maximum(residual, 1e-12), *THETA_RANGE))


def _sparse_loading(
    d: int, genes: int, responding: float, size: float, rng: np.random.Generator
) -> Floats:
    loading = rng.standard_normal((d, genes)) * (rng.random((d, genes)) < responding)
    spread = np.sqrt((loading**2).sum(0))
    typical = np.sqrt((spread[spread > 0] ** 2).mean()) if spread.any() else 1.0
    return loading * (size / typical)


def _add_truth(
    adata: ad.AnnData,
    prior: Mapping[str, Mapping[str, Floats]],
    mixing: Mapping[str, Any],
    size: Mapping[str, int],
) -> None:
    """Write what every condition does to every gene's mean log rate."""
    edges = np.cumsum([0, *(size[name] for name in BLOCKS)])
    changes = {}
    responds = np.zeros(adata.n_vars, bool)
    for i, name in ((1, "z_t"), (2, "z_tx")):
        rows = slice(edges[i], edges[i + 1])
        loading = mixing["loading"][rows] / mixing["spread"][rows, None]
        changes[name] = (prior[name]["loc"] - prior[name]["loc"][:1]) @ loading
        responds |= (loading != 0).any(0)
    treatments, covariates = (adata.obs[c].cat.categories for c in ("treatment", "covariate"))
    common = changes["z_tx"].mean(1)
    main = changes["z_t"][:, 0] + common
    adata.var["responds"] = responds
    adata.varm["effect"] = pd.DataFrame(main.T, index=adata.var_names, columns=list(treatments))
    adata.varm["interaction"] = pd.DataFrame(
        (changes["z_tx"] - common[:, None]).reshape(-1, adata.n_vars).T,
        index=adata.var_names,
        columns=[f"{t}|{x}" for t in treatments for x in covariates],
    )
