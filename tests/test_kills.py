"""Killed at random moments, a run goes on as if it had not been; long runs keep their size."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "benchmarks"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SCRIPTS.is_dir(), reason="the benchmarks are not shipped"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, forks and kills"),
]


def measured(script, *arguments, out):
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / script), *map(str, arguments), "--out", str(out)],
        capture_output=True, text=True, check=False, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_nothing_is_lost_to_kills(tmp_path):
    measured("kill.py", "--kills", 4, out=tmp_path / "kill.csv")
    table = pd.read_csv(tmp_path / "kill.csv").set_index("moment")
    assert list(table.index) == ["fit", "checkpoint", "save", "latents", "counterfactual"]
    assert (table["kills"] >= 4).all()
    assert (table["lost"] == 0).all()
    assert (table["survived"] == table["kills"]).all()
    assert table.loc[["save", "latents", "counterfactual"], "met while writing"].sum() > 0


def test_memory_and_open_files_stay_as_they_are(tmp_path):
    measured("long_runs.py", "--epochs", 100, "--models", 20, out=tmp_path)
    for _, rows in pd.read_csv(tmp_path / "long_runs.csv").groupby("what"):
        assert rows["files"].nunique() == 1
        assert rows["MB"].iloc[-1] - rows["MB"].iloc[1] < 15
    fits = pd.read_csv(tmp_path / "processes.csv", dtype=str)
    one = fits[fits["threads"].isin(["auto", "1"])]
    assert one["PYTHONHASHSEED"].nunique() == 4
    assert one["weights"].nunique() == 1
