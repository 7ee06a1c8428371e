from __future__ import annotations

import re

import numpy as np
import pytest
from tiny import fit, tiny_adata, tiny_fcr, tiny_schema

import pyro_fcr as pf
from pyro_fcr.analysis import report

HOSTILE = "<script>alert('$x$')</script>"


@pytest.fixture(scope="module")
def adata():
    found = tiny_adata()
    found.obs["type"] = found.obs["type"].cat.rename_categories({"v": HOSTILE})
    return found


@pytest.fixture(scope="module")
def split(adata):
    return pf.splits.hold_out(adata, {"type": ["u"], "drug": ["A"]})


@pytest.fixture(scope="module")
def model(adata, split):
    fcr = tiny_fcr(adata)
    fit(fcr, split=split)
    return fcr


@pytest.fixture(scope="module")
def page(model, adata, split, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "deep" / "report.html"
    run = {"Command": f"pyro-fcr {HOSTILE}"}
    assert report.write_report(model, path, adata, split, run=run) == path
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def test_nothing_is_loaded_from_elsewhere(page) -> None:
    assert not re.search(r"(?:src|href|url|@import)\s*[=(]\s*[\"']?(?!data:)\w", page)
    assert "http:" not in page
    assert "https:" not in page


def test_data_are_escaped(page) -> None:
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_every_picture_has_words(page) -> None:
    pictures = re.findall(r"<img [^>]*>", page)
    assert len(pictures) == 6
    assert all(re.search(r'alt="[^"]{20,}"', picture) for picture in pictures)


def test_the_page_tells_the_run(page, split) -> None:
    assert split.hash in page
    assert "train" in page
    for section in ("The blocks", "gives away", "identified", "baselines", "Training", "care"):
        assert section in page
    assert re.search(r'<tr class="reads"><td>reconstruction[^<]*no prediction', page)
    assert page.count("no prediction</td>") == 1


def test_the_same_model_gives_the_same_page(model, adata, split, tmp_path) -> None:
    one, two = (
        report.write_report(model, tmp_path / name, adata, split).read_bytes() for name in "ab"
    )
    assert one == two


def test_without_a_split_nothing_is_called_a_prediction(model, tmp_path) -> None:
    text = report.write_report(model, tmp_path / "r.html").read_text()
    assert "No cells were held out" in text
    assert 'class="reads"' not in text


def test_a_loaded_model_without_cells_tells_of_the_run_alone(model, tmp_path) -> None:
    model.save(tmp_path / "run")
    text = report.write_report(pf.load(tmp_path / "run"), tmp_path / "r.html").read_text()
    assert text.count("<img ") == 1
    assert "Not shown: a loaded model holds no cells" in text


def test_a_mistake_leaves_an_earlier_page_alone(model, adata, tmp_path) -> None:
    path = tmp_path / "r.html"
    path.write_text("earlier")
    with pytest.raises(ValueError, match="missing"):
        report.write_report(model, path, adata[:, :5])
    assert path.read_text() == "earlier"


def test_probes_read_what_is_there_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    treatment, covariate = np.tile(["a", "b"], 200), np.repeat(["x", "y"], 200)
    z_x = rng.normal(size=(400, 2)) + 4.0 * (covariate == "y")[:, None]
    # Equal means, unequal spread: a linear classifier would see nothing.
    z_t = rng.normal(size=(400, 2)) * np.where(treatment == "b", 4.0, 1.0)[:, None]
    parents = {"z_x": frozenset({"covariates"}), "z_t": frozenset({"treatment"})}
    table = report.probes({"z_x": z_x, "z_t": z_t}, treatment, covariate, parents=parents)
    found = table.set_index(["block", "question"])
    of_t, of_x = "treatment, same covariate", "covariate, same treatment"
    assert found.loc[("z_t", of_t), "score"] > 0.8
    assert found.loc[("z_x", of_x), "score"] > 0.95
    for pair in (("z_x", of_t), ("z_t", of_x)):
        assert found.loc[pair, "low"] < 0.53
        assert found.loc[pair, "score"] < 0.6
        assert found.loc[pair, "expected"] == "chance"
    assert set(found["chance"]) == {0.5}


def test_probes_of_one_label_ask_nothing() -> None:
    z = np.zeros((20, 1))
    assert report.probes({"z": z}, np.array(["a"] * 20), np.array(["x"] * 20)).empty


def test_interaction_strength_by_hand() -> None:
    adata = tiny_adata(per_condition=200)
    cells = pf.Design.fit(adata, tiny_schema()).encode(adata)
    t, x = adata.obs["drug"].to_numpy(), adata.obs["type"].to_numpy()
    # A moves u by 3 and the others by 0: the mean shift is 1, the departures 2, 1 and 1.
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(len(cells), 1)) + 3.0 * ((t == "A") & (x == "u"))[:, None]
    table = report.interaction_strength(mean, np.zeros_like(mean), cells)
    assert table.shape == (2, 3)
    np.testing.assert_allclose(table.loc["A"], [2, 1, 1], atol=0.25)
    np.testing.assert_allclose(table.loc["B"], [0, 0, 0], atol=0.25)


def test_more_cells_than_are_shown_are_sampled(model, adata, split, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(report, "MAX_CELLS", 100)
    text = report.write_report(model, tmp_path / "r.html", adata, split).read_text()
    assert f"100 of {adata.n_obs} cells" in text


def test_cells_of_unknown_kind_cannot_be_shown(model, adata, tmp_path) -> None:
    few = adata[:50].copy()
    del few.obs["type"]
    text = report.write_report(model, tmp_path / "r.html", few).read_text()
    assert text.count("<img ") == 1
    assert "Not shown: no cell has both a treatment and covariates" in text


def test_a_split_of_other_cells_is_told(model, adata, split, tmp_path) -> None:
    other = adata.copy()
    other.obs_names = [f"new{i}" for i in range(other.n_obs)]
    text = report.write_report(model, tmp_path / "r.html", other, split).read_text()
    assert re.search(r"Not shown: \d+ cells are not in the split", text)
