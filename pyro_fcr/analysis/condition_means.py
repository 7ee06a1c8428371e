"""What every condition looks like on average: measured or not, with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pyro_fcr import arguments
from pyro_fcr.analysis.conditions import condition_at
from pyro_fcr.analysis.crossed import Components, estimate_components, predict
from pyro_fcr.analysis.expression import expected_under
from pyro_fcr.errors import DesignError, sentence
from pyro_fcr.evaluate import pooled_variances, profile, sampled_profile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pyro_fcr.analysis.contract import Intervened
    from pyro_fcr.analysis.crossed import Floats
    from pyro_fcr.data import Cells

__all__ = ["ConditionMeans", "estimate_condition_means"]

CHUNK = 512


@dataclass(frozen=True, eq=False)
class ConditionMeans:
    r"""Mean expression of every condition: the model's, moved by what was measured around it.

    The model's expected mean m of a condition is off by a residual that conditions share:

    .. math:: y_{tx} - m_{tx} = \mu + a_x + b_t + e_{tx} + \varepsilon_{tx}

    (crossed random effects), estimated from the measured conditions, of which the
    control is one. A condition without cells is predicted by m + μ + a + b: where residuals are
    noise, that is the model's own expectation; where they are a covariate's own, the model's
    change added to the measured control; where the model says nothing, the main effects of the
    measurements. Its interval holds the interaction that nothing foretells, as large as those of
    the measured means: the model's interactions move the mean and make no interval narrower.

    Means are log1p of counts per 10,000 of a condition's summed counts, or plain means where
    values are no counts. Changes are from the control of the same covariates.

    Parameters
    ----------
    mean, sd, change, change_sd
        Shape (T, X, G): predicted means and changes with their standard deviations. The control
        is the first treatment.
    model
        Shape (T, X, G): the model's expected means m.
    measured
        Shape (T, X, G): nan where a condition has no cells.
    treatments, covariates, genes
        Names along the axes.
    components
        Of the residuals: their variances by gene, and the share of the sampling noise in them.
    """

    mean: Floats
    sd: Floats
    change: Floats
    change_sd: Floats
    model: Floats
    measured: Floats
    treatments: tuple[str, ...]
    covariates: tuple[str, ...]
    genes: tuple[str, ...]
    components: Components

    def __repr__(self) -> str:
        """Return how much it holds and what to ask."""
        there = np.isfinite(self.measured).any(-1)
        return (
            f"ConditionMeans({len(self.treatments)} treatments × {len(self.covariates)} covariate "
            f"groups × {len(self.genes):,} genes; {there.sum()} of {there.size} conditions "
            "measured)\n  ask of(treatment, covariate), table()"
        )

    def of(self, treatment: str, covariate: str, *, level: float = 0.9) -> pd.DataFrame:
        """Return the genes of one condition.

        Parameters
        ----------
        treatment, covariate
            Names; several covariates, and several doses, as ``treatments`` and ``covariates``
            have them.
        level
            Probability of the intervals.

        Returns
        -------
        pandas.DataFrame
            One row per gene: ``mean`` with ``low`` and ``high``, ``change`` with ``change_low``
            and ``change_high``, ``model`` (the model's expectation alone), ``measured``.

        Raises
        ------
        CategoryError
            If a name is not among those.
        """
        wide = NormalDist().inv_cdf(arguments.tails(level)[1])
        at = condition_at(
            treatment, covariate, self.treatments, self.covariates, where="condition_means"
        )
        found: dict[str, Floats] = {}
        for name, prefix, centre, sd in (
            ("mean", "", self.mean, self.sd),
            ("change", "change_", self.change, self.change_sd),
        ):
            found[name] = centre[at]
            found[f"{prefix}low"] = centre[at] - wide * sd[at]
            found[f"{prefix}high"] = centre[at] + wide * sd[at]
        found |= {"model": self.model[at], "measured": self.measured[at]}
        return pd.DataFrame(found, index=pd.Index(self.genes, name="gene"))

    def table(self, *, level: float = 0.9) -> pd.DataFrame:
        """Return :meth:`of` of all conditions, with ``treatment`` and ``covariate`` as columns."""
        frames = []
        for t in self.treatments:
            for x in self.covariates:
                frame = self.of(t, x, level=level).reset_index()
                frame.insert(0, "covariate", x)
                frame.insert(0, "treatment", t)
                frames.append(frame)
        return pd.concat(frames, ignore_index=True)


def estimate_condition_means(
    model: Intervened, cells: Cells, *, start: int = 300, draws: int = 20, seed: int = 0
) -> ConditionMeans:
    """Predict the mean of every treatment in every covariate group.

    Parameters
    ----------
    model
        A fitted model whose schema names a treatment.
    cells
        Cells to learn residuals from; those to be predicted must not be among them.
    start
        Cells of a covariate group that the model's expectations start from, at most: its control
        cells, or any where it has no control.
    draws
        Posterior draws per cell.
    seed
        Governs which cells, and the draws.

    Raises
    ------
    DesignError
        If no condition has two cells, so that nothing tells noise from residuals.
    """
    design = cells.design
    counts = model.model.likelihood.reads_counts
    known = np.flatnonzero((cells.treatment_id >= 0) & (cells.covariate_id >= 0))
    codes = cells.treatment_id[known], cells.covariate_id[known]
    shape = (design.n_treatment_levels, design.n_covariate_levels)
    n_cells = np.zeros(shape, np.int64)
    np.add.at(n_cells, codes, 1)
    if n_cells.max(initial=0) < 2:
        raise DesignError(
            sentence(
                "nothing tells the noise of a mean",
                where="condition_means",
                expected="a condition with two cells at least, in the model's own conditions",
                got="none",
                hint="pass the cells the model was trained on; with a dose of its own for every "
                "cell, bin the doses",
            )
        )
    kept = np.flatnonzero(n_cells.any(0))
    expected = np.full((shape[0], len(kept), design.n_genes), np.nan)
    measured, own = expected.copy(), expected.copy()
    rng = np.random.default_rng(seed)
    for column, x in enumerate(kept):
        of_x = known[codes[1] == x]
        control = of_x[cells.treatment_id[of_x] == 0]
        chosen = rng.permutation(control if len(control) else of_x)[:start]
        first = cells.subset(np.sort(chosen))
        for t in range(shape[0]):
            found = expected_under(model, first, design.setting(t), draws=draws, seed=seed)
            expected[t, column] = profile(found.mean, log_normalise=counts)
            if n_cells[t, x]:
                rows = of_x[cells.treatment_id[of_x] == t]
                measured[t, column], own[t, column] = sampled_profile(
                    _blocks(cells.subset(rows)), log_normalise=counts
                )
    noise = pooled_variances(own, n_cells[:, kept])
    residuals = measured - expected
    components = estimate_components(residuals, noise, absorbs=True)
    # What the model cannot know of a condition without cells: any interaction of the usual size.
    unseen = np.maximum(estimate_components(measured, noise).interaction, components.interaction)
    corrected = predict(residuals, noise, components, unseen)
    # The share of a control's noise that the model followed stands in its change.
    followed = (1 - components.left) * np.where(np.isfinite(measured), noise, 0.0)[:1]
    change_variance = corrected.change_variance + followed
    change_variance[0] = 0.0
    mean = expected + corrected.mean
    return ConditionMeans(
        mean=mean,
        sd=np.sqrt(corrected.variance),
        change=mean - mean[0],
        change_sd=np.sqrt(change_variance),
        model=expected,
        measured=measured,
        treatments=design.treatment_levels,
        covariates=tuple(design.covariate_groups[x] for x in kept),
        genes=design.genes,
        components=components,
    )


def _blocks(cells: Cells) -> Iterator[NDArray[np.float32]]:
    for first in range(0, len(cells), CHUNK):
        yield cells.batch(slice(first, first + CHUNK)).counts.cpu().numpy()
