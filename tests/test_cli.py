from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import anndata
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from tiny import tiny_adata

import pyro_fcr as pf
from pyro_fcr import top_genes
from pyro_fcr.cli import main

COLUMNS = ["--treatment", "drug", "--control", "ctrl", "--covariate", "type"]
SMALL = ["--max-epochs", "2", "--batch-size", "64", "--quiet", "--device", "cpu"]
HELD_OUT = ["--hold-out", "type=u", "--hold-out", "drug=A"]


def run(*args: object):
    return CliRunner().invoke(main, [str(arg) for arg in args], catch_exceptions=False)


def refused(*args: object) -> str:
    """Run what must be refused, and return the one line it says."""
    result = run(*args)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("pyro-fcr: ")
    return lines[0]


@pytest.fixture(scope="module")
def adata():
    return tiny_adata()


@pytest.fixture(scope="module")
def data(adata, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "data.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def fitted(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "a"
    result = run("fit", data, *COLUMNS, *SMALL, *HELD_OUT, "--z-x", 3, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out}\n"
    return out


# ---- what each command writes ------------------------------------------------------------------


def test_a_run_holds_the_model_and_its_record(fitted, data, adata) -> None:
    assert sorted(path.name for path in fitted.iterdir()) == [
        "history.csv", "model.json", "run.json", "split.csv", "weights.safetensors",
    ]  # fmt: skip
    record = json.loads((fitted / "run.json").read_text())
    assert record["data"]["sha256"] == hashlib.sha256(data.read_bytes()).hexdigest()
    assert record["data"]["cells"] == adata.n_obs
    split = pf.splits.hold_out(adata, {"type": ["u"], "drug": ["A"]})
    assert record["split"]["hash"] == split.hash
    assert record["seconds"] > 0
    assert "torch" in record["versions"]
    table = pd.read_csv(fitted / "split.csv")
    assert list(table.columns) == ["cell", "part"]
    assert tuple(table["part"]) == split.parts
    assert [block.size for block in pf.load(fitted).declaration.blocks][0] == 3


def test_the_command_line_fits_what_the_library_fits(fitted, adata) -> None:
    fcr = pf.FCR(adata, pf.Schema(treatment="drug", control="ctrl", covariates=["type"]),
                 sizes={"z_x": 3})  # fmt: skip
    split = pf.splits.hold_out(adata, {"type": ["u"], "drug": ["A"]})
    fcr.fit(split=split, max_epochs=2, batch_size=64, device="cpu", progress=False)
    again = pf.load(fitted).latents(adata)
    for name, frame in fcr.latents().items():
        np.testing.assert_array_equal(frame, again[name])


def test_latents(fitted, data, adata, tmp_path) -> None:
    out = tmp_path / "deep" / "latents.h5ad"
    result = run("latents", fitted, data, "--out", out)
    assert result.exit_code == 0
    assert result.stdout == f"{out}\n"
    written = anndata.read_h5ad(out)
    assert set(written.obsm) == {"X_fcr_z_x", "X_fcr_z_t", "X_fcr_z_tx"}
    assert list(written.obs_names) == list(adata.obs_names)
    expected = pf.load(fitted).latents(adata)["z_t"]
    np.testing.assert_array_equal(written.obsm["X_fcr_z_t"], expected)
    assert os.listdir(out.parent) == ["latents.h5ad"]


def test_counterfactual(fitted, data, adata, tmp_path) -> None:
    out = tmp_path / "cf.h5ad"
    result = run("counterfactual", fitted, data, "--where", "drug=ctrl", "--do", "treatment=B",
                 "--draws", 3, "--out", out)  # fmt: skip
    assert result.exit_code == 0, result.output
    written = anndata.read_h5ad(out)
    assert written.n_obs == (adata.obs["drug"] == "ctrl").sum()
    assert set(written.layers) - {None} == {"sd", "q05", "q95"}
    assert set(written.obs["drug"]) == {"B"}
    assert set(written.obs["drug_factual"]) == {"ctrl"}


def test_means(fitted, data, tmp_path) -> None:
    out = tmp_path / "means.csv"
    result = run("means", fitted, data, "--draws", 2, "--out", out)
    assert result.exit_code == 0, result.output
    table = pd.read_csv(out)
    assert list(table.columns[:5]) == ["treatment", "covariate", "gene", "mean", "low"]
    assert (table["low"] < table["mean"]).all()


def test_evaluate_takes_the_runs_own_split(fitted, data, tmp_path) -> None:
    out = tmp_path / "table.csv"
    result = run("evaluate", fitted, data, "--draws", 2, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out}\n"
    table = pd.read_csv(out, index_col="method")
    assert {"FCR", "control mean", "additive"} <= set(table.index)
    assert table.loc["FCR", "conditions"] == 1


def test_evaluate_takes_another_split(fitted, data, tmp_path) -> None:
    out = tmp_path / "table.csv"
    held_out = ["--hold-out", "drug=B", "--hold-out", "type=v", "--hold-out", "type=w"]
    result = run("evaluate", fitted, data, *held_out, "--draws", 2, "--by-condition", "--out", out)
    assert result.exit_code == 0, result.output
    assert len(pd.read_csv(out)[["treatment", "covariate"]].drop_duplicates()) == 2


@pytest.mark.parametrize("with_data", [True, False])
def test_report(fitted, data, tmp_path, with_data) -> None:
    out = tmp_path / "report.html"
    result = run("report", fitted, *([data] if with_data else []), "--out", out)
    assert result.exit_code == 0, result.output
    text = out.read_text()
    assert text.count("<img ") == (8 if with_data else 1)
    assert "pyro-fcr" in text


def test_fit_takes_several_covariates_either_way(data, tmp_path) -> None:
    for i, given in enumerate((["--covariates", "type,lane"], ["--covariate", "lane"])):
        out = tmp_path / str(i)
        result = run("fit", data, *COLUMNS[:4], *(COLUMNS[4:] if i else []), *given, *SMALL,
                     "--split", "random", "--early-stopping", "--out", out)  # fmt: skip
        assert result.exit_code == 0, result.output
        assert pf.load(out).design.schema.covariates == ("type", "lane")


def test_top_genes_and_a_column_split(adata, tmp_path) -> None:
    own = adata.copy()
    own.obs["part"] = np.where(np.arange(own.n_obs) % 4 == 0, "test", "train")
    own.write_h5ad(tmp_path / "data.h5ad")
    result = run("fit", tmp_path / "data.h5ad", *COLUMNS, *SMALL, "--split", "part",
                 "--top-genes", 12, "--out", tmp_path / "run")  # fmt: skip
    assert result.exit_code == 0, result.output
    model = pf.load(tmp_path / "run")
    assert model.design.n_genes == 12
    # All the genes are there in the data: those the model knows are found by name.
    assert run("latents", tmp_path / "run", tmp_path / "data.h5ad", "--out",
               tmp_path / "z.h5ad").exit_code == 0  # fmt: skip


def test_top_genes_are_those_that_vary() -> None:
    counts = np.array([[50, 0, 50, 0], [50, 50, 0, 0], [50, 0, 50, 0], [50, 50, 0, 0.0]])
    adata = anndata.AnnData(counts.astype("float32"))
    adata.var_names = list("abcd")
    assert list(top_genes(adata, 2).var_names) == ["b", "c"]
    assert top_genes(adata, 9).n_vars == 4


def test_a_run_from_disk_that_is_resumed(data, tmp_path) -> None:
    out = tmp_path / "a"
    for _ in range(2):
        result = run("fit", data, *COLUMNS, *SMALL, "--stream", "--resume", "--out", out)
        assert result.exit_code == 0, result.output
    assert (out / "checkpoint.safetensors").is_file()
    assert pf.load(out).latents(data)["z_x"].shape[0] == 216
    said = refused("fit", data, *COLUMNS, "--stream", "--top-genes", 5, "--out", out)
    assert "genes cannot be left out of counts on disk (--top-genes)" in said


def test_an_earlier_run_is_replaced(fitted, data, tmp_path) -> None:
    out = tmp_path / "again"
    for seed in (1, 2):
        assert run("fit", data, *COLUMNS, *SMALL, "--seed", seed, "--out", out).exit_code == 0
    assert json.loads((out / "model.json").read_text())["settings"]["seed"] == 2
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
    assert "no cells were held out" in refused("evaluate", out, data, "--out", tmp_path / "t.csv")


# ---- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--treatment", "drugg", "--control", "ctrl", "--covariate", "type"], "drug"),
        (["--treatment", "drug", "--control", "none", "--covariate", "type"], "ctrl"),
        (["--treatment", "drug", "--control", "ctrl", "--covariate", "typ"], "type"),
        ([*COLUMNS, "--counts", "raw"], "raw"),
        ([*COLUMNS, "--counts", "raw", "--top-genes", "5"], "no such layer"),
        ([*COLUMNS, "--hold-out", "type"], "NAME=VALUE"),
        ([*COLUMNS, "--hold-out", "type=nobody"], "nobody"),
        ([*COLUMNS, "--hold-out", "type=u", "--split", "random"], "two splits"),
        ([*COLUMNS, "--split", "parts"], "parts"),
        ([*COLUMNS, "--early-stopping"], "validation"),
        ([*COLUMNS, "--device", "toaster"], "no such device"),
        ([*COLUMNS, "--likelihood", "gauss"], "gauss"),
        ([*COLUMNS, "--max-epochs", "0"], "max-epochs"),
        (COLUMNS[2:], "--treatment"),
        ([*COLUMNS, "--colour", "red"], "--colour"),
    ],
)
def test_mistakes_in_fit(data, tmp_path, args, said) -> None:
    assert said in refused("fit", data, *args, "--quiet", "--out", tmp_path / "run")
    assert not (tmp_path / "run" / "model.json").exists()


def test_mistakes_in_files(fitted, data, tmp_path) -> None:
    corrupt = tmp_path / "corrupt.h5ad"
    corrupt.write_bytes(b"this is not HDF5")
    out = tmp_path / "z.h5ad"
    assert "no such data file" in refused("latents", fitted, tmp_path / "no.h5ad", "--out", out)
    assert "cannot be read" in refused("latents", fitted, corrupt, "--out", out)
    assert "cannot read the model" in refused("latents", tmp_path / "no", data, "--out", out)
    assert "a file" in refused("fit", data, *COLUMNS, "--out", corrupt)
    assert "the folder" in refused("latents", fitted, data, "--out", tmp_path)
    assert not out.exists()
    said = refused("latents", tmp_path / "no", data, "--out", out)
    assert "got no such file" in said
    assert "Errno" not in said


@pytest.mark.parametrize(
    ("command", "right", "more"),
    [
        ("latents", ".h5ad", []),
        ("counterfactual", ".h5ad", ["--do", "treatment=A"]),
        ("evaluate", ".csv", []),
        ("means", ".csv", []),
        ("report", ".html", []),
    ],
)
def test_a_result_is_no_file_of_another_kind(fitted, data, tmp_path, command, right, more) -> None:
    out = tmp_path / "result.txt"
    said = refused(command, fitted, data, *more, "--out", out)
    assert "--out" in said
    assert right in said
    assert "result.txt" in said
    assert not out.exists()


def test_a_damaged_run_is_refused(fitted, data, tmp_path) -> None:
    for name in ("model.json", "history.csv", "split.csv"):
        (tmp_path / name).write_bytes((fitted / name).read_bytes())
    weights = (fitted / "weights.safetensors").read_bytes()
    (tmp_path / "weights.safetensors").write_bytes(weights[: len(weights) // 2])
    refused("latents", tmp_path, data, "--out", tmp_path / "z.h5ad")
    (tmp_path / "model.json").write_text("{")
    refused("report", tmp_path)


def test_a_damaged_split_is_refused(fitted, data, tmp_path) -> None:
    for path in fitted.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "split.csv").write_text("a,b\n1,2\n")
    assert "split" in refused("evaluate", tmp_path, data, "--out", tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--do", "treatment=C"], "'C'"),
        (["--do", "medicine=A"], "medicine"),
        (["--do", "A"], "NAME=VALUE"),
        (["--do", "treatment=A", "--do", "treatment=B"], "set twice"),
        (["--do", "treatment=A", "--where", "type=z"], "'z'"),
        (["--do", "treatment=A", "--draws", "0"], "draws"),
        ([], "--do"),
    ],
)
def test_mistakes_in_counterfactual(fitted, data, tmp_path, args, said) -> None:
    assert said in refused("counterfactual", fitted, data, *args, "--out", tmp_path / "cf.h5ad")


def test_missing_genes_are_named(fitted, adata, tmp_path) -> None:
    adata[:, 1:].copy().write_h5ad(tmp_path / "few.h5ad")
    said = refused("latents", fitted, tmp_path / "few.h5ad", "--out", tmp_path / "z.h5ad")
    assert "g0" in said


def test_an_unknown_command_is_one_line() -> None:
    assert "fitt" in refused("fitt")


# ---- help, warnings, the process ---------------------------------------------------------------


@pytest.mark.parametrize(
    "command", ["fit", "latents", "counterfactual", "means", "evaluate", "report", "demo"]
)
def test_help_teaches(command) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"pyro-fcr {command} " in result.stdout
    assert "Writes" in result.stdout
    assert "--out" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_the_list_of_commands_breaks_no_sentence_off() -> None:
    listed = run("--help").stdout.split("Commands:")[1]
    assert "..." not in listed
    said = " ".join(listed.split())
    assert "fit Fit FCR to DATA, an .h5ad file of raw counts." in said
    assert "report Write one page with pictures on RUN; with DATA, on its cells too." in said


def test_version() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("pyro-fcr, version ")


def test_a_weak_design_is_one_line_of_warning(data, tmp_path) -> None:
    result = run("fit", data, *COLUMNS, *SMALL, "--z-tx", 5, "--out", tmp_path / "run")
    assert result.exit_code == 0
    lines = [line for line in result.stderr.splitlines() if "warning: " in line]
    assert len(lines) == 1
    assert "interaction dimensions" in lines[0]


def ours(stderr: str) -> list[str]:
    """Return the lines of stderr without warnings that installed packages give of one another."""
    return re.sub(
        r"^\S+site-packages\S+ \w+Warning: .*\n(  .*\n)?", "", stderr, flags=re.M
    ).splitlines()


def test_the_process_ends_as_it_should(data, tmp_path) -> None:
    command = [sys.executable, "-m", "pyro_fcr", "fit", str(data), *COLUMNS[:-1], "typo"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(ours(done.stderr)) == 1
    assert "Traceback" not in done.stderr


def test_an_interrupt_is_one_line_and_leaves_nothing(data, tmp_path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "pyro_fcr", "fit", str(data), *COLUMNS, "--quiet"]
    with subprocess.Popen(
        [*command, "--max-epochs", "100000", "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A suite that runs in a shell's background ignores interrupts, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        for _ in range(6000):
            if out.exists():
                break
            time.sleep(0.1)
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert ours(stderr) == ["pyro-fcr: interrupted; no half-written file is left."]
    assert list(out.iterdir()) == []


@pytest.mark.slow
def test_quick_demo(tmp_path) -> None:
    out = tmp_path / "demo"
    result = run("demo", "--quick", "--quiet", "--out", out)
    assert result.exit_code == 0, result.output
    paths = result.stdout.split()
    assert str(out / "report.html") in paths
    assert all(os.path.getsize(path) for path in paths)
    assert set(anndata.read_h5ad(out / "latents.h5ad").obsm) == {
        "X_fcr_z_x", "X_fcr_z_t", "X_fcr_z_tx",
    }  # fmt: skip
    treated = anndata.read_h5ad(out / "counterfactuals.h5ad")
    assert set(treated.obs["condition"]) == {"stim"}
    assert set(treated.layers) - {None} == {"sd", "q05", "q95"}
    assert treated.n_obs == (pf.datasets.kang().obs["condition"] == "ctrl").sum()
    assert "FCR" in set(pd.read_csv(out / "evaluation.csv")["method"])
    assert pf.load(out).design.n_genes == 2000


# ---- again -------------------------------------------------------------------------------------


def test_a_repeated_run_has_the_same_weights(fitted, tmp_path) -> None:
    before = {path.name: path.read_bytes() for path in fitted.iterdir()}
    result = run("repeat", fitted, "--quiet", "--out", tmp_path / "again")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "the weights are the same, bit for bit\n"
    assert result.stderr == ""
    assert {path.name: path.read_bytes() for path in fitted.iterdir()} == before
    for name in ("weights.safetensors", "split.csv"):
        assert (tmp_path / "again" / name).read_bytes() == before[name]


def test_what_is_different_in_a_repeated_run_is_told(fitted, data, adata, tmp_path) -> None:
    other = adata.copy()
    other.X[3, 4] += 1
    other.write_h5ad(tmp_path / "other.h5ad")
    shutil.copytree(fitted, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    record["versions"]["torch"] = "1.0"
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    result = run("repeat", tmp_path / "run", tmp_path / "other.h5ad", "--quiet")
    assert result.exit_code == 1
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0] == f"versions: torch was 1.0, is {version('torch')}"
    assert lines[1].startswith("data: sha256 was ")
    assert all(line.startswith("weights: ") for line in lines[2:-1])
    assert "differs by up to" in lines[2]
    assert lines[-1] == f"pyro-fcr: the weights are not those of {tmp_path / 'run'}."


def test_runs_that_cannot_be_repeated(fitted, tmp_path) -> None:
    assert "expected another folder than RUN" in refused("repeat", fitted, "--out", fitted)
    shutil.copytree(fitted, tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    del record["made"]["options"]["seed"]
    path.write_text(json.dumps(record))
    said = refused("repeat", tmp_path / "run")
    assert "does not tell how it was made" in said
    assert "'seed'" in said
    path.unlink()
    assert "does not tell how it was made" in refused("repeat", tmp_path / "run")


def test_an_interrupted_run_that_keeps_its_state_says_how_to_go_on(data, tmp_path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "pyro_fcr", "fit", str(data), *COLUMNS, "--quiet", "--resume"]
    with subprocess.Popen(
        [*command, "--max-epochs", "3000", "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        for _ in range(6000):
            if (out / "checkpoint.safetensors").exists():
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert ours(stderr) == [
        f"pyro-fcr: interrupted; the same command goes on from {out / 'checkpoint.safetensors'}."
    ]


def test_a_batch_size_may_be_auto(data, tmp_path) -> None:
    out = tmp_path / "run"
    result = run("fit", data, *COLUMNS, "--max-epochs", 1, "--batch-size", "auto",
                 "--on-nonfinite", "skip", "--quiet", "--out", out)  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert pf.load(out).settings["batch_size"] == 512
    assert "skipped" in pd.read_csv(out / "history.csv")
    result = run("fit", data, *COLUMNS, "--batch-size", "many", "--out", out)
    assert result.exit_code == 2
    assert "many" in result.stderr
