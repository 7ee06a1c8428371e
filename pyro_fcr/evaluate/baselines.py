"""What a prediction must beat: baselines on condition profiles.

One contract: ``fit(profiles, control=...)`` on a data frame of training profiles indexed by
(treatment, covariate), then ``predict(treatment, covariate)``. A baseline never reads the
condition it is asked for, even when that was trained.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyro_fcr.errors import CategoryError, DesignError, NotFittedError, sentence

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]

__all__ = [
    "BASELINES",
    "Additive",
    "Baseline",
    "ControlMean",
    "NearestCondition",
    "Ridge",
    "TreatedMean",
]


class Baseline(ABC):
    """Predicts the profile of a condition from the profiles of others.

    Subclasses write ``_predict`` alone; the checks are here.
    """

    name: str
    _profiles: pd.DataFrame | None = None
    _control: str = "control"

    def fit(self, profiles: pd.DataFrame, *, control: str = "control") -> Self:
        """Keep the training profiles.

        Parameters
        ----------
        profiles
            (conditions, genes), indexed by (treatment, covariate), one row a condition.
        control
            Label of the control.

        Raises
        ------
        DesignError
            The index is not a unique pair of treatment and covariate, or holds no control.
        """
        index = profiles.index
        if index.nlevels != 2 or not index.is_unique or control not in index.get_level_values(0):
            raise DesignError(
                sentence(
                    "profiles cannot train a baseline",
                    where="profiles.index",
                    expected=f"unique pairs (treatment, covariate), {control!r} among them",
                    got=f"{index.nlevels} levels, unique {index.is_unique}",
                    hint="use evaluate.profiles(counts, treatment, covariate)",
                )
            )
        self._profiles, self._control = profiles.astype(float), control
        return self

    def predict(self, treatment: str, covariate: str) -> pd.Series:
        """Profile (genes,) of a condition.

        Raises
        ------
        NotFittedError
            ``fit`` was not called.
        CategoryError
            The training profiles hold too little of this treatment or covariate.
        """
        if self._profiles is None:
            raise NotFittedError(
                sentence(
                    "the baseline has no training profiles",
                    where=type(self).__name__,
                    expected="fit(profiles) first",
                    got="predict",
                    hint="call fit",
                )
            )
        # Out of sight: asked for a trained condition, a baseline must not simply look it up.
        train = self._profiles.drop(index=[(treatment, covariate)], errors="ignore")
        if treatment == self._control:
            train = self._profiles
        values = self._predict(train, treatment, covariate)
        return pd.Series(values, index=train.columns, name=(treatment, covariate))

    @abstractmethod
    def _predict(self, train: pd.DataFrame, treatment: str, covariate: str) -> Floats:
        """Predict from profiles that lack the condition asked for."""

    def _own_control(self, train: pd.DataFrame, covariate: str) -> Floats:
        if (self._control, covariate) not in train.index:
            raise self._unknown("covariate", covariate, "a training profile of its control")
        return train.loc[[(self._control, covariate)]].to_numpy()[0]

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
        if treatment == self._control:
            return own
        rows = self._of_treatment(train, treatment)
        controls = [(self._control, x) for x in rows.index.get_level_values(1)]
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
            known = (self._control, x) in train.index
            other = train.loc[[(self._control, x)]].to_numpy()[0] if known else np.inf
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


#: Every baseline with its defaults, by the name used in tables.
BASELINES: dict[str, type[Baseline]] = {
    c.name: c for c in (ControlMean, TreatedMean, Additive, NearestCondition, Ridge)
}
