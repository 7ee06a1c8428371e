"""Fetch a file and make sure that it is the one that was meant."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from pyro_fcr.errors import LoadError, sentence

__all__ = ["download"]

PIECE = 1 << 20


def download(url: str, sha256: str, to: str | os.PathLike[str], *, timeout: float = 60.0) -> Path:
    """Download a file, check its SHA-256, and only then give it its name.

    A file that is already there with this hash is returned without a connection. A failed
    download leaves whatever was there before.

    Parameters
    ----------
    url
        An http or https address.
    sha256
        The file's hash, 64 hexadecimal digits.
    to
        The file's path here; its folder is made if need be.
    timeout
        Seconds without an answer after which the download fails.

    Returns
    -------
    The file's path.

    Raises
    ------
    LoadError
        If the address, the hash or the folder is unusable, the server does not answer with
        the whole file, or the file has another hash.
    """
    wanted, path = sha256.lower(), Path(to)
    if urlsplit(url).scheme not in ("http", "https"):
        raise _refusal("not a web address", url, "http:// or https://", url, "check the address")
    if len(wanted) != 64 or set(wanted) - set("0123456789abcdef"):
        raise _refusal(
            "not a SHA-256", url, "64 hexadecimal digits", repr(sha256), "run sha256sum"
        )
    if path.is_dir():
        raise _refusal(
            "a folder is in the way", str(path), "a file's path", "a folder", "add the file's name"
        )
    if path.is_file() and _hash(path) == wanted:
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In the same folder, for a rename is atomic only within a file system.
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise _refusal(
            "cannot write", str(path), "a writable folder", str(error), "choose another path"
        ) from error
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            got = _fetch(url, file, timeout)
        if got != wanted:
            raise _refusal(
                "another file than was meant",
                url,
                f"sha256 {wanted}",
                got,
                "check the address, or whether the file has a new version",
            )
        # mkstemp lets only its owner read; a download should be as readable as any new file.
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _fetch(url: str, file: BinaryIO, timeout: float) -> str:
    digest, size = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            promised = answer.headers.get("Content-Length")
            while piece := answer.read(PIECE):
                file.write(piece)
                digest.update(piece)
                size += len(piece)
    except urllib.error.HTTPError as error:
        told = f"{error.code} {error.reason}"
        error.close()
        raise _refusal("the server refused", url, "the file", told, "check the address") from None
    except (OSError, http.client.HTTPException) as error:
        raise _refusal(
            "the download failed",
            url,
            "the whole file",
            f"{type(error).__name__} {error} after {size} bytes",
            "check the connection and try again",
        ) from error
    if promised is not None and size != int(promised):
        raise _refusal("the download broke off", url, f"{promised} bytes", str(size), "try again")
    return digest.hexdigest()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refusal(what: str, where: str, expected: str, got: str, hint: str) -> LoadError:
    return LoadError(sentence(what, where=where, expected=expected, got=got, hint=hint))
