"""A prior written as one function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyro_fcr.priors.base import Prior

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyro.distributions as dist

    from pyro_fcr.data import Batch

__all__ = ["LambdaPrior"]


class LambdaPrior(Prior):
    """A function from a batch to a distribution, as a prior.

    The function's code is not saved with a model: ``pf.load`` asks for the same prior again.
    For Bayesian or learned parameters write a :class:`~pyro_fcr.priors.Prior` of your own.

    Parameters
    ----------
    function
        Called with a batch of B cells; returns batch shape (B,), event shape (d,).
    extrapolates
        Whether it holds for treatments that no training cell had.

    Examples
    --------
    >>> import pyro.distributions as dist
    >>> def wide(batch):
    ...     return dist.Normal(batch.library.new_zeros(len(batch), 4), 2.0).to_event(1)
    >>> prior = LambdaPrior(wide)
    """

    def __init__(
        self, function: Callable[[Batch], dist.TorchDistribution], extrapolates: bool = False
    ) -> None:
        super().__init__()
        self.function, self._extrapolates = function, extrapolates

    @property
    def is_builtin(self) -> bool:
        """False: its function is the user's."""
        return False

    @property
    def extrapolates(self) -> bool:
        """As it was given."""
        return self._extrapolates

    def forward(self, batch: Batch) -> dist.TorchDistribution:
        """Return what the function returns."""
        return self.function(batch)
