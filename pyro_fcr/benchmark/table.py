"""What a benchmark leaves behind: tidy CSV and Parquet, one Markdown page, one figure."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pyro_fcr.analysis import plots
from pyro_fcr.files import whole

if TYPE_CHECKING:
    from pathlib import Path

    from pyro_fcr.benchmark.config import Config
    from pyro_fcr.benchmark.runner import Outcome

__all__ = ["compare", "markdown", "shares", "summarise", "write"]

LABELS = ("data", "method")


def write(config: Config, outcome: Outcome, out: Path) -> list[Path]:
    """Write ``rows.csv``, ``jobs.csv``, ``table.md``, ``figure.png``, and Parquet if it can.

    Parameters
    ----------
    config
        The benchmark.
    outcome
        Of its jobs.
    out
        Folder.

    Returns
    -------
    The files.
    """
    frames = {"rows": outcome.rows, "jobs": outcome.jobs.drop(columns="trace", errors="ignore")}
    written = []
    for name, frame in frames.items():
        with whole(out / f"{name}.csv") as partial:
            frame.to_csv(partial, index=False, float_format="%.6g")
        written.append(out / f"{name}.csv")
        if find_spec("pyarrow") is not None:
            with whole(out / f"{name}.parquet") as partial:
                frame.to_parquet(partial, index=False)
            written.append(out / f"{name}.parquet")
    with whole(out / "table.md") as partial:
        partial.write_text(_page(config, outcome), encoding="utf-8")
    written.append(out / "table.md")
    if len(outcome.rows):
        figure = _figure(config, outcome.rows)
        with whole(out / "figure.png") as partial:
            figure.savefig(partial, dpi=150)
        written.append(out / "figure.png")
    return written


def summarise(config: Config, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over seeds and conditions of the configured columns, seeds first.

    Parameters
    ----------
    config
        Its ``table.columns`` are summarised by its ``table.by``, or by data and method.
    rows
        Of the jobs.
    """
    by = list(config.table.get("by", LABELS))
    columns = [name for name in config.table.get("columns", []) if name in rows]
    columns = columns or [c for c in rows.select_dtypes("number") if c != "seed"]
    seeds = rows.groupby([*by, "seed"], sort=False, dropna=False)[columns].mean()
    return seeds.groupby(by, sort=False, dropna=False).mean()


def shares(config: Config, rows: pd.DataFrame) -> pd.DataFrame:
    """Return scores as shares of the ceiling's on the same data and seed: mean and worst seed.

    Parameters
    ----------
    config
        ``table.shares`` names the columns, ``table.ceiling`` the ceiling.
    rows
        Of the jobs, one a method, data set and seed.
    """
    columns = list(config.table["shares"])
    wide = rows.set_index(["data", "method", "seed"])[columns]
    best = wide.xs(config.table["ceiling"], level="method")
    share = wide / best.reindex(wide.droplevel("method").index).to_numpy()
    grouped = share.groupby(level=["data", "method"], sort=False)
    return pd.concat({"mean": grouped.mean(), "worst": grouped.min()}, names=["over seeds"])


def compare(config: Config, rows: pd.DataFrame, *, draws: int = 2000) -> pd.DataFrame:
    """Compare every method with one of them, condition by condition.

    The difference is divided by that of the ceiling where the table names one. Its interval is a
    bootstrap over conditions (each with all its seeds), which knows nothing of other data sets.

    Parameters
    ----------
    config
        ``table.against`` names the method, ``table.ceiling`` the ceiling.
    rows
        Of the jobs, with columns ``treatment`` and ``covariate``.
    draws
        Bootstrap draws.

    Returns
    -------
    pandas.DataFrame
        By data, method and measure: ``difference``, ``low``, ``high`` (95 %), ``normalised`` and
        ``conditions``.
    """
    rival, ceiling = config.table["against"], config.table.get("ceiling")
    out = []
    rng = np.random.default_rng(0)
    keys = ["fold", "treatment", "covariate"]
    # Scores over all conditions at once carry intervals of their own.
    rows = rows[rows["treatment"] != "*"]
    for data, part in rows.groupby("data", sort=False):
        for column in config.table["columns"]:
            if column not in part or part[column].isna().all():
                continue
            wide = part.pivot_table(index=[*keys, "seed"], columns="method", values=column,
                                    dropna=False)  # fmt: skip
            if rival not in wide:
                continue
            gain = wide.sub(wide[rival], axis=0).groupby(level=keys).mean()
            best = gain[ceiling].mean() if ceiling in gain else np.nan
            for method in gain.columns.drop([rival, ceiling], errors="ignore"):
                values = gain[method].dropna().to_numpy()
                if not len(values):
                    continue
                means = rng.choice(values, (draws, len(values))).mean(1)
                low, high = np.quantile(means, [0.025, 0.975])
                out.append(
                    {
                        "data": data,
                        "method": method,
                        "measure": column,
                        "difference": values.mean(),
                        "low": low,
                        "high": high,
                        "normalised": values.mean() / best if best > 0 else np.nan,
                        "conditions": len(values),
                    }  # fmt: skip
                )
    return pd.DataFrame(out)


def markdown(frame: pd.DataFrame, digits: int = 3) -> str:
    """Return a Markdown table of a frame with its index.

    Parameters
    ----------
    frame
        The table.
    digits
        Behind the point.
    """
    flat = frame.reset_index()
    lines = [[str(name) for name in flat.columns], ["---"] * flat.shape[1]]
    for row in flat.itertuples(index=False):
        lines.append(
            ["" if v is None or v != v else f"{v:.{digits}f}" if isinstance(v, float) else str(v)
             for v in row]
        )  # fmt: skip
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def _page(config: Config, outcome: Outcome) -> str:
    jobs = outcome.jobs
    parts = [f"# {config.name}: {config.title}"]
    if config.is_quick:
        parts.append("A smoke test: the numbers mean nothing.")
    if len(outcome.rows):
        parts.append(markdown(summarise(config, outcome.rows)))
        if "shares" in config.table and config.table["ceiling"] in set(outcome.rows["method"]):
            parts.append(f"As share of what {config.table['ceiling']} reaches on the same data.")
            parts.append(markdown(shares(config, outcome.rows)))
        if "against" in config.table:
            told = f"Difference to {config.table['against']}, 95 % over conditions"
            if ceiling := config.table.get("ceiling"):
                told += f"; normalised: as share of what {ceiling} gains"
            found = compare(config, outcome.rows)
            if len(found):
                parts += [told + ".", markdown(found.set_index(["data", "method"]))]
    cost = [c for c in ("fit_seconds", "wall_seconds", "cpu_seconds", "peak_gib") if c in jobs]
    if len(jobs):
        parts.append("Cost of a job, mean over jobs.")
        parts.append(markdown(jobs.groupby(list(LABELS), sort=False)[cost].mean(), 2))
        for status in ("failed", "skipped"):
            bad = jobs[jobs["status"] == status]
            if len(bad):
                lines = [f"- {r.data} {r.fold} {r.method} {r.seed}: {r.error}"
                         for r in bad.itertuples()]  # fmt: skip
                parts.append(f"{len(bad)} jobs {status}:\n\n" + "\n".join(lines))
        lines = [
            f"{name}: {', '.join(sorted(set(jobs[name].dropna().astype(str))))}"
            for name in ("command", "version", "code", "python", "torch", "pyro", "seed")
        ]
        parts.append("\n".join(f"- {line}" for line in lines))
    return "\n\n".join(parts) + "\n"


def _figure(config: Config, rows: pd.DataFrame) -> Figure:
    """Draw a panel a measure and data set: a dot a seed, a bar the mean, lines as in the table."""
    columns = list(summarise(config, rows).columns)[:4]
    by = [name for name in config.table.get("by", LABELS) if name != "data"]
    told = rows[by].fillna("").astype(str)
    shown = told.agg(lambda row: ", ".join(dict.fromkeys(filter(None, row))), axis=1)
    rows = rows.assign(data=rows["data"].astype(str), shown=shown).dropna(
        subset=columns, how="all"
    )
    lines = {name: list(dict.fromkeys(part["shown"]))
             for name, part in rows.groupby("data", sort=False)}  # fmt: skip
    heights = [0.9 + 0.2 * len(names) for names in lines.values()]
    wide = 0.06 * max(len(name) for names in lines.values() for name in names)
    with plots.house_style():
        figure = Figure(figsize=(1.0 + wide + 2.0 * len(columns), sum(heights) + 0.3),
                        layout="constrained")  # fmt: skip
        grid = figure.subplots(len(lines), len(columns), squeeze=False, sharey="row",
                               height_ratios=heights)  # fmt: skip
        for axes, (data, names) in zip(grid, lines.items(), strict=True):
            part = rows[rows["data"] == data]
            for ax, column in zip(axes, columns, strict=True):
                seeds = part.groupby(["shown", "seed"])[column].mean().dropna()
                for (name, _), value in seeds.items():
                    ax.plot(value, names.index(name), "o", ms=3, alpha=0.6,
                            color=plots.PALETTE[0])  # fmt: skip
                for name, value in seeds.groupby(level="shown").mean().items():
                    y = names.index(name)
                    ax.plot([value, value], [y - 0.3, y + 0.3], color="black", lw=1.2)
                ax.set_yticks(range(len(names)), names)
                ax.set_ylim(len(names) - 0.5, -0.5)
                ax.set_xlabel(column.replace("_", " "), fontsize=8)
            axes[0].set_title(data, fontsize=9, loc="left")
    return figure
