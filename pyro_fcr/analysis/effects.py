"""What treatments do to genes: log fold changes with intervals, main effects, interactions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from pyro_fcr.analysis.draws import draw_globals, draw_observation, seeded
from pyro_fcr.analysis.expression import expected_counts
from pyro_fcr.analysis.shrinkage import shrink_effects
from pyro_fcr.errors import CategoryError, DesignError, sentence

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from anndata import AnnData
    from numpy.typing import NDArray

    from pyro_fcr.data import Cells, Design
    from pyro_fcr.model import LatentModel

__all__ = ["Effects", "ModelError", "estimate_effects", "expected_fdr"]

MIN_CELLS = 10
"""Conditions with fewer cells count as not measured."""


class Intervened(Protocol):
    """What effects ask of a fitted model."""

    design: Design

    @property
    def model(self) -> LatentModel:
        """The generative half."""

    @property
    def guide(self) -> Any:
        """The approximate posterior."""

    @property
    def device(self) -> torch.device:
        """Where the weights live."""

    def encode(self, adata: AnnData | None = None) -> Cells:
        """Return data as encoded cells."""

    def descendants(self, do: Mapping[str, Any]) -> list[str]:
        """Return the blocks an intervention redraws."""


@dataclass(frozen=True)
class ModelError:
    """How far a model's log fold changes lie from the measured ones, beyond their noise.

    A gap larger than noise is the model's error, of variance a + b m² for a change m. A gap
    smaller than noise tells that the networks have followed the noise: what they absorbed is
    missing in the gap and stands in m instead.

    Parameters
    ----------
    floor
        a, in squared log2 units.
    slope
        b, without unit.
    absorbed
        Share of the noise that went into the model, 0 to 1.
    """

    floor: float
    slope: float
    absorbed: float

    @classmethod
    def estimate(
        cls,
        gap: NDArray[np.float64],
        predicted: NDArray[np.float64],
        noise: NDArray[np.float64],
    ) -> ModelError:
        """Regress squares: E gap² = (1 − absorbed) · noise + a + b · predicted².

        Parameters
        ----------
        gap, predicted
            Measured minus predicted log fold changes, and the predicted; any one shape.
        noise
            Sampling variance of the measured changes that latents do not explain.
        """
        kept = np.isfinite(gap) & np.isfinite(noise)
        square, noise, predicted = gap[kept] ** 2, noise[kept], predicted[kept]
        # Noisy genes would drown the others: weigh each by what its square is worth.
        weight = 1 / (noise + np.median(noise))
        basis = np.stack([noise, np.ones(len(noise)), predicted**2], axis=1)
        left, floor, slope = nnls(basis * weight[:, None], square * weight)[0]
        return cls(float(floor), float(slope), max(0.0, 1 - float(left)))

    def variance(self, predicted: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return a + b m² for each predicted log fold change."""
        return self.floor + self.slope * predicted**2


@dataclass(frozen=True, eq=False)
class Effects:
    """Posterior of the log2 fold change of every gene, treatment and covariate group.

    A condition's change is that of its cells' mean expression against the control cells of the
    same covariate group. The model's own change m comes with the uncertainty of a Bayesian
    bootstrap over cells. What the model gets wrong, b ~ N(0, a + b m²), is learned from the
    measured changes e: e − m = b + noise, with the noise that the same bootstrap finds, and with
    a and b matched to all measured conditions (:class:`ModelError`). So the measurement rules
    where cells say much, the model where they say little. What results is drawn towards zero
    by as much as all genes together say that most changes are small
    (:mod:`pyro_fcr.analysis.shrinkage`). A condition without cells is extrapolated by the model,
    and its spread is that of the interactions found elsewhere: by gene, and by condition.

    Parameters
    ----------
    draws
        Shape (D, T, X, G): joint draws; conditions of one covariate group share the noise of
        its control.
    predicted
        Shape (T, X, G): the model's log fold changes m.
    measured
        Shape (T, X, G): the measured ones e; missing where a condition was not measured.
    treatments, covariates, genes
        Names along the axes; treatments without the control.
    level
        Probability of the intervals.
    error
        How far the model's prediction is off, as estimated.
    """

    draws: NDArray[np.float32]
    predicted: NDArray[np.float64]
    measured: NDArray[np.float64]
    treatments: tuple[str, ...]
    covariates: tuple[str, ...]
    genes: tuple[str, ...]
    error: ModelError
    level: float = 0.9

    def genes_of(
        self, treatment: str, covariate: str, *, least: float = 0.25, fdr: float = 0.05
    ) -> pd.DataFrame:
        r"""Return what a treatment does to each gene of a kind of cell.

        Parameters
        ----------
        treatment, covariate
            The condition; its control is the untreated cells of the same covariate group.
        least
            Smallest change that counts as an effect, in log2 units.
        fdr
            Genes are ``selected`` as long as the expected share of false ones is below this.

        Returns
        -------
        pandas.DataFrame
            One row per gene, the likeliest effects first: ``lfc`` (posterior mean, log2),
            ``low``, ``high`` (interval), ``p_effect`` (probability that the change is
            larger than ``least``), ``lfsr`` (local
            false sign rate), ``expected_fdr``, ``selected``, ``model`` (the model's prediction
            alone), ``measured``.
        """
        t, x = self._at(treatment, covariate)
        table = self._described(self.draws[:, t, x], least=least, fdr=fdr)
        table["model"], table["measured"] = self.predicted[t, x], self.measured[t, x]
        return table.sort_values(["p_effect", "lfc"], ascending=[False, False])

    def compare(
        self, treatment: str, covariate: str, other: str, *, least: float = 0.25, fdr: float = 0.05
    ) -> pd.DataFrame:
        """Return how a treatment's effect differs between two kinds of cell, gene by gene.

        Parameters
        ----------
        treatment
            The treatment.
        covariate, other
            Two covariate groups; the table tells of the first minus the second.
        least, fdr
            As for :meth:`genes_of`.
        """
        t, x = self._at(treatment, covariate)
        _, y = self._at(treatment, other)
        table = self._described(self.draws[:, t, x] - self.draws[:, t, y], least=least, fdr=fdr)
        table[covariate] = self.draws[:, t, x].mean(0)
        table[other] = self.draws[:, t, y].mean(0)
        return table.sort_values(["p_effect", "lfc"], ascending=[False, False])

    def interactions(self, *, least: float = 0.25) -> pd.DataFrame:
        r"""Rank treatments and covariate groups by what the treatment does to this group alone.

        The interaction of a gene is its change minus its mean change over the covariate groups.

        Parameters
        ----------
        least
            Smallest interaction that counts, in log2 units.

        Returns
        -------
        pandas.DataFrame
            One row per condition, the strongest first: ``strength`` (root mean square over
            genes, log2 units), ``low``, ``high``, ``genes`` (expected number of genes with an
            interaction larger than ``least``), ``measured``.
        """
        specific = self._specific()
        rms = np.sqrt((specific**2).mean(-1))
        low, high = self._interval(rms)
        seen = np.asarray(np.isfinite(self.measured).any(-1))
        rows = [
            {
                "treatment": treatment,
                "covariate": covariate,
                "strength": rms[:, t, x].mean(),
                "low": low[t, x],
                "high": high[t, x],
                "genes": (np.abs(specific[:, t, x]) > least).mean(0).sum(),
                "measured": seen[t, x],
            }
            for t, treatment in enumerate(self.treatments)
            for x, covariate in enumerate(self.covariates)
        ]
        return pd.DataFrame(rows).sort_values("strength", ascending=False, ignore_index=True)

    def interaction_genes(self, *, least: float = 0.25, fdr: float = 0.05) -> pd.DataFrame:
        """Return every gene's interaction with every condition, the likeliest first.

        Parameters
        ----------
        least, fdr
            As for :meth:`genes_of`.

        Returns
        -------
        pandas.DataFrame
            Columns ``treatment``, ``covariate``, ``gene`` and those of :meth:`genes_of`.
        """
        specific = self._specific()
        shape = specific.shape[1:]
        table = self._described(
            specific.reshape(len(specific), -1), least=least, fdr=fdr, names=None
        )
        t, x, g = np.unravel_index(np.arange(len(table)), shape)
        for name, names, codes in (
            ("gene", self.genes, g),
            ("covariate", self.covariates, x),
            ("treatment", self.treatments, t),
        ):
            table.insert(0, name, np.asarray(names, dtype=object)[codes])
        return table.sort_values("p_effect", ascending=False, ignore_index=True)

    def decompose(self, treatment: str | None = None) -> pd.DataFrame:
        """Split each gene's effects into what is common to all kinds of cell and what is not.

        Parameters
        ----------
        treatment
            One treatment; all by default.

        Returns
        -------
        pandas.DataFrame
            One row per gene, the strongest first: ``size`` (root mean square of its changes, log2
            units), ``common`` and ``interaction`` (shares of the sum of squares, adding up to
            one), each with ``_low`` and ``_high``.
        """
        rows = slice(None) if treatment is None else [self._at(treatment, self.covariates[0])[0]]
        draws = self.draws[:, rows].astype(np.float64)
        common = draws.mean(2, keepdims=True)
        total = (draws**2).sum((1, 2))
        share = ((draws - common) ** 2).sum((1, 2)) / np.maximum(total, 1e-12)
        low, high = self._interval(share)
        table = pd.DataFrame(
            {
                "size": np.sqrt(total / (draws.shape[1] * draws.shape[2])).mean(0),
                "common": 1 - share.mean(0),
                "common_low": 1 - high,
                "common_high": 1 - low,
                "interaction": share.mean(0),
                "interaction_low": low,
                "interaction_high": high,
            },
            index=pd.Index(self.genes, name="gene"),
        )
        return table.sort_values("size", ascending=False)

    def _specific(self) -> NDArray[np.float32]:
        return self.draws - self.draws.mean(2, keepdims=True)

    def _described(
        self,
        draws: NDArray[np.float32],
        *,
        least: float,
        fdr: float,
        names: Sequence[str] | None = (),
    ) -> pd.DataFrame:
        low, high = self._interval(draws)
        p_effect = (np.abs(draws) > least).mean(0)
        up = (draws > 0).mean(0)
        expected = expected_fdr(p_effect)
        index = None if names is None else pd.Index(self.genes, name="gene")
        return pd.DataFrame(
            {
                "lfc": draws.mean(0),
                "low": low,
                "high": high,
                "p_effect": p_effect,
                "lfsr": np.minimum(up, 1 - up),
                "expected_fdr": expected,
                "selected": expected <= fdr,
            },
            index=index,
        )

    def _interval(self, draws: NDArray[Any]) -> NDArray[Any]:
        tail = (1 - self.level) / 2
        return np.quantile(draws, (tail, 1 - tail), axis=0)

    def _at(self, treatment: str, covariate: str) -> tuple[int, int]:
        for kind, name, names in (
            ("treatment", treatment, self.treatments),
            ("covariate group", covariate, self.covariates),
        ):
            if name not in names:
                raise CategoryError(
                    sentence(
                        f"no {kind} is called '{name}'",
                        where="effects",
                        expected=f"one of {list(names)[:12]}",
                        got=repr(name),
                        hint="effects.treatments and effects.covariates list the names",
                    )
                )
        return self.treatments.index(treatment), self.covariates.index(covariate)


def expected_fdr(p_effect: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return, for each effect, the expected share of false ones among all at least as likely.

    Parameters
    ----------
    p_effect
        Posterior probabilities of an effect, shape (N,).

    Examples
    --------
    >>> expected_fdr(np.array([0.7, 1.0, 0.9])).round(3).tolist()
    [0.133, 0.0, 0.05]
    """
    order = np.argsort(-p_effect, kind="stable")
    found = np.empty(len(p_effect))
    found[order] = np.cumsum(1 - p_effect[order]) / np.arange(1, len(p_effect) + 1)
    return found


def estimate_effects(
    model: Intervened,
    cells: Cells,
    *,
    draws: int = 200,
    replicates: NDArray[Any] | None = None,
    level: float = 0.9,
    seed: int = 0,
) -> Effects:
    """Estimate the log2 fold change of every gene under every treatment, by covariate group.

    Parameters
    ----------
    model
        A fitted model whose schema names treatment and covariates.
    cells
        The cells.
    draws
        Posterior draws.
    replicates
        Shape (N,): labels that tell donors or wells apart, where there are some: they, instead
        of cells, are then what is resampled.
    level
        Probability of the intervals.
    seed
        Governs all draws.

    Raises
    ------
    DesignError
        If no covariate group has enough control cells.
    """
    design = cells.design
    rng = np.random.default_rng(seed)
    shape = (draws, design.n_treatment_levels, design.n_covariate_levels, design.n_genes)
    modelled, residual = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    # One more than the draws: the first has equal weights, the estimate itself.
    middle, gap, least = (np.full(shape[1:], np.nan) for _ in range(3))
    for t in range(design.n_treatment_levels):
        for x in range(design.n_covariate_levels):
            rows = np.flatnonzero((cells.treatment_id == t) & (cells.covariate_id == x))
            if len(rows) < MIN_CELLS:
                continue
            labels = None if replicates is None else replicates[rows]
            weights = np.vstack([np.ones(len(rows)), _bootstrap(len(rows), labels, draws, rng)])
            m, e, total = _profiles(model, cells.subset(rows), weights, seed=seed)
            middle[t, x], gap[t, x], least[t, x] = m[0], e[0] - m[0], 1 / (total + 0.5)
            modelled[:, t, x], residual[:, t, x] = m[1:], e[1:] - m[1:]
    told = np.isfinite(middle[0]).any(-1)
    if not told.any():
        raise DesignError(
            sentence(
                "no effect can be estimated",
                where="effects",
                expected=f"a covariate group with at least {MIN_CELLS} control cells",
                got="none",
                hint="pass the data the model was trained on",
            )
        )
    middle, gap, least = middle[:, told], gap[:, told], least[:, told]
    modelled, residual = modelled[:, :, told], residual[:, :, told]
    noise = np.maximum(residual.var(0, ddof=1), least / np.log(2) ** 2)
    m, off = middle[1:] - middle[:1], gap[1:] - gap[:1]
    error = ModelError.estimate(off, m, noise[1:] + noise[:1])
    # What the networks absorbed of a group's noise is independent of what they left.
    modelled += np.sqrt(error.absorbed * noise) * rng.standard_normal(modelled.shape)
    left = (1 - error.absorbed) * noise
    drawn = modelled[:, 1:] - modelled[:, :1]
    drawn += _joint_errors(
        off, left[1:], left[0], error.variance(np.nan_to_num(m)), draws=draws, rng=rng
    )
    measured = m + off
    shrink_effects(drawn, np.isfinite(measured).any(-1), rng)
    unseen = np.isnan(m[..., 0])
    if unseen.any():
        x_codes = np.flatnonzero(told)
        for t, x in zip(*np.nonzero(unseen), strict=True):
            m[t, x] = _extrapolated(model, cells, t + 1, x_codes[x], seed=seed) - middle[0, x]
        errors = _interaction_errors(np.where(unseen[..., None], np.nan, m))
        drawn[:, unseen] = _unseen(m[unseen], errors, draws, rng)
    joint = [" | ".join(level) for level in design.covariate_levels]
    return Effects(
        draws=drawn,
        predicted=m,
        measured=measured,
        treatments=tuple(design.treatment_levels[1:]),
        covariates=tuple(name for name, kept in zip(joint, told, strict=True) if kept),
        genes=tuple(design.genes),
        error=error,
        level=level,
    )


def _bootstrap(
    n: int, labels: NDArray[Any] | None, draws: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return Bayesian bootstrap weights (draws, n), one weight per replicate or per cell."""
    codes = np.arange(n) if labels is None else np.unique(labels, return_inverse=True)[1]
    return rng.exponential(size=(draws, codes.max() + 1))[:, codes]


def _profiles(
    model: Intervened, cells: Cells, weights: NDArray[np.float64], *, seed: int, rounds: int = 4
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the modelled and the measured log2 share of each gene, and its total count.

    Shapes (D, G), (D, G) and (G,) for weights (D, N).
    """
    depth = weights @ cells.library
    modelled = np.zeros((len(weights), cells.design.n_genes))
    measured = np.zeros_like(modelled)
    total = np.zeros(cells.design.n_genes)
    with seeded(seed):
        few = cells.batch(slice(0, 2)).to(model.device)
        shared = draw_globals(model.guide, few, rounds)
    for start in range(0, len(cells), 512):
        rows = slice(start, start + 512)
        batch = cells.batch(rows).to(model.device)
        with seeded(seed, start + 1):
            observations = draw_observation(
                model.model, model.guide, batch, batch, redraw=(), shared=shared
            )
            expected = sum(o.mean.double().cpu().numpy() for o in observations) / rounds
        counts = batch.counts.double().cpu().numpy()
        modelled += weights[:, rows] @ expected
        measured += weights[:, rows] @ counts
        total += counts.sum(0)
    # Half a count keeps the logarithm of a gene that no cell showed finite.
    half = 0.5 * weights.mean(1, keepdims=True)
    shares = (np.log2((sums + half) / depth[:, None]) for sums in (modelled, measured))
    return *shares, total


def _extrapolated(
    model: Intervened, cells: Cells, group: int, covariate: int, *, seed: int
) -> NDArray[np.float64]:
    """Return the log2 share of each gene of the covariate's control cells, were they treated."""
    is_control = (cells.covariate_id == covariate) & (cells.treatment_id == 0)
    start, design = cells.subset(np.flatnonzero(is_control)), cells.design
    label, dose = design.label(design.treatment_rows[group])
    do = {"treatment": label} | ({"dose": dose} if design.schema.dose else {})
    found = expected_counts(
        model.model, model.guide, start, design.do(start, do),
        redraw=model.descendants(do), draws=8, seed=seed, device=model.device,
    )  # fmt: skip
    return np.log2((found.mean.sum(0) + 0.5) / start.library.sum())


def _interaction_errors(effects: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far each measured condition lies from what the others' main effects say.

    Least squares over (T, X, G), missing conditions left out and each of the others in turn; the
    conditions that their own row or column cannot predict are not among the (C, G) returned. Where
    that is all of them, the deviations from the mean of the others.
    """
    n_t, n_x, _ = effects.shape
    t, x = np.nonzero(np.asarray(np.isfinite(effects).any(-1)))
    design = np.zeros((len(t), n_t + n_x))
    design[np.arange(len(t)), t] = 1
    design[np.arange(len(t)), n_t + x] = 1
    y = effects[t, x]
    for basis in (design, np.ones((len(t), 1))):
        hat = basis @ np.linalg.pinv(basis)
        left = 1 - np.diag(hat)
        told = left > 1e-9
        if told.any():
            return np.asarray((y - hat @ y)[told] / left[told, None])
    return np.zeros((1, effects.shape[2]))


def _unseen(
    centre: NDArray[np.float64], errors: NDArray[np.float64], draws: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw changes (D, C, G) around (C, G) with errors of the size found elsewhere.

    Genes have their own spread, and conditions theirs: some interact strongly in all genes. A
    draw's condition is as far off as one of the measured ones, any of them.
    """
    spread = np.sqrt((errors**2).mean(0))
    size = np.sqrt(((errors / np.maximum(spread, 1e-12)) ** 2).mean(1))
    picked = rng.choice(size, (draws, len(centre), 1))
    return centre + picked * spread * rng.standard_normal((draws, *centre.shape))


def _joint_errors(
    off: NDArray[np.float64],
    noise: NDArray[np.float64],
    control_noise: NDArray[np.float64],
    error: NDArray[np.float64],
    *,
    draws: int,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Draw the model's error b given off = b + ε_t − ε_0, ε_0 shared by a group's treatments.

    Shapes: (T, X, G) but for ``control_noise``, (X, G). By Matheron's rule: a prior draw, moved
    by what the gain makes of the difference between the measurement and its simulated twin. The
    gain inverts a diagonal plus a rank-one matrix.
    """
    seen = np.isfinite(off)
    own = np.where(seen, noise, 0.0)
    inverse = np.where(seen, 1 / np.maximum(own + error, 1e-12), 0.0)
    carried = control_noise / (1 + control_noise * inverse.sum(0))
    out = np.empty((draws, *off.shape), np.float32)
    for d in range(draws):
        b = np.sqrt(error) * rng.standard_normal(off.shape)
        twin = b + np.sqrt(own) * rng.standard_normal(off.shape)
        twin = twin - np.sqrt(control_noise) * rng.standard_normal(control_noise.shape)
        gap = np.where(seen, off - twin, 0.0) * inverse
        out[d] = b + error * (gap - inverse * (carried * gap.sum(0)))
    return out
