"""The contract of a task, and the rows that tasks share."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from pyro_fcr.errors import BenchmarkError, sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pyro_fcr.benchmark.problem import Problem

    Rows = list[dict[str, Any]]

__all__ = ["Task"]


class Task(ABC):
    """What is asked of a fitted method; a subclass's constructor takes the task's options."""

    quick_options: ClassVar[Mapping[str, Any]] = {}
    """Options that make the judgement quick."""

    def run(self, problem: Problem, fit: Callable[[int], Any], *, seed: int) -> Rows:
        """Fit a method once and judge it; a task of several fits has a way of its own.

        Parameters
        ----------
        problem
            Data and split.
        fit
            Fits the method under a seed.
        seed
            Of the job.
        """
        return self.judge(problem, fit(seed), seed=seed)

    @abstractmethod
    def judge(self, problem: Problem, model: Any, *, seed: int) -> Rows:
        """Return the rows of one fitted method.

        Parameters
        ----------
        problem
            Data and split.
        model
            Anything with ``latents(adata)``, and ``counterfactual`` where the task predicts.
        seed
            Of the job.
        """

    @abstractmethod
    def references(self, problem: Problem, *, seed: int) -> Rows:
        """Return the rows of what needs no fit: baselines, nulls, ceilings, named in ``method``.

        Parameters
        ----------
        problem
            Data and split.
        seed
            Of the job.
        """

    @classmethod
    def check(cls, options: Mapping[str, Any], *, where: str) -> None:
        """Refuse options that the task does not have.

        Raises
        ------
        BenchmarkError
            With the options it has.
        """
        known = list(inspect.signature(cls).parameters)
        if unknown := sorted(set(options) - set(known)):
            raise BenchmarkError(
                sentence("unknown options", where=where, expected=f"some of {known}",
                         got=f"{unknown}", hint="correct them")
            )  # fmt: skip
