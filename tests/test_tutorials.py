"""Every tutorial runs from its first cell to its last, in an empty folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import jupytext
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

if TYPE_CHECKING:
    from nbformat import NotebookNode

TUTORIALS = Path(__file__).resolve().parents[1] / "tutorials"
SECONDS = 600  # for one cell


class ThisInterpreter(AsyncKernelManager):
    """A kernel of this very interpreter; one found by name could be another environment's."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            display_name="this interpreter",
            language="python",
        )


def execute(path: Path, folder: Path, *, seconds: int = SECONDS) -> NotebookNode:
    """Run a percent-format script as a notebook, cell by cell, in a folder."""
    notebook: NotebookNode = jupytext.read(path, fmt="py:percent")
    NotebookClient(
        notebook,
        kernel_manager_class=ThisInterpreter,
        timeout=seconds,
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    return notebook


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(TUTORIALS.glob("*.py")), ids=lambda path: path.stem)
def test_tutorial(path: Path, tmp_path: Path) -> None:
    execute(path, tmp_path)


def test_runs_in_the_folder_and_fails_with_the_cell(tmp_path: Path) -> None:
    good = tmp_path / "good.py"
    good.write_text(
        "# %% [markdown]\n# # Title\n\n# %%\nimport sys\nfrom pathlib import Path\n\n"
        "# %%\nPath('who').write_text(sys.executable)\n"
    )
    execute(good, tmp_path)
    assert (tmp_path / "who").read_text() == sys.executable

    bad = tmp_path / "bad.py"
    bad.write_text("# %%\n1 / 0\n")
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute(bad, tmp_path)
