"""A fitted model as a folder: JSON for what it is, safetensors for its weights, no pickle."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
from pyro.infer import autoguide

import pyro_fcr.decoders
import pyro_fcr.guides
import pyro_fcr.likelihoods
import pyro_fcr.penalties
import pyro_fcr.priors
from pyro_fcr.errors import LoadError, sentence
from pyro_fcr.files import whole
from pyro_fcr.nn import Part
from pyro_fcr.reading import DAMAGE, first_line, regular

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = [
    "FORMAT",
    "describe",
    "file_hash",
    "read_json",
    "rebuild",
    "seal",
    "versions",
    "write_json",
]

FORMAT = 2
"""Version of the folder's layout; another one is refused."""

ROOMS = {
    "decoders": pyro_fcr.decoders,
    "guides": pyro_fcr.guides,
    "likelihoods": pyro_fcr.likelihoods,
    "penalties": pyro_fcr.penalties,
    "priors": pyro_fcr.priors,
}
"""Where a part may be rebuilt from: nothing outside these modules' public names is ever called."""


def versions() -> dict[str, str]:
    """Return the versions of the packages a result depends on."""
    found = {}
    for name in ("pyro-fcr", "pyro-ppl", "torch", "anndata", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def describe(value: Any) -> Any:
    """Return a JSON-able description of a part, or of a value inside one's arguments.

    A built-in part becomes its public name and arguments, an AutoGuide class its name; a part
    of the user's own becomes ``{"user": class name}`` and must be given again when loading.
    """
    if isinstance(value, Part) and value.is_builtin:
        room = type(value).__module__.split(".")[1]
        arguments = {name: describe(given) for name, given in value.config().items()}
        return {"part": f"{room}.{type(value).__name__}", "arguments": arguments}
    if isinstance(value, type) and value.__module__.startswith("pyro.infer.autoguide"):
        return {"autoguide": value.__name__}
    if isinstance(value, tuple | list):
        return [describe(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return {"user": type(value).__name__}


def rebuild(description: Any, given: Any, *, slot: str) -> Any:
    """Return what :func:`describe` described, or the user's own part where it was one.

    Parameters
    ----------
    description
        From the model's JSON.
    given
        The part the user handed to ``load`` for this slot, or ``None``.
    slot
        The argument's name, for the message.

    Raises
    ------
    LoadError
        If the part was the user's own and is not given, or is none this package knows.
    """
    if given is not None:
        return given
    if isinstance(description, list):
        return tuple(rebuild(item, None, slot=slot) for item in description)
    if not isinstance(description, dict):
        return description
    if "user" in description:
        raise LoadError(
            sentence(
                f"the model was saved with a {description['user']} of the user's own",
                where=slot,
                expected="the object itself, since code is never loaded from a file",
                got="nothing",
                hint=f"pyro_fcr.load(path, {slot}) with that {description['user']}",
            )
        )
    made: Any = None
    if "autoguide" in description:
        name = str(description["autoguide"])
        made = getattr(autoguide, name, None) if name in autoguide.__all__ else None
    elif "part" in description:
        room, _, name = str(description["part"]).partition(".")
        cls = getattr(ROOMS.get(room), name, None)
        if isinstance(cls, type) and issubclass(cls, Part):
            arguments = {
                key: rebuild(value, None, slot=f"{slot}.{key}")
                for key, value in dict(description.get("arguments", {})).items()
            }
            made = cls(**arguments)
    if made is None:
        raise LoadError(
            sentence(
                "the model names a part this version does not have",
                where=slot,
                expected=f"a public class of {sorted(ROOMS)} or an AutoGuide",
                got=repr(description)[:80],
                hint="load it with the version it was saved with",
            )
        )
    return made


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's files and their names."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        each = (f"{file.relative_to(path).as_posix()} {file_hash(file)}" for file in files)
        return hashlib.sha256("\n".join(each).encode()).hexdigest()
    with regular(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON to a file with its own hash, all of it or none."""
    text = json.dumps(seal(content), indent=1, ensure_ascii=False, default=_plain)
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content with its SHA-256 beside it, which :func:`read_json` looks at.

    Parameters
    ----------
    content
        JSON-able.
    """
    told = {name: value for name, value in content.items() if name != "sha256"}
    text = json.dumps(told, sort_keys=True, default=_plain)
    return {**told, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")


def read_json(path: Path) -> dict[str, Any]:
    """Read a model's JSON.

    Raises
    ------
    LoadError
        If the file is missing, damaged, or of another layout.
    """
    try:
        content = json.loads(regular(path).read_text(encoding="utf-8"))
        layout = int(content["format"])
        told = content.pop("sha256", None)
        whole = told is None or seal(content)["sha256"] == told
    except DAMAGE as error:
        raise LoadError(
            sentence(
                "cannot read the model",
                where=str(path),
                expected="the folder that save() wrote",
                got="no such file" if isinstance(error, FileNotFoundError) else first_line(error),
                hint="give the folder that holds model.json",
            )
        ) from None
    if layout != FORMAT:
        newer = layout > FORMAT
        raise LoadError(
            sentence(
                f"the model was saved by {'a newer' if newer else 'an older'} version",
                where=str(path),
                expected=f"layout {FORMAT}",
                got=f"layout {layout}",
                hint="upgrade pyro-fcr" if newer else "fit again, or load it with that version",
            )
        )
    if not whole:
        raise LoadError(
            sentence(
                "the model's description is not what was saved",
                where=str(path),
                expected=f"a content whose hash is {str(told)[:12]}",
                got=str(seal(content)["sha256"])[:12],
                hint="save the model again; whoever edited it on purpose takes sha256 out",
            )
        )
    return content
