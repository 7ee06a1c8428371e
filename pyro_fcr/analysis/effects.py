"""What treatments do to genes: log fold changes with intervals, main effects, interactions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyro_fcr import arguments
from pyro_fcr.analysis.conditions import condition_at

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pyro_fcr.analysis.model_error import CounterfactualError, ModelError
    from pyro_fcr.analysis.strengths import Squares

__all__ = ["Effects", "check_thresholds", "described", "expected_fdr", "ranked"]


@dataclass(frozen=True, eq=False)
class Effects:
    """Posterior of the log2 fold change of every gene, treatment and covariate group.

    A condition's change is that of its cells' mean expression against the control cells of the
    same covariate group. The model's own change m comes with the uncertainty of a Bayesian
    bootstrap over cells. What the model gets wrong, b ~ N(0, a + b m²), is learned from the
    measured changes e: e − m = b + noise, with the noise that the same bootstrap finds, and with
    a and b matched to all measured conditions
    (:class:`~pyro_fcr.analysis.model_error.ModelError`). So the measurement rules where cells say
    much, the model where they say little. What results is drawn towards zero
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
    squares
        Draws of how large effects are over all genes, or over all groups, from the counts.
    treatments, covariates, genes
        Names along the axes; treatments without the control.
    level
        Probability of the intervals.
    error
        How far the model's prediction is off, as estimated.
    counterfactual
        How far control cells as they would be are off.
    """

    draws: NDArray[np.float32]
    predicted: NDArray[np.float64]
    measured: NDArray[np.float64]
    squares: Squares
    treatments: tuple[str, ...]
    covariates: tuple[str, ...]
    genes: tuple[str, ...]
    error: ModelError
    counterfactual: CounterfactualError
    level: float = 0.9

    def __repr__(self) -> str:
        """Return how much it holds and what to ask."""
        many = "" if len(self.treatments) == 1 else "s"
        return (
            f"Effects({len(self.treatments)} treatment{many} × {len(self.covariates)} covariate "
            f"groups × {len(self.genes):,} genes; {len(self.draws)} draws, "
            f"{100 * self.level:g} % intervals)\n"
            "  ask genes_of(treatment, covariate), compare(), interactions(), decompose()"
        )

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
        return ranked(table)

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
        return ranked(table)

    def interactions(self, *, least: float = 0.25) -> pd.DataFrame:
        r"""Rank treatments and covariate groups by what the treatment does to this group alone.

        The interaction of a gene is its change minus its mean change over the covariate groups.
        The strength is taken from the counts alone, corrected for what noise adds to squares: a
        ``low`` of zero says that there may be none.

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
        check_thresholds(least=least)
        specific = self._specific()
        squares = self.squares.strength
        strength = np.sqrt(np.maximum(squares.mean(0), 0))
        low, high = np.sqrt(np.maximum(self._interval(squares), 0))
        seen = np.asarray(np.isfinite(self.measured).any(-1))
        rows = [
            {
                "treatment": treatment,
                "covariate": covariate,
                "strength": strength[t, x],
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
        return ranked(table).reset_index(drop=True)

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
            one), each with ``_low`` and ``_high``. They are taken from the counts, corrected for
            what noise adds to squares.
        """
        rows = slice(None) if treatment is None else [self._at(treatment, self.covariates[0])[0]]
        own, common = self.squares.own[:, rows].sum(1), self.squares.common[:, rows].sum(1)
        share = _share(own, common)
        middle = _share(own.mean(0), common.mean(0))
        low, high = self._interval(share)
        low, high = np.minimum(low, middle), np.maximum(high, middle)
        size = np.sqrt((own + common).mean(0) / self.squares.own[:, rows].shape[1])
        table = pd.DataFrame(
            {
                "size": size,
                "common": 1 - middle,
                "common_low": 1 - high,
                "common_high": 1 - low,
                "interaction": middle,
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
        names = None if names is None else self.genes
        return described(draws, names, level=self.level, least=least, fdr=fdr)

    def _interval(self, draws: NDArray[Any]) -> NDArray[Any]:
        return np.quantile(draws, arguments.tails(self.level), axis=0)

    def _at(self, treatment: str, covariate: str) -> tuple[int, int]:
        return condition_at(
            treatment, covariate, self.treatments, self.covariates, where="effects"
        )


def _share(own: NDArray[np.float64], common: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of ``own`` in the sum of both, what lies below zero counting as nothing."""
    own, common = np.maximum(own, 0), np.maximum(common, 0)
    return np.asarray(own / np.maximum(own + common, 1e-12))


def check_thresholds(*, least: float, fdr: float = 0.05) -> None:
    """Refuse a smallest effect below zero, and a false discovery rate outside 0 to 1.

    Raises
    ------
    ArgumentError
        If one of them is no such number.
    """
    arguments.number(least, "least=", least=0, hint="it is in log2 units: 0.25 is the default")
    arguments.number(fdr, "fdr=", least=0, most=1, hint="0.05 is the default")


def described(
    draws: NDArray[np.float32],
    genes: Sequence[str] | None,
    *,
    level: float,
    least: float,
    fdr: float,
) -> pd.DataFrame:
    """Describe draws of log2 fold changes; columns as :meth:`Effects.genes_of` has them.

    Parameters
    ----------
    draws
        Shape (D, N).
    genes
        Names of the rows; numbers where there are none.
    level, least, fdr
        As for :class:`Effects` and :meth:`Effects.genes_of`.
    """
    check_thresholds(least=least, fdr=fdr)
    low, high = np.quantile(draws, arguments.tails(level), axis=0)
    p_effect = (np.abs(draws) > least).mean(0)
    up = (draws > 0).mean(0)
    expected = expected_fdr(p_effect)
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
        index=None if genes is None else pd.Index(genes, name="gene"),
    )


def ranked(table: pd.DataFrame) -> pd.DataFrame:
    """Return genes with the likeliest effects first, of equally likely ones the largest.

    Parameters
    ----------
    table
        From :func:`described`.
    """
    return table.iloc[np.lexsort((-table["lfc"].abs(), -table["p_effect"]))]


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
