"""Tensors in files: safetensors with a JSON header, written all or not at all."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from pyro_fcr.errors import LoadError, sentence
from pyro_fcr.files import whole
from pyro_fcr.reading import DAMAGE, first_line, regular

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

__all__ = ["read_tensors", "seal", "write_tensors"]


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
    # One entry, for the format does not keep the order of several.
    content = save(cpu, metadata={"json": json.dumps(seal(cpu, meta))})
    with whole(path) as partial:
        partial.write_bytes(content)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote.

    Raises
    ------
    LoadError
        If the file is missing or damaged, down to a single bit.
    """
    try:
        with safe_open(regular(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            meta = json.loads((file.metadata() or {})["json"])
        told = meta.pop("sha256")
        if seal(tensors, meta)["sha256"] != told:
            raise ValueError("the content is not what its checksum says")
    except DAMAGE as error:
        raise LoadError(
            sentence(
                "cannot read weights",
                where=str(path),
                expected="a safetensors file written by this package",
                got=first_line(error),
                hint="check that the file is complete, or train again",
            )
        ) from None
    return tensors, meta


def seal(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return a header with the SHA-256 of itself and of the tensors: names, types, shapes, values.

    Parameters
    ----------
    tensors
        On the CPU.
    meta
        The header, JSON-able.
    """
    found = hashlib.sha256(json.dumps(dict(meta), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name}\0{tensor.dtype}{tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return {**meta, "sha256": found.hexdigest()}
