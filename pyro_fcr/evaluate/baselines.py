"""What a prediction must beat: baselines on training cells.

One contract: ``fit(Training(counts, treatment, covariate, control=...))``, then
``predict(treatment, covariate)`` gives the profile of a condition. A baseline never reads the
condition it is asked for, even when that was trained. What needs more than arithmetic on profiles
stands in `pyro_fcr.evaluate.learned`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from pyro_fcr.errors import CategoryError, DesignError, NotFittedError, sentence
from pyro_fcr.evaluate.prediction import profiles

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.floating[Any]]

__all__ = [
    "Additive",
    "Baseline",
    "ControlMean",
    "NearestCondition",
    "Noise",
    "Ridge",
    "Training",
    "TreatedMean",
]


class Training:
    """Training cells with their conditions; what several baselines need is computed once.

    Parameters
    ----------
    counts
        (cells, genes), dense or sparse.
    treatment, covariate
        Labels (cells,).
    control
        Label of the control.
    genes
        Column names; numbers unless given.
    log_normalise
        Profiles are log1p of counts per 10,000 of the summed counts; off for values that are no
        counts, whose profiles are means.

    Raises
    ------
    DesignError
        Lengths disagree, or there is no control.
    """

    def __init__(
        self,
        counts: Any,
        treatment: ArrayLike,
        covariate: ArrayLike,
        *,
        control: str = "control",
        genes: ArrayLike | None = None,
        log_normalise: bool = True,
    ) -> None:
        self.counts = counts if sp.issparse(counts) else np.asarray(counts)
        self.treatment, self.covariate = (
            np.asarray(a).astype(str) for a in (treatment, covariate)
        )
        self.control, self.genes, self.log_normalise = control, genes, log_normalise
        n = self.counts.shape[0]
        if not len(self.treatment) == len(self.covariate) == n or control not in self.treatment:
            raise DesignError(
                sentence(
                    "these cells cannot train a baseline",
                    where="counts, treatment, covariate, control",
                    expected=f"a treatment and a covariate a cell, {control!r} among the first",
                    got=f"{n} cells, {len(self.treatment)} and {len(self.covariate)} labels",
                    hint="pass the training cells, controls included",
                )
            )

    @cached_property
    def profiles(self) -> pd.DataFrame:
        """Profiles (conditions, genes), indexed by (treatment, covariate)."""
        return profiles(
            self.counts,
            self.treatment,
            self.covariate,
            self.genes,
            log_normalise=self.log_normalise,
        )

    def changes(self, train: pd.DataFrame) -> pd.DataFrame:
        """Take changes of the treated among ``train`` against the control of their covariate.

        Covariates without a control are left out.
        """
        keys = [
            k for k in train.index if k[0] != self.control and (self.control, k[1]) in train.index
        ]
        controls = [(self.control, x) for _, x in keys]
        kept = train.loc[keys]
        return kept - train.loc[controls].to_numpy()


class Baseline(ABC):
    """Predicts the profile of a condition from the cells of others.

    Subclasses write ``_predict`` alone; the checks are here.
    """

    name: str
    _training: Training | None = None

    def fit(self, training: Training) -> Self:
        """Keep the training cells."""
        self._training = training
        return self

    def predict(self, treatment: str, covariate: str) -> pd.Series:
        """Profile (genes,) of a condition.

        Raises
        ------
        NotFittedError
            ``fit`` was not called.
        CategoryError
            The training cells hold too little of this treatment or covariate.
        """
        everything = self.training.profiles
        # Out of sight: asked for a trained condition, a baseline must not simply look it up.
        train = everything.drop(index=[(treatment, covariate)], errors="ignore")
        if treatment == self.training.control:
            train = everything
        values = self._predict(train, treatment, covariate)
        return pd.Series(values, index=train.columns, name=(treatment, covariate))

    @property
    def training(self) -> Training:
        """What ``fit`` was given."""
        if self._training is None:
            raise NotFittedError(
                sentence(
                    "the baseline has no training cells",
                    where=type(self).__name__,
                    expected="fit(Training(...)) first",
                    got="predict",
                    hint="call fit",
                )
            )
        return self._training

    @abstractmethod
    def _predict(self, train: pd.DataFrame, treatment: str, covariate: str) -> Floats:
        """Predict from profiles that lack the condition asked for."""

    def _own_control(self, train: pd.DataFrame, covariate: str) -> Floats:
        if (self.training.control, covariate) not in train.index:
            raise self._unknown("covariate", covariate, "a training profile of its control")
        return train.loc[[(self.training.control, covariate)]].to_numpy()[0]

    def _of_treatment(self, train: pd.DataFrame, treatment: str) -> pd.DataFrame:
        rows = train[train.index.get_level_values(0) == treatment]
        if rows.empty:
            raise self._unknown("treatment", treatment, "a profile of it in another covariate")
        return rows

    def _unknown(self, where: str, got: str, expected: str) -> CategoryError:
        return CategoryError(
            sentence(
                f"the {self.name} baseline cannot predict",
                where=where,
                expected=expected,
                got=repr(got),
                hint="train on more conditions, or leave this one out",
            )
        )


class ControlMean(Baseline):
    """The control of the same covariate: no effect at all."""

    name = "control mean"

    def _predict(self, train: pd.DataFrame, treatment: str, covariate: str) -> Floats:
        return self._own_control(train, covariate)


class TreatedMean(Baseline):
    """The mean of the treatment's profiles in the other covariates."""

    name = "treated mean"

    def _predict(self, train: pd.DataFrame, treatment: str, covariate: str) -> Floats:
        return self._of_treatment(train, treatment).to_numpy().mean(0)


class Additive(Baseline):
    """The own control plus the treatment's mean change in the other covariates."""

    name = "additive"

    def _predict(self, train: pd.DataFrame, treatment: str, covariate: str) -> Floats:
        own = self._own_control(train, covariate)
        if treatment == self.training.control:
            return own
        rows = self._of_treatment(train, treatment)
        controls = [(self.training.control, x) for x in rows.index.get_level_values(1)]
        paired = np.array([key in train.index for key in controls])
        if not paired.any():
            raise self._unknown("treatment", treatment, "a covariate with both it and a control")
        kept = [key for key, keep in zip(controls, paired, strict=True) if keep]
        change = rows.to_numpy()[paired] - train.loc[kept].to_numpy()
        return own + change.mean(0)


class NearestCondition(Baseline):
    """The treatment's profile in the covariate whose control is nearest to the own control."""

    name = "nearest condition"

    def _predict(self, train: pd.DataFrame, treatment: str, covariate: str) -> Floats:
        own = self._own_control(train, covariate)
        rows = self._of_treatment(train, treatment)
        distance = []
        for x in rows.index.get_level_values(1):
            known = (self.training.control, x) in train.index
            other = train.loc[[(self.training.control, x)]].to_numpy()[0] if known else np.inf
            distance.append(float(((own - other) ** 2).sum()))
        return rows.to_numpy()[int(np.argmin(distance))]


class Ridge(Baseline):
    """Ridge regression on one-hot treatment and covariate, intercept unpenalised.

    Parameters
    ----------
    alpha
        Ridge penalty.
    """

    name = "ridge"

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def _predict(self, train: pd.DataFrame, treatment: str, covariate: str) -> Floats:
        t, x = (train.index.get_level_values(i) for i in (0, 1))
        if covariate not in x:
            raise self._unknown("covariate", covariate, "a training profile of it")
        if treatment not in t:
            raise self._unknown("treatment", treatment, "a training profile of it")
        t_levels, x_levels = t.unique(), x.unique()

        def design(a: pd.Index, b: pd.Index) -> Floats:
            hot = [a.to_numpy()[:, None] == t_levels.to_numpy()[None]]
            hot.append(b.to_numpy()[:, None] == x_levels.to_numpy()[None])
            return np.concatenate(hot, axis=1).astype(float)

        features, values = design(t, x), train.to_numpy()
        center, mean = features.mean(0), values.mean(0)
        d = features - center
        weight = np.linalg.solve(d.T @ d + self.alpha * np.eye(d.shape[1]), d.T @ (values - mean))
        asked = design(pd.Index([treatment]), pd.Index([covariate]))[0]
        return mean + (asked - center) @ weight


class Noise(Baseline):
    """The own control plus noise of the size of the training changes: the null of changes.

    Parameters
    ----------
    seed
        Seed of the noise.
    """

    name = "noise"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def _predict(self, train: pd.DataFrame, treatment: str, covariate: str) -> Floats:
        own = self._own_control(train, covariate)
        changes = self.training.changes(train).to_numpy()
        size = np.sqrt((changes**2).mean(0)) if len(changes) else np.zeros(len(own))
        # The same condition gets the same noise, whatever was asked before.
        words = [self.seed, *f"{treatment}|{covariate}".encode()]
        return own + size * np.random.default_rng(words).standard_normal(len(own))
