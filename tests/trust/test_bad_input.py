"""Every mistake of a user's: what he is told, or that it makes no difference."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from tiny import fit, tiny_adata, tiny_fcr, tiny_schema

import pyro_fcr as pf
from pyro_fcr.data import Design
from pyro_fcr.errors import DesignWarning, FCRError

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = Path(__file__).resolve().parents[2] / "docs" / "trust.md"

GUIDE = {"guide": pf.guides.Amortised(width=8, depth=1), "hidden": (8,)}
SYSTEMS: dict[str, Callable[[ad.AnnData], Any]] = {
    "FCR": lambda adata: tiny_fcr(adata, **GUIDE),
    "SVAE": lambda adata: pf.SVAE(
        adata, pf.Schema(treatment="drug", control="ctrl"), sizes={"z": 3}, **GUIDE
    ),
    "InVAE": lambda adata: pf.InVAE(
        adata,
        pf.Schema(covariates=["type"], batch="lane"),
        invariant=["type"],
        spurious=["lane"],
        **GUIDE,
    ),
}


def plain() -> ad.AnnData:
    found = tiny_adata(per_condition=8, n_genes=12)
    found.layers["raw"] = found.X.copy()
    return found


# ---- mistakes that are refused or warned of -----------------------------------------------------


def changed(change: Callable[[ad.AnnData], Any], **schema: Any) -> Callable[[], Any]:
    """Make a model of cells in which something was changed."""

    def make() -> Any:
        adata = plain()
        found = change(adata)
        return tiny_fcr(adata if found is None else found, schema=tiny_schema(**schema))

    if not schema:
        make.change = change
    return make


def value(number: float, dtype: str = "float32") -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        adata.X = adata.X.astype(dtype)
        adata.X[3, 5] = number

    return change


def column(name: str, values: Any) -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        adata.obs[name] = values(adata.obs) if callable(values) else values

    return change


def doses(number: Any) -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        adata.obs["dose"] = np.where(adata.obs["drug"] == "ctrl", 0.0, 1.0).astype(object)
        adata.obs.loc[adata.obs_names[adata.obs["drug"] == "A"][0], "dose"] = number

    return change


def later(change: Callable[[ad.AnnData], Any], verb: str = "latents", **options: Any) -> Any:
    """Ask a fitted model about cells in which something was changed."""

    def make() -> Any:
        adata = plain()
        model = tiny_fcr(adata, guide=pf.guides.Amortised(labels=True, width=8, depth=1))
        fit(model, max_epochs=1)
        found = change(adata)
        return getattr(model, verb)(adata if found is None else found, **options)

    return make


def renamed(axis: str, old: int, new: int) -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        names = list(getattr(adata, axis))
        names[new] = names[old]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            setattr(adata, axis, names)

    return change


def empty_cell(adata: ad.AnnData) -> None:
    adata.X[4] = 0


def empty_gene(adata: ad.AnnData) -> None:
    adata.X[:, 7] = 0


def log_normalised(adata: ad.AnnData) -> None:
    adata.X = np.log1p(adata.X / adata.X.sum(1, keepdims=True) * 1e4)


def unseen(name: str, new: str) -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        texts = adata.obs[name].astype(str)
        texts.iloc[0] = new
        adata.obs[name] = texts

    return change


def one_cell(adata: ad.AnnData) -> ad.AnnData:
    rare = np.flatnonzero((adata.obs["drug"] == "B") & (adata.obs["type"] == "u"))
    return adata[np.setdiff1d(np.arange(adata.n_obs), rare[1:])].copy()


def unseen_batch() -> Any:
    adata = plain()
    model = SYSTEMS["InVAE"](adata)
    fit(model, max_epochs=1)
    unseen("lane", "l7")(adata)
    return model.latents(adata)


def left_out() -> Any:
    adata = plain()
    model = tiny_fcr(adata, **GUIDE)
    fit(model, max_epochs=1, split=pf.splits.hold_out(adata, {"drug": "B"}, valid=0))
    return model.counterfactual(adata, do={"treatment": "B"}, draws=2)


# What the user does, what he then calls, whether he is warned (the model is made all the same).
MISTAKES: dict[str, tuple[Callable[[], Any], bool]] = {
    "counts scaled to fractions": (changed(value(2.5)), False),
    "log-normalised counts": (changed(log_normalised), False),
    "a NaN": (changed(value(np.nan)), False),
    "an infinite value": (changed(value(np.inf)), False),
    "a negative value": (changed(value(-1)), False),
    "int64 counts beyond 2³¹": (changed(value(2**31 + 1, "int64")), False),
    "a complex matrix": (changed(lambda a: setattr(a, "X", a.X.astype("complex64"))), False),
    "no matrix": (changed(lambda a: ad.AnnData(obs=a.obs, var=a.var)), False),
    "no cells": (changed(lambda a: a[:0].copy()), False),
    "no genes": (changed(lambda a: a[:, :0].copy()), False),
    "an empty cell": (changed(empty_cell), False),
    "an empty gene": (changed(empty_gene), True),
    "one treatment alone": (changed(lambda a: a[(a.obs["drug"] == "ctrl").to_numpy()]), False),
    "one level of a covariate": (changed(lambda a: a[(a.obs["type"] == "u").to_numpy()]), True),
    "one level of the batch": (changed(column("lane", "l0"), batch="lane"), True),
    "a penalty on a label of one level": (
        lambda: tiny_fcr(
            plain(), penalties={"own": (pf.penalties.Adversary("z_x", "batch"), 1.0)}
        ), False,
    ),
    "the control is not there": (changed(lambda a: None, control="DMSO"), False),
    "the control is misspelt": (changed(lambda a: None, control="Ctrl"), False),
    "a column that is not there": (changed(lambda a: None, covariates=["typ"]), False),
    "a layer that is not there": (changed(lambda a: None, counts="row"), False),
    "a treatment called like the separator": (changed(unseen("drug", "+")), False),
    "a treatment that ends in the separator": (changed(unseen("drug", "A+")), False),
    "an empty label": (changed(unseen("type", " ")), False),
    "a missing label": (changed(column("type", lambda o: o["type"].mask(o["type"] == "u"))),
                        False),
    "a treatment column without its control": (lambda: pf.Schema(treatment="drug"), False),
    "one column in two roles": (changed(lambda a: None, covariates=["drug"]), False),
    "two columns of one name": (
        changed(lambda a: setattr(a, "obs", pd.concat([a.obs, a.obs[["type"]]], axis=1))), False,
    ),
    "gene names that repeat": (changed(renamed("var_names", 0, 1)), False),
    "cell names that repeat": (changed(renamed("obs_names", 0, 1)), False),
    "a group of one cell": (changed(one_cell), True),
    "a dose of zero for a treated cell": (changed(doses(0.0), dose="dose"), False),
    "a negative dose": (changed(doses(-1.0), dose="dose"), False),
    "an infinite dose": (changed(doses(np.inf), dose="dose"), False),
    "a dose beyond float32": (changed(doses(1e39), dose="dose"), False),
    "a dose with its unit": (changed(doses("10 nM"), dose="dose"), False),
    "a size factor of zero": (
        changed(column("sf", lambda o: np.arange(len(o)) * 1.0), size_factor="sf"), False,
    ),
    "text among the numbers of a continuous covariate": (
        changed(column("age", lambda o: ["n/a", *[1.0] * (len(o) - 1)]), continuous="age"), False,
    ),
    "a covariate level that training never saw": (later(unseen("type", "w2")), False),
    "a treatment that training never saw": (later(unseen("drug", "C")), False),
    "an intervention that training never saw": (
        later(lambda a: None, "counterfactual", do={"treatment": "C"}), False,
    ),
    "a batch that training never saw, where the decoder reads it": (unseen_batch, False),
    "an intervention that the split left out of training": (left_out, True),
    "an intervention on nothing that is known": (
        later(lambda a: None, "counterfactual", do={"medicine": "A"}), False,
    ),
    "genes that are missing at prediction": (later(lambda a: a[:, 2:].copy()), False),
    "labels that are missing at prediction, where encoders read them": (
        later(lambda a: setattr(a, "obs", a.obs.drop(columns="drug"))), False,
    ),
    "normalised counts at prediction": (later(log_normalised), False),
    "an empty cell at prediction": (later(empty_cell), False),
    "no cells at prediction": (later(lambda a: a[:0].copy()), False),
    "a batch of no cells": (lambda: fit(tiny_fcr(plain()), batch_size=0), False),
    "a batch size that is no whole number": (
        lambda: fit(tiny_fcr(plain()), batch_size=2.5), False,
    ),
    "a batch size as text": (lambda: fit(tiny_fcr(plain()), batch_size="512"), False),
    "no epochs": (lambda: fit(tiny_fcr(plain()), max_epochs=0), False),
    "a split of other cells": (
        lambda: fit(tiny_fcr(plain()), split=pf.splits.random(tiny_adata()[:9])), False,
    ),
    "a verb before fit": (lambda: tiny_fcr(plain()).latents(), False),
    "sVAE+ without a treatment": (lambda: pf.SVAE(plain(), pf.Schema()), False),
    "inVAE without what is invariant": (lambda: pf.InVAE(plain(), pf.Schema(batch="lane")), False),
}  # fmt: skip


def said(make: Callable[[], Any], *, warned: bool) -> str:
    """Return what the user is told."""
    if warned:
        with pytest.warns(DesignWarning) as caught:
            make()
        return next(str(w.message) for w in caught if w.category is DesignWarning)
    with pytest.raises(FCRError) as refused:
        make()
    return str(refused.value)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line(name) -> None:
    make, warned = MISTAKES[name]
    told = said(make, warned=warned)
    # What (where): expected ..., got ...; hint.
    assert re.fullmatch(r"[^\n]+ \(.+\): expected .+, got .+; .+\.", told)
    assert len(told) < 500
    assert row(name, told, warned=warned) in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("system", ["SVAE", "InVAE"])
@pytest.mark.parametrize("name", MISTAKES)
def test_every_system_tells_it_alike(name, system) -> None:
    make, warned = MISTAKES[name]
    of_fcr_alone = ("treatment", "label", "column", "covariate", "group")
    if not hasattr(make, "change") or any(word in name for word in of_fcr_alone):
        return
    adata = plain()
    found = make.change(adata)
    again = SYSTEMS[system]
    adata = adata if found is None else found
    assert said(lambda: again(adata), warned=warned) == said(make, warned=warned)


def row(name: str, told: str, *, warned: bool) -> str:
    """Return a mistake's row on the page."""
    text = told.replace("|", r"\|").replace("`", "'")
    return f"| {name} | {'warned' if warned else 'refused'} | `{text}` |"


# ---- what makes no difference -------------------------------------------------------------------


def dask_array(adata: ad.AnnData) -> None:
    array = pytest.importorskip("dask.array")
    adata.X = array.from_array(adata.X, chunks=(10, 5))


def dask_sparse(adata: ad.AnnData) -> None:
    array = pytest.importorskip("dask.array")
    rows = array.from_array(adata.X, chunks=(10, adata.n_vars))
    adata.X = rows.map_blocks(sparse.csr_matrix)


def read_only(adata: ad.AnnData) -> None:
    for array in (adata.X, adata.layers["raw"]):
        array.setflags(write=False)


def strided(adata: ad.AnnData) -> None:
    wide = np.zeros((adata.n_obs, 2 * adata.n_vars), "float32")
    wide[:, ::2] = adata.X
    adata.X = wide[:, ::2]
    assert not adata.X.flags.c_contiguous


def unsorted_csr(adata: ad.AnnData) -> None:
    found = sparse.csr_matrix(adata.X)
    for start, stop in zip(found.indptr, found.indptr[1:], strict=False):
        found.indices[start:stop] = found.indices[start:stop][::-1]
        found.data[start:stop] = found.data[start:stop][::-1]
    found.has_sorted_indices = False
    adata.X = found


def twice_listed(adata: ad.AnnData) -> None:
    found = sparse.coo_matrix(adata.X)
    half = np.floor(found.data / 2)
    where = np.concatenate([found.row, found.row]), np.concatenate([found.col, found.col])
    adata.X = sparse.coo_matrix((np.concatenate([half, found.data - half]), where)).tocsr()


def matrix(make: Callable[[Any], Any]) -> Callable[[ad.AnnData], None]:
    return lambda adata: setattr(adata, "X", make(adata.X))


def labels(make: Callable[[pd.Series], Any]) -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        for name in ("drug", "type", "lane"):
            adata.obs[name] = make(adata.obs[name])

    return change


def unused(values: pd.Series) -> pd.Series:
    return values.cat.add_categories(["never", "nobody"])


def reordered(values: pd.Series) -> pd.Series:
    return values.cat.reorder_categories(values.cat.categories[::-1], ordered=True)


SAME: dict[str, Callable[[ad.AnnData], Any]] = {
    "counts as float64": matrix(lambda x: x.astype("float64")),
    "counts as int64": matrix(lambda x: x.astype("int64")),
    "counts as uint16": matrix(lambda x: x.astype("uint16")),
    "a big-endian array": matrix(lambda x: x.astype(">f4")),
    "a Fortran-ordered array": matrix(np.asfortranarray),
    "a non-contiguous array": strided,
    "a read-only array": read_only,
    "CSR": matrix(sparse.csr_matrix),
    "CSR with unsorted columns": unsorted_csr,
    "CSC": matrix(sparse.csc_matrix),
    "COO": matrix(lambda x: sparse.csr_matrix(sparse.coo_matrix(x))),
    "an entry listed twice": twice_listed,
    "a sparse array instead of a matrix": matrix(sparse.csr_array),
    "a dask array": dask_array,
    "a dask array of sparse blocks": dask_sparse,
    "a view of a larger AnnData": lambda a: ad.concat([a, a], index_unique="-", merge="same")[
        : a.n_obs
    ],
    "labels as objects": labels(lambda s: s.astype(str).astype(object)),
    "labels as nullable strings": labels(lambda s: s.astype(str).astype("string")),
    "categories that no cell has": labels(unused),
    "categories in another order": labels(reordered),
}


def result(adata: ad.AnnData, system: str) -> dict[str, np.ndarray]:
    """Everything that a model made of the data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DesignWarning)
        model = SYSTEMS[system](adata)
    fit(model, max_epochs=1, seed=4)
    found = {name: value.numpy() for name, value in model._objective.state_dict().items()}
    frames = {name: frame.to_numpy() for name, frame in model.latents(adata).items()}
    return {**found, **frames, "history": model.history.drop(columns="seconds").to_numpy()}


@pytest.fixture(scope="module")
def expected() -> dict[str, dict[str, np.ndarray]]:
    return {system: result(plain(), system) for system in SYSTEMS}


@pytest.mark.parametrize(
    "system", ["FCR", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SVAE", "InVAE"))]
)
@pytest.mark.parametrize("name", SAME)
def test_the_form_of_the_data_makes_no_difference(name, system, expected) -> None:
    adata = plain()
    made = SAME[name](adata)
    adata = adata if made is None else made
    if name.startswith("a view"):
        adata.obs_names = plain().obs_names
    found = result(adata, system)
    assert found.keys() == expected[system].keys()
    for key, array in expected[system].items():
        np.testing.assert_array_equal(found[key], array, err_msg=key)
    assert f"| {name} |" in PAGE.read_text(encoding="utf-8")


# Labels of another kind sort otherwise, so here the plain equivalent is the same label as text.
KINDS: dict[str, Callable[[Any], Any]] = {
    "boolean labels": lambda codes: codes == 1,
    "nullable boolean labels": lambda codes: pd.array(codes == 1, dtype="boolean"),
    "integer labels": lambda codes: codes + 7,
    "nullable integer labels": lambda codes: pd.array(codes + 7, dtype="Int64"),
    "labels of mixed types": lambda codes: np.array([1, "a", 2.5], dtype=object)[codes],
    "non-ASCII labels": lambda codes: np.array(["β-estradiol", "淋巴", "🧬 é"], dtype=object)[
        codes
    ],
    "labels with quotes, bars and line breaks": lambda codes: np.array(
        ["a|b", 'say "x"', "two\nlines\u2028"], dtype=object
    )[codes],
}


@pytest.mark.parametrize("name", KINDS)
def test_labels_of_any_kind_are_read_as_text(name) -> None:
    plainly, other = plain(), plain()
    made = KINDS[name](plainly.obs["type"].cat.codes.to_numpy().astype(int))
    plainly.obs["type"] = pd.Categorical([str(label) for label in made])
    other.obs["type"] = made
    for key, array in result(plainly, "FCR").items():
        np.testing.assert_array_equal(result(other, "FCR")[key], array, err_msg=key)
    assert f"| {name} |" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("system", SYSTEMS)
def test_genes_in_another_order_at_prediction(system) -> None:
    adata = plain()
    model = SYSTEMS[system](adata)
    fit(model, max_epochs=1)
    order = np.random.default_rng(0).permutation(adata.n_vars)
    extra = ad.AnnData(np.full((adata.n_obs, 2), 9, "float32"), obs=adata.obs[[]])
    extra.var_names = ["new1", "new2"]
    wider = ad.concat([adata[:, order], extra], axis=1)
    wider.obs = adata.obs
    for name, frame in model.latents(adata).items():
        pd.testing.assert_frame_equal(model.latents(wider)[name], frame, check_exact=True)


@pytest.mark.parametrize("system", SYSTEMS)
def test_one_cell_is_asked_for(system) -> None:
    adata = plain()
    model = SYSTEMS[system](adata)
    fit(model, max_epochs=1, batch_size=1)
    whole = model.latents(adata)
    for name, frame in model.latents(adata[5:6].copy()).items():
        # One row is multiplied by another kernel than many: equal to the last digits.
        np.testing.assert_allclose(frame, whole[name].iloc[5:6], rtol=1e-5, atol=1e-6)


def test_huge_doses_scale_out() -> None:
    small, large = plain(), plain()
    for adata, unit in ((small, 1.0), (large, 1e6)):
        adata.obs["dose"] = np.where(adata.obs["drug"] == "ctrl", 0.0, unit)
    designs = [Design.fit(adata, tiny_schema(dose="dose")) for adata in (small, large)]
    rows = [d.treatment_rows / np.where(d.dose_unit, d.dose_unit, 1) for d in designs]
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-6)


@pytest.mark.parametrize("system", SYSTEMS)
def test_nothing_is_written_into_the_data(system) -> None:
    adata, before = plain(), plain()
    model = SYSTEMS[system](adata)
    fit(model, max_epochs=1)
    model.latents(adata)
    np.testing.assert_array_equal(adata.X, before.X)
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert list(adata.obsm) == list(adata.uns) == []


def test_non_ascii_genes_and_cells_come_back(tmp_path) -> None:
    adata = plain()
    adata.var_names = [f"基因{i}β\u2028" for i in range(adata.n_vars)]
    adata.obs_names = [f"çell-{i}🧬" for i in range(adata.n_obs)]
    model = SYSTEMS["FCR"](adata)
    fit(model, max_epochs=1)
    again = pf.load(model.save(tmp_path / "mödel"))
    assert again.design.genes == tuple(adata.var_names)
    frame = again.latents(adata)["z_x"]
    assert list(frame.index) == list(adata.obs_names)
    found = again.counterfactual(adata[:5].copy(), do={"treatment": "A"}, draws=2)
    assert list(found.var_names) == list(adata.var_names)


if __name__ == "__main__":
    for mistake, (function, warns) in MISTAKES.items():
        print(row(mistake, said(function, warned=warns), warned=warns))
