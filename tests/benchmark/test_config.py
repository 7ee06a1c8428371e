"""A configuration that does not hold together is refused in one sentence, before any work."""

import json

import pytest

from pyro_fcr.benchmark import CONFIGS, available, read_config
from pyro_fcr.errors import BenchmarkError

GOOD = """
title = "T"
task = "prediction"
seeds = [1]
[[data]]
name = "gbm"
split = { kind = "combinations" }
[methods.FCR]
system = "FCR"
"""


def written(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def test_the_configurations_of_the_package_hold_together():
    names = available()
    assert {"recovery", "violations", "held-out-combination", "null"} <= set(names)
    assert "data" not in names
    for name in names:
        config = read_config(name)
        labels = [tuple(job.labels.values()) for job in config.jobs()]
        assert len(labels) == len(set(labels)) > 0


def test_every_job_has_a_frozen_split():
    frozen = json.loads((CONFIGS / "splits.json").read_text())
    for name in available():
        config = read_config(name)
        folds = {(r["name"], r["fold"]) for r in config.data}
        assert len(frozen[name]) == len(folds) * len(config.seeds)


def test_folds_are_jobs_of_their_own(tmp_path):
    text = GOOD.replace(
        'split = { kind = "combinations" }',
        'split = { kind = "hold_out", each = "cell_line", hold_out = { cell_line = ["A172", '
        '"T98G"], treatment = "SGK1" } }',
    )
    jobs = read_config(written(tmp_path, text)).jobs()
    assert [job.labels["fold"] for job in jobs] == ["A172", "T98G"]
    held = [job.spec["data"]["split"]["hold_out"] for job in jobs]
    assert held == [
        {"cell_line": "A172", "treatment": "SGK1"},
        {"cell_line": "T98G", "treatment": "SGK1"},
    ]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("title =", "titel =", "an unknown name"),
        ('title = "T"', "", r"incomplete \(mine.toml\): expected the keys \['title'\]"),
        ('"prediction"', '"prophecy"', "mine.toml: task.*'prophecy'"),
        ("[1]", "[]", "no seeds"),
        ("[1]", '["one"]', "no seeds"),
        ('"gbm"', '"gmb"', "mine.toml: data.*'gmb'"),
        ('"combinations"', '"thirds"', "split.kind.*'thirds'"),
        ('"combinations" }', '"combinations", test = 0.2 }', "split.*'test'"),
        ('system = "FCR"', 'system = "FRC"', "no such system.*'FRC'"),
        ('system = "FCR"', 'system = "FCR"\nexternal = "scVI"', "what kind of method"),
        ('system = "FCR"', 'system = "FCR"\noption = {}', r"unknown keys.*\['option'\]"),
        (
            'system = "FCR"',
            'system = "FCR"\noptions = { guide = { part = "guides.Nothing" } }',
            "a part that cannot be made.*guides.Nothing",
        ),
        ("seeds = [1]", "seeds = [1]\noptions = { dras = 2 }", r"unknown options.*\['dras'\]"),
        ("seeds = [1]", "seeds = [1", "not TOML"),
    ],
)
def test_refusals(tmp_path, old, new, said):
    assert old in GOOD
    with pytest.raises(BenchmarkError, match=said) as refused:
        read_config(written(tmp_path, GOOD.replace(old, new)))
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BenchmarkError, match="no such benchmark"):
        read_config(tmp_path / "none.toml")


def test_only_takes_what_there_is(tmp_path):
    config = read_config(written(tmp_path, GOOD))
    assert config.only(seeds=[7, 8]).seeds == (7, 8)
    with pytest.raises(BenchmarkError, match="'VAE'"):
        config.only(methods=["VAE"])
