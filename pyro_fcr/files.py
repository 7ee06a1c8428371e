"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from pyro_fcr.errors import WriteError, sentence

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["finish", "together", "whole"]

REFUSALS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM,
    errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip
"""What a file system says that will not take a file, or has another thing in its place."""

COMPLETE = ".complete"
"""Files that belong together and are all whole; those still in it are yet to be moved."""


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Give a place to write a file or a folder to, and its name to it once it is whole.

    Until then, and if anything goes wrong, what had the name before is untouched. What a killed
    process left behind is removed by the next that writes the same name on the same machine. A
    file takes its name at once; a folder takes it by two renames.

    Parameters
    ----------
    path
        The name; its folder is made if need be.

    Raises
    ------
    WriteError
        If the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    partial = _partial(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        yield partial
        _give_name(partial, path)
    except OSError as error:
        if not _refused(error, partial):
            raise
        raise _refusal(path, error) from error
    finally:
        _remove(partial)


@contextmanager
def together(folder: str | Path) -> Iterator[Path]:
    """Give a folder to write files to that belong together, and move them all once all are whole.

    One rename decides: what is killed before it leaves the former files, and what is killed
    after it leaves the new ones to :func:`finish`.

    Parameters
    ----------
    folder
        Where they go, over files of the same names; made if need be.

    Raises
    ------
    WriteError
        If the disk is full or the folder cannot be written to.
    """
    folder = Path(folder)
    stage = _partial(folder / "files")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder / "files")
        stage.mkdir()
        yield stage
        for path in stage.iterdir():
            _sync(path)
        finish(folder)
        os.replace(stage, folder / COMPLETE)
        finish(folder)
    except OSError as error:
        # One of the files may have been refused by itself, under a name that nobody knows.
        told = error.__cause__ if isinstance(error, WriteError) else error
        if not isinstance(told, OSError) or not _refused(told, stage):
            raise
        raise _refusal(folder, told) from told
    finally:
        _remove(stage)


def finish(folder: str | Path) -> None:
    """Move to their places the files that a killed process had written whole.

    Whoever reads a folder of :func:`together` calls it first. Nothing is done where nothing is
    left to move, or where the folder cannot be written to.

    Parameters
    ----------
    folder
        Where the files go.
    """
    stage = Path(folder) / COMPLETE
    if stage.is_symlink():
        # Nobody here makes one: it would have the files of another folder moved.
        return
    with suppress(OSError):
        for path in sorted(stage.iterdir()):
            if path.is_file() and not path.is_symlink():
                # Somebody else may be moving it too.
                with suppress(FileNotFoundError):
                    os.replace(path, Path(folder) / path.name)
        stage.rmdir()


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")


def _give_name(partial: Path, path: Path) -> None:
    if partial.is_dir() and path.is_dir():
        former = partial.with_name(partial.name.replace(".partial", ".former.partial", 1))
        os.replace(path, former)
        os.replace(partial, path)
        _remove(former)
        return
    _sync(partial)
    os.replace(partial, path)


def _sync(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _sweep(path: Path) -> None:
    pattern = f".{escape(path.stem)}.*.partial{escape(path.suffix)}"
    for left in path.parent.glob(pattern):
        number = left.name.removeprefix(f".{path.stem}.").split(".")[0]
        if number.isdigit() and not _is_running(int(number)):
            _remove(left)


def _is_running(process: int) -> bool:
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _remove(path: Path) -> None:
    # Nothing can be left behind where nothing could be written.
    with suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _refused(error: OSError, partial: Path) -> bool:
    named = error.filename is None or str(partial.parent) in str(error.filename)
    return named and error.errno in REFUSALS and not isinstance(error, WriteError)


def _refusal(path: Path, error: OSError) -> WriteError:
    return WriteError(
        sentence(
            "cannot write",
            where=str(path),
            expected="room on the disk and a folder that takes new files",
            got=error.strerror or str(error),
            hint="what was there before is untouched; free some space or choose another place",
        )
    )
