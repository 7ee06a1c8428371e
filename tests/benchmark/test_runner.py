"""Runs that break off go on, a crash is one job's, and a split that changed is refused."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from click.testing import CliRunner

from pyro_fcr.benchmark import freeze, read_config, run, runner
from pyro_fcr.cli import main
from pyro_fcr.errors import BenchmarkError

CONFIG = """
title = "Tiny"
task = "prediction"
seeds = [3, 4]
options = {{ draws = 2 }}

[[data]]
name = "tiny"
split = {{ kind = "combinations", share = 0.3 }}

[methods.references]
references = true

[methods.FCR]
system = "FCR"
options = {{ hidden = [8] }}
fit = {{ max_epochs = {epochs} }}

[table]
columns = ["gain", "interaction R2"]
against = "additive"
"""
DATA = """
[tiny]
source = "simulate.factorised"
arguments = { n_per_condition = 24, n_genes = 20, n_treatments = 4, n_covariates = 4 }
schema = { treatment = "treatment", control = "control", covariates = ["covariate"] }
min_cells = 5
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "data.toml").write_text(DATA)
    (tmp_path / "tiny.toml").write_text(CONFIG.format(epochs=2))
    made = read_config(tmp_path / "tiny.toml")
    freeze(made)
    return made


def test_finished_jobs_are_not_run_again(config, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = run(config.only(seeds=[3]), out, processes=0)
    assert list(first.jobs["status"]) == ["done", "done"]
    files = {path: path.read_bytes() for path in (out / "jobs").iterdir()}
    done = []
    monkeypatch.setattr(
        runner, "_work", lambda job, *_, work=runner._work: (done.append(str(job)), work(job, *_))
    )
    whole = run(config, out, processes=0)
    assert {"FCR", "FCR, as change", "additive"} <= set(whole.rows["method"])
    assert done == ["tiny / references / 4", "tiny / FCR / 4"]
    assert {path: path.read_bytes() for path in files} == files
    again = run(config, tmp_path / "other", processes=0)
    pd.testing.assert_frame_equal(whole.rows, again.rows)


def test_another_state_of_the_code_runs_anew(config, tmp_path, monkeypatch):
    part = config.only(seeds=[3], methods=["references"])
    run(part, tmp_path / "out", processes=0)
    (path,) = (tmp_path / "out" / "jobs").iterdir()
    before = json.loads(path.read_text())
    monkeypatch.setattr(runner, "code_version", lambda: "another")
    run(part, tmp_path / "out", processes=0, reuse=True)
    assert json.loads(path.read_text()) == before
    run(part, tmp_path / "out", processes=0)
    assert json.loads(path.read_text())["code"] == "another"


def test_what_decides_the_rows_decides_the_key(config):
    keys = {job.key for job in config.jobs()}
    assert len(keys) == 4
    assert keys == {job.key for job in config.jobs()}
    assert keys.isdisjoint(job.key for job in config.only(seeds=[5]).jobs())


def test_a_split_that_changed_is_refused(config, tmp_path):
    path = tmp_path / "splits.json"
    frozen = json.loads(path.read_text())
    assert sorted(frozen["tiny"]) == ["tiny / 3", "tiny / 4"]
    other = frozen["tiny"]["tiny / 4"]
    path.write_text(json.dumps({"tiny": {"tiny / 3": other, "tiny / 4": other}}))
    found = run(config.only(methods=["references"]), tmp_path / "out", processes=0)
    assert list(found.jobs["status"]) == ["failed", "done"]
    assert "the split is not the frozen one" in found.jobs["error"][0]
    assert f"expected {other[:12]}" in found.jobs["error"][0]
    path.write_text(json.dumps({"tiny": {}}))
    with pytest.raises(BenchmarkError, match=r"2 splits are not frozen.*--freeze"):
        run(config, tmp_path / "out", processes=0)


def test_an_error_is_one_jobs_own(config, tmp_path):
    (tmp_path / "tiny.toml").write_text(CONFIG.format(epochs='"many"'))
    found = run(read_config(tmp_path / "tiny.toml").only(seeds=[3]), tmp_path / "out", processes=0)
    assert dict(zip(found.jobs["method"], found.jobs["status"], strict=True)) == {
        "references": "done", "FCR": "failed",
    }  # fmt: skip
    assert set(found.rows["method"]) >= {"additive", "noise ceiling"}
    assert "max_epochs" in found.failed["error"].item()


def test_costs_and_versions_are_written_down(config, tmp_path):
    found = run(config.only(seeds=[3]), tmp_path / "out", processes=0, command="said")
    jobs = found.jobs.set_index("method")
    assert set(jobs["command"]) == {"said"}
    assert (jobs["wall_seconds"] >= jobs["fit_seconds"].fillna(0)).all()
    assert (jobs[["cpu_seconds", "peak_gib"]] > 0).all(axis=None)
    assert jobs["code"].nunique() == jobs["split"].nunique() == 1


@pytest.mark.slow
def test_a_killed_process_is_one_jobs_own(config, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_work", _die)
    found = run(config.only(seeds=[3]), tmp_path / "out", processes=2)
    status = dict(zip(found.jobs["method"], found.jobs["status"], strict=True))
    assert status == {"references": "done", "FCR": "failed"}
    assert found.failed["error"].item() == "the process ended by SIGKILL"


def _die(job, path, *_):
    if "system" in job.spec["method"]:
        os.kill(os.getpid(), signal.SIGKILL)
    path.write_text(json.dumps({"spec": job.spec, "status": "done", "rows": []}))


@pytest.mark.slow
def test_a_killed_run_goes_on(config, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "pyro_fcr", "benchmark", str(tmp_path / "tiny.toml"),
               "--out", str(out), "--jobs", "1"]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    jobs = out / "tiny" / "jobs"
    while not (jobs.is_dir() and list(jobs.glob("[!.]*.json"))):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    process.communicate()
    survived = len(list(jobs.glob("[!.]*.json")))
    assert 1 <= survived < 4
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert f"4 jobs, {survived} of them done before" in told
    rows = pd.read_csv(out / "tiny" / "rows.csv")
    whole = run(config, tmp_path / "other", processes=0).rows
    rows, whole = (frame.drop(columns="fold").fillna(-1) for frame in (rows, whole))
    pd.testing.assert_frame_equal(rows, whole, check_dtype=False, rtol=1e-5)


def test_command_line(config, tmp_path):
    call = ["benchmark", str(tmp_path / "tiny.toml"), "--jobs", "0", "--seeds", "3", "--method",
            "references", "--out", str(tmp_path / "out")]  # fmt: skip
    result = CliRunner().invoke(main, call, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    names = {line.rsplit("/", 1)[1] for line in result.stdout.split()}
    assert names >= {"rows.csv", "jobs.csv", "table.md", "figure.png"}
    page = (tmp_path / "out" / "tiny" / "table.md").read_text()
    assert page.startswith("# tiny: Tiny\n")
    assert "| tiny | nearest condition |" in page
    assert "recovery" in CliRunner().invoke(main, ["benchmark"]).stdout
    refused = CliRunner().invoke(main, ["benchmark", "recovry"])
    assert refused.exit_code == 2
    assert "an unknown name (benchmark)" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
