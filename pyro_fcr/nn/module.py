"""Modules whose parameters are their own."""

from __future__ import annotations

import copy
import inspect
import weakref
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Self

import pyro
import torch
from pyro.nn import PyroModule
from torch import nn
from torch.distributions import Distribution, Transform

from pyro_fcr.errors import SlotError, sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["LocalModule", "Part", "parameters_unseen", "touch_globals"]


_unseen: ContextVar[bool] = ContextVar("unseen", default=False)


@contextmanager
def parameters_unseen() -> Iterator[None]:
    """Read local modules' parameters without telling Pyro's handlers of each.

    A trace then holds no ``param`` sites of networks. A training step asks for none, and would
    spend a good part of its Python time on them.
    """
    token = _unseen.set(True)
    try:
        yield
    finally:
        _unseen.reset(token)


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
        # Entered once, by the outermost module: a context for each would cost a step 5 %.
        if pyro.settings.get("module_local_params"):
            return super().__call__(*args, **kwargs)
        with pyro.settings.context(module_local_params=True):
            return super().__call__(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Return a parameter or a module; Pyro is told of it where a handler may want to know."""
        if _unseen.get():
            for kind in ("_modules", "_parameters"):
                if (found := self.__dict__.get(kind, {}).get(name)) is not None:
                    return found
        return super().__getattr__(name)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        # The distribution of a PyroSample is no buffer: without this it would stay behind
        # when the module moves to another device or type.
        super()._apply(fn, recurse)
        for child in self.modules():
            if isinstance(child, PyroModule):
                samples = child.__dict__.get("_pyro_samples", {})
                samples.update({name: _moved(prior, fn, {}) for name, prior in samples.items()})
        return self


class Part(LocalModule):
    """A swappable part of a model: declared with plain options, sized when it is bound.

    A part of this package keeps each constructor argument under its own name, which makes it
    describable as JSON; a user's part may keep whatever it likes and is then handed to
    :func:`pyro_fcr.load` again by the user.

    Raises
    ------
    SlotError
        If a class is constructed that leaves a method of its base to be written.
    """

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        kind = type(self)
        missing = [
            n for n in dir(kind) if getattr(getattr(kind, n), "__isabstractmethod__", False)
        ]
        if missing:
            raise SlotError(
                sentence(
                    f"{kind.__name__} is no part by itself",
                    where=f"{kind.__name__}()",
                    expected=f"a subclass that writes {', '.join(missing)}",
                    got=kind.__name__,
                    hint="use one of its subclasses, or write one",
                )
            )

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments as they were given, by name."""
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    def guide_globals(self) -> None:
        """Sample the posterior of those of the part's ``PyroSample`` attributes it guides itself.

        Nothing by default: an AutoGuide holds what no part guides. A part that knows better, or
        whose globals no AutoGuide can hold (discrete ones), overrides this and calls
        :meth:`sample_own` for each; :class:`~pyro_fcr.guides.Composed` runs it outside the plate.
        """

    def sample_own(self, name: str, posterior: Any) -> Any:
        """Draw one of the part's own ``PyroSample`` attributes from its posterior.

        Parameters
        ----------
        name
            The attribute; the site has the name it has in the model.
        posterior
            A reparametrised distribution of the same shape as the attribute.
        """
        return pyro.sample(self._pyro_get_fullname(name), posterior)

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


def _moved(
    value: Any, function: Callable[[torch.Tensor], torch.Tensor], made: dict[int, Any]
) -> Any:
    # Distributions and transforms are copied, each once: a transform and its inverse name
    # one another.
    if id(value) in made:
        return made[id(value)]
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, nn.Module):
        return value._apply(function)
    if isinstance(value, Distribution | Transform):
        found = made[id(value)] = copy.copy(value)
        for name, item in vars(value).items():
            kept = None if isinstance(item, weakref.ref) else _moved(item, function, made)
            vars(found)[name] = kept
        return found
    if type(value) in (list, tuple):
        return type(value)(_moved(item, function, made) for item in value)
    return value
