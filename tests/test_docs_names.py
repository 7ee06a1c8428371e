"""Names that the pages speak of are names of the package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pyro_fcr as pf
from pyro_fcr.analysis.condition_means import ConditionMeans
from pyro_fcr.analysis.effects import Effects

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

MODELS = (pf.FCR, pf.SVAE, pf.InVAE)
OF = {
    "fcr": MODELS, "model": MODELS, "mine": MODELS, "again": MODELS, "svae": MODELS,
    "fitted": MODELS, "effects": (Effects,), "means": (ConditionMeans,),
}  # fmt: skip
"""What a page calls by these names."""


def code(page: Path) -> str:
    """Return what stands in code, blocks and words alike."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:python)?\n(.*?)```", text, re.S)
    words = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    return "\n".join([*blocks, *words])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_of_the_package_are_there(page) -> None:
    for name in set(re.findall(r"\bpf((?:\.[A-Za-z_]\w*)+)", code(page))):
        found = pf
        for part in name[1:].split("."):
            assert hasattr(found, part), f"pf{name}"
            found = getattr(found, part)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_verbs_are_those_of_what_is_asked(page) -> None:
    for owner, verb in set(re.findall(r"(?<![\w./])([a-z]+)\.([a-z_]\w*)\(", code(page))):
        if owner in OF:
            assert any(hasattr(kind, verb) for kind in OF[owner]), f"{owner}.{verb}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_of_python_are_python(page) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        compile(block, page.name, "exec")
