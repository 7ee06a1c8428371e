from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from tiny import fit, tiny_adata, tiny_fcr, tiny_schema

import pyro_fcr as pf
from pyro_fcr.analysis import leakage, report
from pyro_fcr.analysis.report import effects as effects_of_page
from pyro_fcr.analysis.report import write as writing

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
    # The page's own script stands alone, and the policy lets no other run.
    own = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert len(own) == page.count("<script") == 1
    digest = base64.b64encode(hashlib.sha256(own[0].encode()).digest()).decode()
    assert "default-src 'none'; img-src data:;" in page
    assert f"script-src 'sha256-{digest}'" in page
    assert "&lt;script&gt;" in page


def test_every_picture_has_words(page) -> None:
    pictures = re.findall(r"<img [^>]*>", page)
    assert len(pictures) == 8
    assert all(re.search(r'alt="[^"]{20,}"', picture) for picture in pictures)


def test_the_page_tells_the_run(page, split) -> None:
    assert split.hash in page
    assert "train" in page
    for section in ("The blocks", "gives away", "identified", "baselines", "Training", "care",
                    "Diagnosis", "Effects on genes", "Who answers differently"):  # fmt: skip
        assert section in page
    assert re.search(r'<tr class="reads"><td>reconstruction[^<]*no prediction', page)
    assert page.count("no prediction</td>") == 2


class Tables(HTMLParser):
    """The words of every table, row by row, by the label of the region around it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: dict[str, list[list[str]]] = {}
        self.region, self.inside = "", False
        self.feed(page)

    def handle_starttag(self, tag, attrs) -> None:
        self.region = dict(attrs).get("aria-label", self.region)
        if tag == "tr":
            self.found.setdefault(self.region, []).append([])
        self.inside = tag in {"td", "th"}
        if self.inside and self.found:
            self.found[self.region][-1].append("")

    def handle_data(self, data) -> None:
        if self.inside and self.found:
            self.found[self.region][-1][-1] += data

    def handle_endtag(self, tag) -> None:
        self.inside = False


def test_effects_stand_on_the_page_as_the_model_gives_them(model, adata, page) -> None:
    tables = Tables(page).found
    effects = model.effects(adata)
    head, *rows = tables["Interaction by condition"]
    assert head == ["treatment", "covariate", "strength", "low", "high", "genes", "measured"]
    ranked = effects.interactions()
    assert [row[:2] for row in rows] == ranked[["treatment", "covariate"]].to_numpy().tolist()
    np.testing.assert_allclose([float(r[2]) for r in rows], ranked["strength"], atol=1e-3)
    head, *rows = tables["Largest changes by condition"]
    assert {(r[0], r[1]) for r in rows} == set(
        ranked[["treatment", "covariate"]].itertuples(index=False, name=None)
    )
    for row in rows[:5]:
        true = effects.genes_of(row[0], row[1]).loc[row[2]]
        np.testing.assert_allclose(
            [float(v) for v in row[3:6]], true[["lfc", "low", "high"]].astype(float), atol=1e-3
        )
        np.testing.assert_allclose(
            [float(v) for v in row[7:9]], true[["model", "measured"]].astype(float), atol=1e-3
        )
    assert head[7:] == ["model", "measured"]
    # What columns mean is written out: no pointer needed.
    assert "<dt>measured</dt> <dd>What the cells alone say</dd>" in page
    head, *rows = tables["Common and interaction shares by gene"]
    assert len(rows) == adata.n_vars
    assert all(float(r[2]) + float(r[3]) == pytest.approx(1, abs=2e-3) for r in rows)


def test_masks_stand_on_the_page_of_a_sparse_prior(adata, tmp_path) -> None:
    svae = pf.SVAE(adata, tiny_schema(covariates=[]), sizes={"z": 4}, hidden=(16,))
    fit(svae, max_epochs=8)
    text = report.write_report(svae, tmp_path / "r.html").read_text()
    assert "Which components each treatment moves" in text
    tables = Tables(text).found
    true = svae.targets(level=0.10)
    true = true[true["selected"]]
    head, *rows = tables["Selected targets"]
    assert head == ["treatment", "latent", "inclusion", "shift", "lower", "upper"]
    assert {tuple(row[:2]) for row in rows} == set(true.index)
    for row in rows:
        assert float(row[3]) == pytest.approx(true.loc[(row[0], row[1]), "shift"], abs=1e-3)
    head, *rows = tables["Genes of each component"]
    change = svae.gene_programs(pseudocount=10.0)
    assert [row[0] for row in rows] == list(change)
    up = change["z_0"].sort_values(ascending=False).index[:8]
    assert rows[0][1].split(", ") == list(up)
    # What this system does not have is not spoken of.
    assert "Is the interaction identified?" not in text
    assert "Common or particular" not in text


def test_the_page_of_invariant_factors_asks_of_the_batch_and_names_cells(tmp_path) -> None:
    adata = tiny_adata()
    schema = pf.Schema(covariates="type", batch="lane")
    split = pf.splits.random(adata, test=0.25, valid=0.0, stratify="type", seed=0)
    invae = pf.InVAE(adata, schema, hidden=(16,))
    fit(invae, split=split, max_epochs=8)
    text = report.write_report(invae, tmp_path / "r.html", adata, split).read_text()
    tables = Tables(text).found
    asked = [row[1] for row in tables["What classifiers read"][1:]]
    assert asked == ["covariate, same batch"] * 2 + ["batch, same covariate"] * 2
    # The facts of the run, a table without a label, follow.
    rows = tables["Labels of held-out cells"][1:4]
    assert [row[1] for row in rows] == ["u", "v", "w"]
    assert sum(int(row[2]) for row in rows) == split.counts()["test"]
    assert "What the batch does to every cell" in text
    for absent in ("Effects on genes", "Counterfactuals beside baselines", "treated cells"):
        assert absent not in text


def test_findings_carry_their_state_as_a_word(page) -> None:
    states = re.findall(r'<span class="state (\w+)">(. \w+)</span>', page)
    said = {"fine": "✓ fine", "look": "! know", "bad": "✗ bad"}
    assert all(said[state] == word for state, word in states)
    total, *counts = map(int, re.search(
        r"(\d+) things were looked at. Fine: (\d+); to be known: (\d+); bad: (\d+)", page
    ).groups())  # fmt: skip
    assert total == len(states) == sum(counts)
    assert counts == [sum(s == state for s, _ in states) for state in said]


def test_too_many_conditions_are_left_to_the_verb(model, adata, split, tmp_path, monkeypatch):
    monkeypatch.setattr(effects_of_page, "EFFECT_VALUES", 100)
    text = report.write_report(model, tmp_path / "r.html", adata, split).read_text()
    assert "too many conditions for a page" in text
    assert "Interaction by condition" not in text


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
    table = leakage.probes(
        {"z_x": z_x, "z_t": z_t},
        {"treatment": treatment, "covariates": covariate},
        parents=parents,
    )
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
    same = np.array(["a"] * 20)
    assert leakage.probes({"z": z}, {"treatment": same, "covariates": same}).empty


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
    monkeypatch.setattr(writing, "MAX_CELLS", 100)
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


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update")  # fmt: skip
PACKAGES = ("puppeteer-core", "axe-core")

LOOK = """
const [browser, profile, page, ...flags] = process.argv.slice(2);
const puppeteer = require("puppeteer-core");
const axe = require("fs").readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
(async () => {
  const opened = await puppeteer.launch(
    {executablePath: browser, args: flags, userDataDir: profile});
  const tab = await opened.newPage();
  await tab.setBypassCSP(true);
  const errors = [], asked = [], seen = {};
  tab.on("pageerror", (error) => errors.push(error.message));
  tab.on("request", (request) => asked.push(request.url().split(":")[0]));
  await tab.goto("file://" + page);
  const width = () => tab.evaluate(
    () => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  for (const wide of [1280, 390]) {
    await tab.setViewport({width: wide, height: 900});
    seen["overflow" + wide] = await width();
    seen["axe" + wide] = await tab.evaluate(async (source) => {
      (0, eval)(source);
      const found = await axe.run();
      return found.violations.filter((v) => v.impact === "serious" || v.impact === "critical")
        .map((v) => v.id + ": " + v.nodes[0].html);
    }, axe).catch((error) => [String(error)]);
  }
  Object.assign(seen, await tab.evaluate(() => {
    const table = document.querySelector('[aria-label="Largest changes by condition"] table');
    const rows = () => Array.from(table.tBodies[0].rows).filter((row) => !row.hidden);
    const column = Array.from(table.tHead.rows[0].cells).findIndex(
      (head) => head.textContent === "lfc");
    const head = table.tHead.rows[0].cells[column], values = [];
    for (let i = 0; i < 2; i++) {
      head.firstChild.click();
      values.push([head.getAttribute("aria-sort"),
                   rows().map((row) => parseFloat(row.cells[column].textContent))]);
    }
    const field = table.closest("section").querySelector(
      '[data-hint^="a gene, a treatment"]').parentElement.previousElementSibling
      .querySelector("input");
    field.value = "A w";
    field.dispatchEvent(new Event("input"));
    return {values, kept: rows().map((row) => row.textContent), broken: Array.from(
      document.images).filter((image) => !image.naturalWidth).length};
  }));
  await tab.emulateMediaType("print");
  await tab.setViewport({width: 720, height: 900});
  seen.overflowPrint = await width();
  await opened.close();
  console.log(JSON.stringify({...seen, errors, asked}));
})();
"""


def installed(*packages: str) -> bool:
    if shutil.which("node") is None:
        return False
    names = "".join(f"require.resolve('{name}');" for name in packages)
    return subprocess.run(["node", "-e", names], capture_output=True).returncode == 0


@pytest.fixture
def stored(page, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_page_opens_in_a_browser(stored, tmp_path) -> None:
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [*command, stored.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    # The script ran: headings of columns have become buttons, with hints, and filters are there.
    sheets = re.findall(r'<table class="sheet".*?</thead>', done.stdout, re.S)
    assert len(sheets) == 5
    for sheet in sheets:
        assert sheet.count("<th ") == sheet.count("<button")
    assert 'title="No: no cells, the model extrapolates. Click to sort."' in done.stdout
    assert done.stdout.count('<input type="search"') >= 3


@pytest.mark.skipif(
    CHROMIUM is None or not installed(*PACKAGES), reason=f"needs chromium and {PACKAGES} of npm"
)
def test_the_page_sorts_filters_fits_and_is_accessible(stored, tmp_path) -> None:
    script = tmp_path / "look.cjs"
    script.write_text(LOOK)
    modules = subprocess.run(
        ["node", "-p", "module.paths.join(path.delimiter)"], capture_output=True, text=True
    ).stdout.strip()
    paths = os.pathsep.join(filter(None, (os.environ.get("NODE_PATH"), modules)))
    profile = str(tmp_path / "profile")
    done = subprocess.run(
        ["node", str(script), CHROMIUM, profile, str(stored), *FLAGS],
        capture_output=True, text=True, timeout=180, env=os.environ | {"NODE_PATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["errors"] == []
    assert set(seen["asked"]) <= {"file", "data"}
    assert seen["broken"] == 0
    assert [seen[name] for name in ("overflow1280", "overflow390", "overflowPrint")] == [0, 0, 0]
    assert seen["axe1280"] == seen["axe390"] == []
    (first, down), (second, up) = seen["values"]
    assert (first, second) == ("descending", "ascending")
    assert down == sorted(down, reverse=True)
    assert up == sorted(up)
    assert seen["kept"]
    assert all("a" in row.lower() and "w" in row.lower() for row in seen["kept"])
    assert len(seen["kept"]) < len(up)
