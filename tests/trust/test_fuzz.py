"""Damaged files: a clear line each time. ``benchmarks/fuzz.py`` runs the same for longer."""

from __future__ import annotations

import warnings

import pytest
from fuzzing import Readers

CASES = {
    "pyro-fcr evaluate": 4,
    "pyro-fcr report": 4,
    "fit(resume=True)": 10,
    "pyro-fcr latents": 12,
    "pyro-fcr latents, its data": 12,
    ".zarr on disk": 12,
}
MANY = 40

READERS = ("pf.load (FCR)", "pf.load (SVAE)", "pf.load (InVAE)", ".h5ad on disk",
           ".h5ad on disk, sparse", "Design, Schema, Split from_dict",
           "pyro-fcr benchmark, its file", *CASES)  # fmt: skip


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    pytest.importorskip("zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Readers(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize(
    "reader", [pytest.param(r, marks=pytest.mark.slow) if r in CASES else r for r in READERS]
)
def test_a_damaged_file_is_refused_in_one_line_or_does_no_harm(reader, readers) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [readers.case(reader, seed) for seed in range(CASES.get(reader, MANY))]
    assert not [outcome for outcome in found if not outcome.is_good]
    assert any(outcome.answer == "refused" for outcome in found)


def test_all_readers_are_tried(readers) -> None:
    assert set(READERS) == set(readers.checks)
