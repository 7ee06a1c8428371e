"""Count data under sparse mechanism shifts: the recovery task of the sVAE+ paper.

    m_t            1 to 3 targets of treatment t, drawn with replacement
    z | t          ~ Normal(m_t * mu_t, I)          zero in the control
    counts | z     ~ Poisson(depth * softmax(f(z)))

with ``f`` four linear maps without bias, made orthogonal, with leaky ReLUs between. The recipe
is that of Lopez et al., CLeaR 2023 (arXiv 2211.03553), appendix on simulations; the control
cells are ours. Everything needed to compute the truth again travels in ``uns["simulation"]``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, get_args

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from pyro_fcr.simulate.checks import refuse

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]

__all__ = ["sparse_shifts"]

Version = Literal["corrected", "paper"]

_WIDTH = 40
_SLOPE = 0.2
_MOLECULES_PER_GENE = 1e6
_DEPTH_SD = 0.3


def sparse_shifts(
    version: Version = "corrected",
    *,
    n_treatments: int = 100,
    n_per_treatment: int = 250,
    n_latent: int = 15,
    n_genes: int = 100,
    n_held_out: int | None = None,
    shift: tuple[float, float] = (5.0, 0.5),
    most_targets: int = 3,
    depth: float = 4000.0,
    seed: int = 0,
) -> ad.AnnData:
    """Draw cells whose treatments each shift a few of the latents.

    Parameters
    ----------
    version
        ``"corrected"``: softmax over genes, and a depth per cell drawn from LogNormal(log
        ``depth``, 0.3). ``"paper"``: softmax over *cells*, as in the released code, which gives
        every gene 10^6 molecules and makes a cell's depth depend on its latents.
    n_treatments
        Treatments beside the control.
    n_per_treatment
        Cells per treatment, and as many control cells.
    n_latent, n_genes
        Sizes; ``n_latent`` at most 40, the width of the decoder.
    n_held_out
        Treatments flagged in ``obs["held_out"]``, the last ones; a fifth unless told.
    shift
        Mean and standard deviation of a shift's size; its sign is a fair coin.
    most_targets
        Each treatment has 1 to this many targets, drawn with replacement.
    depth
        Median molecules per cell of ``"corrected"``; by default what ``"paper"`` has on average.
    seed
        Same seed, same cells; both versions share latents and decoder.

    Returns
    -------
    adata
        ``X`` counts (csr float32); obs ``treatment`` ("control", "t1", ...), ``depth`` (expected
        molecules) and ``held_out``; obsm ``z``; ``uns["simulation"]`` with ``mask`` and ``shift``
        (treatments, latents), ``weights`` of the decoder, and the arguments.

    Raises
    ------
    DesignError
        The version is unknown, or the sizes cannot carry it.

    Examples
    --------
    >>> adata = sparse_shifts(n_treatments=5, n_per_treatment=10, seed=1)
    >>> adata.shape, adata.obsm["z"].shape, adata.uns["simulation"]["mask"].shape
    ((60, 100), (60, 15), (5, 15))
    """
    held = n_treatments // 5 if n_held_out is None else n_held_out
    _check(version, n_treatments, n_per_treatment, n_latent, n_genes, held, most_targets, depth)
    # One stream per purpose: both versions of a seed share latents and decoder.
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4)]
    rng_shift, rng_latent, rng_decoder, rng_count = streams

    mask_td = np.zeros((n_treatments, n_latent), bool)
    for row in mask_td:
        row[rng_shift.integers(n_latent, size=rng_shift.integers(1, most_targets + 1))] = True
    size_td = rng_shift.normal(*shift, mask_td.shape)
    shift_td = mask_td * size_td * rng_shift.choice([-1.0, 1.0], mask_td.shape)

    t_n = np.repeat(np.arange(n_treatments + 1), n_per_treatment)
    padded = np.vstack([np.zeros((1, n_latent)), shift_td])
    z_nd = padded[t_n] + rng_latent.standard_normal((len(t_n), n_latent))

    weights = _weights(n_latent, n_genes, rng_decoder)
    logits_ng = _forward(z_nd, weights)
    scale = float(logits_ng.std())
    logits_ng /= scale
    if version == "paper":
        rate_ng = _MOLECULES_PER_GENE * _softmax(logits_ng, axis=0)
    else:
        depth_n = depth * np.exp(_DEPTH_SD * rng_count.standard_normal(len(t_n)))
        rate_ng = depth_n[:, None] * _softmax(logits_ng, axis=1)

    names = np.array(["control", *(f"t{i}" for i in range(1, n_treatments + 1))], dtype=object)
    obs = pd.DataFrame(
        {
            "treatment": pd.Categorical.from_codes(t_n, categories=pd.Index(names)),
            "depth": rate_ng.sum(1),
            "held_out": t_n > n_treatments - held,
        },
        index=pd.Index([f"cell{i}" for i in range(len(t_n))]),
    )
    adata = ad.AnnData(
        sp.csr_matrix(rng_count.poisson(rate_ng), dtype=np.float32),
        obs=obs,
        var=pd.DataFrame(index=pd.Index([f"gene{i}" for i in range(n_genes)])),
    )
    adata.obsm["z"] = z_nd.astype(np.float32)
    adata.uns["simulation"] = {
        "version": version,
        "seed": seed,
        "treatments": names[1:],
        "mask": mask_td,
        "shift": shift_td,
        "weights": {f"layer{i}": weight for i, weight in enumerate(weights)},
        "logit_scale": scale,
    }
    return adata


def _check(
    version: str,
    n_treatments: int,
    n_per_treatment: int,
    n_latent: int,
    n_genes: int,
    held: int,
    most_targets: int,
    depth: float,
) -> None:
    known = get_args(Version)
    problems = [
        (version not in known, "version", " or ".join(map(repr, known)), repr(version)),
        (n_treatments < 1, "n_treatments", "at least 1", str(n_treatments)),
        (n_per_treatment < 1, "n_per_treatment", "at least 1", str(n_per_treatment)),
        (not 1 <= n_latent <= _WIDTH, "n_latent", f"1 to {_WIDTH}", str(n_latent)),
        (n_genes < 2, "n_genes", "at least 2", str(n_genes)),
        (not 0 <= held < n_treatments, "n_held_out", f"0 to {n_treatments - 1}", str(held)),
        (most_targets < 1, "most_targets", "at least 1", str(most_targets)),
        (depth <= 0, "depth", "more than 0", str(depth)),
    ]
    refuse(problems)


def _weights(n_latent: int, n_genes: int, rng: np.random.Generator) -> list[Floats]:
    sizes = [n_latent, _WIDTH, _WIDTH, _WIDTH, n_genes]
    weights: list[Floats] = []
    for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True):
        tall = max(n_in, n_out), min(n_in, n_out)
        q, r = np.linalg.qr(rng.standard_normal(tall))
        # Signs of R's diagonal fixed: without that QR does not draw from the Haar measure.
        q = q * np.sign(np.diag(r))
        gain = math.sqrt(2 / (1 + _SLOPE**2)) * math.sqrt(2 / (n_in + n_out))
        weights.append(gain * (q if n_in > n_out else q.T))
    return weights


def _forward(z_nd: Floats, weights: list[Floats]) -> Floats:
    out = z_nd @ weights[0]
    for weight in weights[1:]:
        out = np.where(out > 0, out, _SLOPE * out) @ weight
    return out


def _softmax(logits: Floats, axis: int) -> Floats:
    raised = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return raised / raised.sum(axis=axis, keepdims=True)
