"""Tensors in files: safetensors with a JSON header, written all or not at all."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from pyro_fcr.errors import LoadError, sentence
from pyro_fcr.files import whole

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

__all__ = ["read_tensors", "write_tensors"]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header to one file, all of it or none.

    Parameters
    ----------
    path
        The file; its folder is made if need be.
    tensors
        Tensors by name; copied to the CPU.
    meta
        JSON-able; kept in the file's header.

    Raises
    ------
    WriteError
        If the disk is full or the folder cannot be written to.
    """
    # A clone per tensor: the format refuses tensors that share memory.
    cpu = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    content = save(cpu, metadata={"json": json.dumps(dict(meta))})
    with whole(path) as partial:
        partial.write_bytes(content)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote.

    Raises
    ------
    LoadError
        If the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return tensors, json.loads((file.metadata() or {})["json"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise LoadError(
            sentence(
                "cannot read weights",
                where=str(path),
                expected="a safetensors file written by this package",
                got=f"{type(error).__name__}: {error}".splitlines()[0],
                hint="check that the file is complete, or train again",
            )
        ) from None
