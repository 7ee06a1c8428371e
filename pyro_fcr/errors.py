"""The errors and warnings a user can meet, and the one sentence they are built from."""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "BenchmarkError",
    "CategoryError",
    "CountsError",
    "DesignError",
    "DesignWarning",
    "FCRError",
    "FitError",
    "GeneError",
    "LoadError",
    "NonFiniteError",
    "NotFittedError",
    "NothingToTell",
    "SchemaError",
    "SlotError",
    "WriteError",
    "sentence",
]


LONGEST = 300
"""Characters of what was found that a sentence quotes."""


def sentence(what: str, *, where: str, expected: str, got: str, hint: str) -> str:
    """Compose one line: what went wrong, where, what was expected, what was found, what to try.

    Parameters
    ----------
    what, where, expected, got, hint
        Short phrases without closing punctuation.

    Examples
    --------
    >>> sentence("no such column", where="obs", expected="'drug'", got="'Drug'", hint="rename it")
    "no such column (obs): expected 'drug', got 'Drug'; rename it."
    """
    what, got = (part if len(part) <= LONGEST else f"{part[:LONGEST]}…" for part in (what, got))
    return " ".join(f"{what} ({where}): expected {expected}, got {got}; {hint}.".splitlines())


class FCRError(ValueError):
    """Base of every error this package raises on purpose."""


class ArgumentError(FCRError):
    """An argument is of a kind, or in a range, that makes no sense."""


class SchemaError(FCRError):
    """A schema names a column, layer or control that the data do not have."""


class CountsError(FCRError):
    """The count matrix holds something a count model cannot read."""


class GeneError(FCRError):
    """Genes the model was trained on are missing from new data, or names repeat."""


class CategoryError(FCRError):
    """A treatment, covariate or batch value was not in the training data."""


class DesignError(FCRError):
    """The experimental design cannot support what was asked of it."""


class SlotError(FCRError):
    """A prior, likelihood, guide or penalty does not honour its contract."""


class NothingToTell(SlotError):
    """A penalty or head reads a label of which all cells have the same."""


class FitError(FCRError):
    """Training was asked for something it cannot do."""


class NonFiniteError(FCRError):
    """Training met a loss that is not a number; the last good weights were kept."""


class NotFittedError(FCRError):
    """A verb that needs a trained model was called before ``fit``."""


class LoadError(FCRError):
    """A saved model is missing, damaged, or from an incompatible version."""


class WriteError(FCRError, OSError):
    """A file could not be written; what was there before is untouched."""


class BenchmarkError(FCRError):
    """A benchmark's configuration does not hold together, or a split is not the frozen one."""


class DesignWarning(UserWarning):
    """The design is usable, but weaker than the model's theory asks for."""
