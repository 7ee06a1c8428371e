"""From a folder that ``save`` wrote back to a model: code is never loaded, damage is told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pyro_fcr import arguments, io
from pyro_fcr.assembly import Recipe
from pyro_fcr.errors import FCRError, LoadError, sentence
from pyro_fcr.estimator import FEATURES, HISTORY, WEIGHTS, Estimator
from pyro_fcr.files import finish
from pyro_fcr.infer import resolve_device
from pyro_fcr.nn import AllocationLimit, read_tensors
from pyro_fcr.reading import DAMAGE, first_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from pyro_fcr.decoders import Decoder
    from pyro_fcr.likelihoods import Likelihood
    from pyro_fcr.priors import Prior

__all__ = ["load"]


def load(
    path: str | Path,
    *,
    priors: Mapping[str, Prior] | None = None,
    guide: Any = None,
    decoder: Decoder | None = None,
    likelihood: Likelihood | None = None,
    penalties: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    system: type[Estimator] | None = None,
    device: str | torch.device = "cpu",
) -> Any:
    """Load a model that ``save`` wrote.

    Code is never loaded: parts of the user's own must be given again, as they were.

    Parameters
    ----------
    path
        The folder.
    priors, guide, decoder, likelihood, penalties, options
        The user's own parts, where the model had any; ``options`` by the options' names.
    system
        The class, for a system that does not ship with this package.
    device
        Where to put the weights.

    Returns
    -------
    Estimator
        The model, of the class it was saved from. It holds no cells: pass data to its verbs.

    Raises
    ------
    LoadError
        If the folder is missing, damaged, of another layout, or needs parts not given.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise arguments.refused(
            path, where="load", expected="the folder that save() wrote", hint="pass its path"
        )
    folder = Path(path)
    finish(folder)
    saved = io.read_json(folder / "model.json")
    known = {cls.__name__: cls for cls in (*Estimator.__subclasses__(), *filter(None, [system]))}
    name = str(saved.get("system"))[:80]
    if name not in known:
        raise LoadError(
            sentence(
                f"the model is of the system {name!r}",
                where=str(folder),
                expected=f"one of {sorted(known)}",
                got=repr(name),
                hint="pass its class as system=",
            )
        )
    given, own, told = dict(priors or {}), dict(penalties or {}), dict(options or {})
    try:
        recipe = Recipe(
            {k: io.rebuild(v, given.get(k), slot=f"priors={{'{k}': ...}}")
             for k, v in saved["priors"].items()},
            io.rebuild(saved["guide"], guide, slot="guide=..."),
            io.rebuild(saved["decoder"], decoder, slot="decoder=..."),
            io.rebuild(saved["likelihood"], likelihood, slot="likelihood=..."),
            {k: io.rebuild(v, own.get(k), slot=f"penalties={{'{k}': ...}}")
             for k, v in saved["penalties"].items()},
            tuple(saved["hidden"]),
            bool(saved["batch_in_decoder"]),
            {k: io.rebuild(v, told.get(k), slot=f"options={{'{k}': ...}}")
             for k, v in saved.get("options", {}).items()},
        )  # fmt: skip
        if saved["design"]["schema"].get("treatment_features") is not None:
            saved["design"]["treatment_features"] = read_tensors(folder / FEATURES)[0]["features"]
        _check_files(folder, saved["files"])
        weights, _ = read_tensors(folder / WEIGHTS)
        numbers = sum(value.numel() for value in weights.values())
        if any(size > numbers for size in (*saved["sizes"].values(), *saved["hidden"])):
            raise ValueError(f"sizes beyond the {numbers} numbers of the weights")
        with AllocationLimit(10 * numbers + 10**6):
            made = known[name]._from_saved(saved, recipe)
        made._objective.load_state_dict(weights)
        text = pd.read_csv(folder / HISTORY, index_col=0, dtype=str, keep_default_na=False)
        text.index = text.index.astype(int)
        # Python reads back the number that was written; pandas' fast parser, its neighbour.
        made._history = text.apply(lambda column: column.map(_number))
    except FCRError:
        raise
    except DAMAGE as error:
        raise LoadError(
            sentence(
                "the model's files do not fit together",
                where=str(folder),
                expected="what save() wrote, and the user's own parts as they were",
                got=first_line(error, 200),
                hint="save the model again",
            )
        ) from error
    made._objective.to(resolve_device(device)).eval()
    return made


def _check_files(folder: Path, hashes: Mapping[str, str]) -> None:
    # The names are this package's own: one from the file could lead anywhere.
    known = [name for name in (WEIGHTS, FEATURES, HISTORY) if name in hashes]
    if other := [name for name in known if io.file_hash(folder / name) != hashes[name]]:
        raise LoadError(
            sentence(
                f"{other[0]} is not the file that this model was saved with",
                where=str(folder),
                expected="files of one save()",
                got="another content",
                hint="save the model again",
            )
        )


def _number(text: str) -> float:
    return int(text) if text.isdigit() else float(text or "nan")
