"""Files take their names whole; a disk that refuses is one line and leaves what was there."""

import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pyro_fcr.errors import FCRError, WriteError
from pyro_fcr.files import finish, together, whole


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "a.csv"
    with whole(path) as partial:
        partial.write_text("1")
        assert partial.suffix == ".csv"
        assert not path.exists()
    assert path.read_text() == "1"
    assert names(path.parent) == ["a.csv"]


def test_what_breaks_off_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("old")

    def broken():
        with whole(path) as partial:
            partial.write_text("half")
            raise ZeroDivisionError

    pytest.raises(ZeroDivisionError, broken)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.csv"]


def test_a_folder_replaces_a_folder(tmp_path):
    path = tmp_path / "a.zarr"
    for text in ("old", "new"):
        with whole(path) as partial:
            partial.mkdir()
            (partial / text).write_text(text)
    assert names(path) == ["new"]
    assert names(tmp_path) == ["a.zarr"]


def test_files_that_belong_together_are_moved_together(tmp_path):
    (tmp_path / "kept").write_text("kept")
    with together(tmp_path) as stage:
        for name in ("a", "b", "c"):
            (stage / name).write_text(name)
        assert names(tmp_path) == [stage.name, "kept"]
    assert names(tmp_path) == ["a", "b", "c", "kept"]

    def broken():
        with together(tmp_path) as stage:
            (stage / "b").write_text("other")
            raise ZeroDivisionError

    pytest.raises(ZeroDivisionError, broken)
    assert (tmp_path / "b").read_text() == "b"
    assert names(tmp_path) == ["a", "b", "c", "kept"]


@pytest.mark.parametrize("after", range(4))
def test_one_rename_decides_for_all_files(tmp_path, monkeypatch, after):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text("old")
    left, replace = [after], os.replace

    class Killed(BaseException):
        pass

    def dying(source, target):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        replace(source, target)

    def write():
        with together(tmp_path) as stage:
            for name in ("a", "b", "c"):
                (stage / name).write_text("new")

    with monkeypatch.context() as patched:
        patched.setattr("pyro_fcr.files.os.replace", dying)
        pytest.raises(Killed, write)
    finish(tmp_path)
    finish(tmp_path)
    assert {(tmp_path / name).read_text() for name in "abc"} == {"new" if after else "old"}
    assert names(tmp_path) == ["a", "b", "c"]
    write()
    assert {(tmp_path / name).read_text() for name in "abc"} == {"new"}


def test_nothing_to_finish(tmp_path):
    finish(tmp_path)
    finish(tmp_path / "nowhere")
    assert names(tmp_path) == []


def test_a_killed_writers_remains_are_swept_and_a_living_ones_are_not(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    dead = tmp_path / f".a.{process.pid}.partial.csv"
    living = tmp_path / f".a.{os.getppid()}.partial.csv"
    other = tmp_path / f".b.{process.pid}.partial.csv"
    for path in (dead, living, other):
        path.write_text("half")
    with whole(tmp_path / "a.csv") as partial:
        partial.write_text("1")
    assert names(tmp_path) == sorted([living.name, other.name, "a.csv"])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_refuses_is_one_line(tmp_path, number):
    path = tmp_path / "a.csv"
    path.write_text("old")

    def broken():
        with whole(path) as partial:
            partial.write_text("half")
            raise OSError(number, os.strerror(number))

    with pytest.raises(WriteError, match=r"^cannot write \(.*a\.csv\): .*untouched.*") as caught:
        broken()
    assert os.strerror(number) in str(caught.value)
    assert isinstance(caught.value, FCRError)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.csv"]


def test_errors_of_other_files_are_their_own(tmp_path):
    with pytest.raises(PermissionError), whole(tmp_path / "a.csv"):
        raise PermissionError(errno.EACCES, "no", "/elsewhere/input.h5ad")
    with pytest.raises(FileNotFoundError), whole(tmp_path / "a.csv"):
        raise FileNotFoundError(errno.ENOENT, "no", str(tmp_path / "input.h5ad"))


@pytest.fixture
def read_only():
    """A folder that this process may not write to, even where it runs as root."""
    # Not in tmp_path, whose parents let root alone pass.
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        folder.rmdir()


def test_a_read_only_folder_is_one_line(read_only):
    for path in (read_only / "a.csv", read_only / "new" / "a.csv"):
        with pytest.raises(WriteError, match="Permission denied"), whole(path) as partial:
            partial.write_text("1")
    with pytest.raises(WriteError, match="Permission denied"), together(read_only):
        pass


@pytest.fixture
def small_files():
    """No file may grow beyond 4 kB: a full disk as a process can have it to itself."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_files")
def test_a_file_that_does_not_fit(tmp_path):
    path = tmp_path / "a.bin"
    with whole(path) as partial:
        partial.write_bytes(b"old")
    with pytest.raises(WriteError, match="File too large"), whole(path) as partial:
        partial.write_bytes(bytes(100_000))
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.usefixtures("small_files")
def test_a_file_among_several_that_does_not_fit_is_told_by_the_folders_name(tmp_path):
    folder = tmp_path / "model"
    with pytest.raises(WriteError) as caught, together(folder) as stage:
        with whole(stage / "weights") as partial:
            partial.write_bytes(bytes(100_000))
    assert str(caught.value).startswith(f"cannot write ({folder}): ")
    assert not names(folder)
