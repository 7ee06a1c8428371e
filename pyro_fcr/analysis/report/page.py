"""The page itself: what sections put on it, and how it becomes one file."""

from __future__ import annotations

import base64
import hashlib
import io
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pyro_fcr.analysis import plots
from pyro_fcr.files import whole

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

__all__ = ["Page", "number", "rows"]


@dataclass
class Page:
    """What the template shows; a section without content says why in ``missing``."""

    figures: dict[str, dict[str, str]] = field(default_factory=dict)
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def draw(self, name: str, axes: Any, alt: str) -> None:
        """Keep the figure of some axes as an SVG data URI."""
        figure: Figure = np.ravel(np.asarray(axes, dtype=object))[0].figure
        self.figures[name] = {"uri": _data_uri(figure), "alt": alt}

    def write(self, path: Path, **words: Any) -> Path:
        """Render the page into a file, whole or not at all."""
        environment = Environment(
            loader=PackageLoader("pyro_fcr.analysis.report", "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        loader: Any = environment.loader
        script = str(loader.get_source(environment, "report.js")[0])
        content = environment.get_template("report.html.j2").render(
            page=self,
            title="pyro_fcr report",
            style=Markup(loader.get_source(environment, "report.css")[0]),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
            **words,
        )
        with whole(path) as partial:
            partial.write_text(content, encoding="utf-8")
        return path


def rows(table: pd.DataFrame, *, most: int, **more: Any) -> dict[str, Any]:
    """Return a table as the template reads it, at most so many rows, and what else it needs."""
    return {
        "head": [str(c).replace("_", " ") for c in table.columns],
        "rows": [[number(v) for v in row] for row in table.head(most).itertuples(index=False)],
        "left_out": max(0, len(table) - most),
        "numeric": [pd.api.types.is_numeric_dtype(table[c]) for c in table.columns],
        **more,
    }


def number(value: Any) -> str:
    """Return a value as a cell of a table shows it."""
    if isinstance(value, float | np.floating):
        return f"{value:.3f}" if np.isfinite(value) else "–"
    return f"{value:,}" if isinstance(value, int | np.integer) else str(value)


def _data_uri(figure: Figure) -> str:
    drawn = io.BytesIO()
    with plots.house_style(), warnings.catch_warnings():
        # A script that the font lacks is drawn as boxes; the tables have the names.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        # Without a date the same model gives the same page.
        figure.savefig(drawn, format="svg", metadata={"Date": None}, transparent=True)
    return "data:image/svg+xml;base64," + base64.b64encode(drawn.getvalue()).decode("ascii")
