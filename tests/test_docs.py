"""The site builds, without a warning; tutorials are executed by their own tests."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("myst_nb")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    folders = [
        "-c",
        str(ROOT / "docs"),
        "-d",
        str(tmp_path / "trees"),
        str(ROOT),
        str(tmp_path / "site"),
    ]
    done = subprocess.run([*command, *folders], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    pages = {p.relative_to(tmp_path / "site").as_posix() for p in tmp_path.rglob("*.html")}
    tutorials = {f"tutorials/{p.stem}.html" for p in (ROOT / "tutorials").glob("*.py")}
    guides = {f"docs/{p.stem}.html" for p in (ROOT / "docs").glob("*.md")}
    assert tutorials | guides | {"README.html"} <= pages
    for page in tmp_path.rglob("*.html"):
        for source in re.findall(
            r"<(?:script|link)\b[^>]*?(?:src|href)=\"([^\"]+)", page.read_text()
        ):
            # Readable without a network, formulas included.
            assert (page.parent / source.split("?")[0].split("#")[0]).exists(), (page.name, source)
    assert "tex-svg.js" in (tmp_path / "site" / "docs" / "model.html").read_text()
