"""Files and names of others: nothing in them runs, leads elsewhere, or leaves the page's text."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from fuzzing import Bomb, Readers, alarm, bombs
from scipy import sparse
from tiny import fit, tiny_adata, tiny_fcr

import pyro_fcr as pf
from pyro_fcr.analysis.report import write_report
from pyro_fcr.data import open_data
from pyro_fcr.errors import CountsError, FCRError, LoadError, WriteError

ROOT = Path(__file__).resolve().parents[2]

SLOTS = [
    *[("pf.load (FCR)", name) for name in ("model.json", "weights.safetensors", "history.csv")],
    ("fit(resume=True)", "checkpoint.safetensors"),
    *[("pyro-fcr evaluate", name) for name in ("split.csv", "run.json")],
    ("pyro-fcr latents, its data", "data.h5ad"),
    (".h5ad on disk", "data.h5ad"),
    ("pyro-fcr benchmark, its file", "held-out-combination.toml"),
    (".zarr on disk", ".zmetadata"),
    (".zarr on disk", "X/0.0"),
]


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    pytest.importorskip("zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Readers(tmp_path_factory.mktemp("slots"))


# ---- nothing runs ------------------------------------------------------------------------------


def test_the_bombs_are_live(tmp_path) -> None:
    mark = tmp_path / "mark"
    pickle.loads(bombs(mark)["pickle"])
    assert mark.is_dir()


@pytest.mark.parametrize("kind", ["pickle", "torch", "npy"])
@pytest.mark.parametrize(("reader", "name"), SLOTS)
def test_a_pickle_in_any_slot_is_not_run(reader, name, kind, readers) -> None:
    copied = readers._copy(readers.sample(reader))
    path = copied if copied.is_file() else copied / name
    assert path.is_file()
    path.write_bytes(bombs(readers.mark)[kind])
    readers.reading = reader
    with pytest.raises(FCRError):
        readers.checks[reader](copied)
    assert not readers.mark.exists()


@pytest.mark.parametrize("place", ["compressor", "filters"])
def test_a_store_that_asks_for_pickle_is_refused(place, readers) -> None:
    copied = readers._copy(readers.sample(".zarr on disk"))
    (copied / ".zmetadata").unlink()
    told = json.loads((copied / "X" / ".zarray").read_text())
    told |= {"compressor": None, "filters": None}
    told[place] = {"id": "pickle"} if place == "compressor" else [{"id": "pickle"}]
    (copied / "X" / ".zarray").write_text(json.dumps(told))
    (copied / "X" / "0.0").write_bytes(pickle.dumps(Bomb(readers.mark)))
    with pytest.raises(LoadError, match="cannot be read"):
        readers._stream(copied)
    assert not readers.mark.exists()


@pytest.mark.parametrize(
    "named", ["os.system", "builtins.eval", "priors.__builtins__", "antigravity.x", "priors.Part"]
)
def test_a_description_names_only_parts_of_the_package(named) -> None:
    with pytest.raises((LoadError, TypeError, NotImplementedError)):
        pf.io.rebuild({"part": named, "arguments": {"command": "true"}}, None, slot="guide=...")
    assert "antigravity" not in sys.modules


# ---- nothing leads elsewhere -------------------------------------------------------------------


def test_hashes_of_files_elsewhere_are_not_looked_at(readers) -> None:
    copied = readers._copy(readers.sample("pf.load (FCR)"))
    told = json.loads((copied / "model.json").read_text())
    told["files"] |= {"../secret": "0", "/etc/passwd": "0"}
    (copied / "model.json").write_text(json.dumps(pf.io.seal(told)))
    pf.load(copied)


def test_a_folder_of_whole_files_that_is_a_link_has_nothing_moved(readers, tmp_path) -> None:
    # What a killed save() left is moved by whoever comes next, but not out of another folder.
    elsewhere = readers._copy(readers.sample("pf.load (FCR)"))
    elsewhere = elsewhere.rename(tmp_path / "elsewhere")
    before = {path.name: path.read_bytes() for path in elsewhere.iterdir()}
    copied = readers._copy(readers.sample("pf.load (FCR)"))
    (copied / ".complete").symlink_to(elsewhere)
    model = pf.load(copied)
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == before
    with pytest.raises(WriteError, match="Not a directory"):
        model.save(copied)
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == before


def damaged(matrix: sparse.csr_matrix, how: str) -> None:
    """Let a sparse matrix point beyond itself, as a damaged file does."""
    if how == "a column beyond":
        matrix.indices[3] = 10**6
    elif how == "a column before":
        matrix.indices[3] = -1
    elif how == "a row beyond":
        matrix.indptr[3] = 2**30
    elif how == "rows out of order":
        matrix.indptr[3], matrix.indptr[4] = matrix.indptr[5], matrix.indptr[2]
    else:
        matrix.indptr[0] = 2


BEYOND = ["a column beyond", "a column before", "a row beyond", "rows out of order", "no start"]


@pytest.mark.parametrize("how", BEYOND)
@pytest.mark.parametrize("place", ["file", "memory", "memory, by columns"])
def test_a_sparse_matrix_that_points_beyond_itself_is_refused(how, place, tmp_path) -> None:
    # Compiled code would read, and write, what lies there.
    adata = tiny_adata(per_condition=6, n_genes=8)
    adata.X = (sparse.csc_matrix if "columns" in place else sparse.csr_matrix)(adata.X)
    if place == "file":
        adata.write_h5ad(tmp_path / "a.h5ad")
        with h5py.File(tmp_path / "a.h5ad", "a") as file:
            found = sparse.csr_matrix(adata.X)
            damaged(found, how)
            file["X/indices"][:], file["X/indptr"][:] = found.indices, found.indptr
        with (
            alarm(60),
            pytest.raises(LoadError, match=r"cannot be read.*(rows|column) of a sparse"),
        ):
            tiny_fcr(tmp_path / "a.h5ad")
        return
    damaged(adata.X, how)
    with alarm(60), pytest.raises(CountsError, match=r"damaged sparse matrix \(adata.X\)"):
        tiny_fcr(adata)


@pytest.mark.parametrize("shape", [(2**40, 8), (3, 8), (54, 2**40), (54, 7)])
def test_a_matrix_that_declares_another_shape_is_refused(shape, tmp_path) -> None:
    adata = tiny_adata(per_condition=6, n_genes=8)
    adata.X = sparse.csr_matrix(adata.X)
    adata.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        file["X"].attrs["shape"] = np.array(shape)
    with alarm(60), pytest.raises(LoadError, match=r"\(54, 8\), as obs and var, got"):
        tiny_fcr(tmp_path / "a.h5ad")


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_a_chunk_that_never_ends_is_refused(kind, readers) -> None:
    copied = readers._copy(readers.sample(".zarr on disk"))
    chunk = copied / "X" / "0.0"
    chunk.unlink()
    os.mkfifo(chunk) if kind == "fifo" else chunk.symlink_to("/dev/zero")
    with alarm(30), pytest.raises(LoadError, match="no regular file"):
        readers._stream(copied)


@pytest.mark.parametrize("way", ["link", "raw", "virtual"])
def test_a_file_that_would_have_another_read_is_refused(way, readers, tmp_path) -> None:
    secret = tmp_path / "elsewhere" / "secret"
    secret.parent.mkdir()
    with h5py.File(secret, "w") as file:
        file["X"] = np.ones((4, 3), "float32")
    path = Path(shutil.copy(readers.sample(".h5ad on disk"), tmp_path / "data.h5ad"))
    with h5py.File(path, "a") as file:
        shape = file["X"].shape
        del file["X"]
        if way == "link":
            file["X"] = h5py.ExternalLink(str(secret), "/X")
        elif way == "raw":
            file.create_dataset("X", shape, "u1", external=[(str(secret), 0, 10_000)])
        else:
            layout = h5py.VirtualLayout(shape=(4, 3), dtype="f4")
            layout[:] = h5py.VirtualSource(str(secret), "X", shape=(4, 3))
            file.create_virtual_dataset("X", layout)
    with pytest.raises(LoadError, match=r"would have another one read .*secret"):
        open_data(path)
    with pytest.raises(FCRError, match="would have another one read"):
        readers._data(path)


QUIET = """
import sys, warnings
warnings.simplefilter("ignore")
forbidden = {"socket.connect", "socket.getaddrinfo", "urllib.Request", "subprocess.Popen",
             "os.system", "os.exec", "os.posix_spawn"}
def watch(event, arguments):
    if event in forbidden:
        print("FORBIDDEN", event, arguments, flush=True)
sys.path.insert(0, "tests")
import pyro_fcr as pf
from tiny import fit, tiny_adata, tiny_fcr
sys.addaudithook(watch)
adata = tiny_adata(per_condition=8, n_genes=10)
pf.datasets.gbm_crispri()
model = tiny_fcr(adata)
fit(model, max_epochs=1)
again = pf.load(model.save(sys.argv[1] + "/model"))
again.counterfactual(adata, do={"treatment": "A"}, draws=2)
again.report(sys.argv[1] + "/page.html")
print("DONE")
"""


@pytest.mark.slow
def test_nothing_asks_the_network_or_starts_a_process(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", QUIET, str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["DONE"], done.stdout + done.stderr[-2000:]


# ---- nothing leaves the page's text -------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script>", '" onmouseover="alert(1)', "' onload='x", "</script><b>",
    "{{ 7 * 7 }}{% raw %}", "<!-- ", "a\u2028b\u2029c", "$x_{", "&lt;", "\\u003cscript",
    "javascript:alert(1)", "<img src=x onerror=alert(1)>",
]  # fmt: skip


class Tags(HTMLParser):
    """Every tag and attribute of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.comments: list[str] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.text += [value or "" for _, value in attrs]

    def handle_comment(self, data) -> None:
        self.comments.append(data)

    def handle_data(self, data) -> None:
        self.text.append(data)


def page_of(tmp_path, name: str, strings: list[str]) -> str:
    adata = tiny_adata(per_condition=12, n_genes=len(HOSTILE))
    adata.var_names = [f"g{text}" for text in strings]
    adata.obs_names = [f"c{i}{strings[i % len(strings)]}" for i in range(adata.n_obs)]
    for column, at in (("type", 0), ("drug", 3)):
        levels = [level for level in adata.obs[column].cat.categories if level != "ctrl"]
        names = {level: level + strings[at + i] for i, level in enumerate(levels)}
        adata.obs[column] = adata.obs[column].cat.rename_categories(names)
    adata.uns["note"] = "".join(strings)
    model = tiny_fcr(adata, schema=pf.Schema(treatment="drug", control="ctrl", covariates="type",
                                             separator=None))  # fmt: skip
    split = pf.splits.random(adata, seed=0)
    fit(model, max_epochs=1, split=split)
    told = {"Command": strings[0], strings[1]: strings[2], "Data": "".join(strings)}
    path = tmp_path / f"{name} {strings[0].replace('/', '')}.html"
    return write_report(model, path, adata, split, run=told).read_text(encoding="utf-8")


@pytest.mark.slow
def test_strings_of_the_data_stay_text_on_the_page(tmp_path) -> None:
    hostile = page_of(tmp_path, "hostile", HOSTILE)
    plain = page_of(tmp_path, "plain", [f"p{i}" for i in range(len(HOSTILE))])
    one, two = Tags(hostile), Tags(plain)
    assert set(one.tags) == set(two.tags)
    assert one.tags.count("script") == two.tags.count("script") == 1
    assert one.tags.count("img") == two.tags.count("img")
    assert one.attributes == two.attributes
    assert one.comments == two.comments == []
    # They are there all the same, as they were written.
    words = " ".join(one.text)
    for text in HOSTILE[:6]:
        assert text in words
    assert "49" not in re.findall(r"g(\d+){% raw", words)


@pytest.mark.slow
def test_names_with_dollars_are_drawn(tmp_path) -> None:
    names = [f"${i}^{{" for i in range(len(HOSTILE))]
    assert "<svg" not in page_of(tmp_path, "dollars", names)


def test_tables_read_back_what_was_written(tmp_path) -> None:
    # A cell's name may hold whatever CSV is made of.
    adata = tiny_adata(per_condition=6, n_genes=8)
    odd = ["a,b", 'say "x"', "two\nlines", "=1+1", " lead", "tab\t", "\u2028"]
    names = [f"{odd[i % len(odd)]}{i}" for i in range(adata.n_obs)]
    adata.obs_names = names
    split = pf.splits.random(adata, seed=1)
    table = pd.DataFrame({"cell": names, "part": split.parts})
    table.to_csv(tmp_path / "split.csv", index=False)
    record = {"split": {"recipe": split.recipe, "hash": split.hash}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    from pyro_fcr.cli.files import read_split

    assert read_split(tmp_path).hash == split.hash
