"""Modules whose parameters are their own."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pyro
from pyro.nn import PyroModule

if TYPE_CHECKING:
    from torch import nn

__all__ = ["LocalModule", "Part", "touch_globals"]


class LocalModule(PyroModule):
    """A ``PyroModule`` that never reads or writes Pyro's global parameter store.

    With the global store, a second model built in the same process would silently train the
    first one's weights. The switch is entered around construction and around each call, so
    that other Pyro code in the same process keeps whatever setting it chose.
    """

    def __init__(self, name: str = "") -> None:
        with pyro.settings.context(module_local_params=True):
            super().__init__(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run ``forward`` with module-local parameters."""
        with pyro.settings.context(module_local_params=True):
            return super().__call__(*args, **kwargs)


class Part(LocalModule):
    """A swappable part of a model: declared with plain options, sized when it is bound.

    A part of this package keeps each constructor argument under its own name, which makes it
    describable as JSON; a user's part may keep whatever it likes and is then handed to
    :func:`pyro_fcr.load` again by the user.
    """

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments as they were given, by name."""
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    @property
    def is_builtin(self) -> bool:
        """Whether the part's class ships with this package and can be rebuilt by name."""
        return type(self).__module__.split(".")[0] == __name__.split(".")[0]


def touch_globals(module: nn.Module) -> None:
    """Read every ``PyroSample`` of a module once, outside any plate.

    First read inside the cell plate, a global variable would become one variable per cell.

    Parameters
    ----------
    module
        The module whose Bayesian parameters, its own and its children's, are to be sampled.
    """
    for child in module.modules():
        if isinstance(child, PyroModule):
            for name in child.__dict__.get("_pyro_samples", ()):
                getattr(child, name)
