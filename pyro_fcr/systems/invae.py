"""InVAE: what a cell is whatever the batch, and what the batch does to any cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_fcr.assembly import Declaration
from pyro_fcr.errors import SchemaError, sentence
from pyro_fcr.estimator import Estimator
from pyro_fcr.infer import Weighted
from pyro_fcr.nn import Block
from pyro_fcr.penalties import ConditionalHSIC, CovariateHead, DensityRatioTC, TotalCorrelation
from pyro_fcr.priors import Gaussian, NonFactorised

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyro_fcr.data import Design

__all__ = ["InVAE"]

INDEPENDENCE = 10.0
"""Weight of each conditional independence, in nats per cell; see ``benchmarks/EXPERIMENTS.md``."""


class InVAE(Estimator):
    r"""Invariant and spurious factors of cells from several batches.

    ::

        biology d ──> z_inv ───┐
                               ├──> y (counts)
        batch e ────> z_spur ──┘

    .. math::
        z_{inv} \sim N(m(d), s(d)^2),\quad z_{spur} \sim N(m(e), s(e)^2),\quad
        y \sim NB(\ell \cdot \operatorname{softmax} f(z_{inv}, z_{spur}), \theta)

    (Aliee et al. 2023, arXiv 2307.00558) with learned means and scales, encoders that see no
    labels, and the decoder blind to the batch: what the batch does goes through ``z_spur``. Two
    independences that the graph implies stand in the objective: z_inv ⊥ batch | biology and
    z_spur ⊥ biology | batch. The paper's penalty is there by name with weight zero:
    ``total_correlation`` (minibatch-weighted) and ``density_ratio`` (a critic). Each label of
    biology has a classifier on ``z_inv``, ``LABEL_head``, which :meth:`predict_labels` asks.

    Parameters, raises: see :class:`~pyro_fcr.estimator.Estimator`. Blocks: ``z_inv`` (10),
    ``z_spur`` (5). Options: ``invariant``, columns of biology, labels or numbers, by default all
    covariates that are not spurious; ``spurious``, columns of batch or site, by default the
    schema's batch; ``factorised``, whether ``z_inv`` has a Gaussian prior or the energy-based one
    of NFinVAE (:class:`~pyro_fcr.priors.NonFactorised`). An independence given columns of which
    some are numbers has no groups of cells to stand in, and is left out.

    Examples
    --------
    >>> import pyro_fcr as pf
    >>> adata = pf.simulate.environments(n_cells=200, n_genes=50, seed=0)
    >>> schema = pf.Schema(covariates="biology", batch="batch")
    >>> model = pf.InVAE(adata, schema, invariant=["biology"], spurious=["batch"])
    >>> history = model.fit(max_epochs=1, progress=False)
    >>> sorted(model.latents())
    ['z_inv', 'z_spur']
    """

    @classmethod
    def declare(
        cls,
        design: Design,
        sizes: Mapping[str, int],
        *,
        invariant: Sequence[str] | str | None = None,
        spurious: Sequence[str] | str | None = None,
        factorised: bool = True,
    ) -> Declaration:
        """Return the two blocks, their conditional priors and the terms."""
        schema = design.schema
        e = _columns(design, spurious, () if schema.batch is None else (schema.batch,))
        others = [name for name in (*schema.covariates, *schema.continuous) if name not in e]
        d = _columns(design, invariant, others)
        if not d or not e or set(d) & set(e):
            raise SchemaError(
                sentence(
                    "biology and batch must both be told, and apart",
                    where="InVAE(invariant=, spurious=)",
                    expected="columns of the schema's covariates, treatment or batch",
                    got=f"invariant {list(d)}, spurious {list(e)}",
                    hint="name them: Schema(covariates=..., batch=...)",
                )
            )
        blocks = (
            Block("z_inv", sizes.get("z_inv", 10), frozenset(d)),
            Block("z_spur", sizes.get("z_spur", 5), frozenset(e)),
        )
        d_labels = tuple(name for name in d if name not in design.continuous)
        e_labels = tuple(name for name in e if name not in design.continuous)
        pairs = [("z_inv", name, d_labels, d) for name in e_labels]
        pairs += [("z_spur", name, e_labels, e) for name in d_labels]
        terms = {
            f"{block}_vs_{name}": Weighted(
                ConditionalHSIC(block, name, given=given), INDEPENDENCE * (given == parents)
            )
            for block, name, given, parents in pairs
        }
        pair = ("z_inv", "z_spur")
        terms["total_correlation"] = Weighted(TotalCorrelation(pair), 0.0)
        terms["density_ratio"] = Weighted(DensityRatioTC(pair), 0.0)
        for name in d_labels:
            terms[f"{name}_head"] = Weighted(CovariateHead("z_inv", name), 1.0)
        priors = {"z_inv": Gaussian() if factorised else NonFactorised(), "z_spur": Gaussian()}
        aligned = ("z_inv",) if factorised else ()
        return Declaration(blocks, priors, terms, aligned=aligned, batch_in_decoder=False)


def _columns(
    design: Design, given: Sequence[str] | str | None, default: Sequence[str]
) -> tuple[str, ...]:
    names = default if given is None else (given,) if isinstance(given, str) else given
    return tuple(dict.fromkeys(design.parent(name) for name in names))
