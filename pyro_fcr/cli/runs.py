"""Runs from beginning to end: the demonstration, and a run made again from its own record."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import click

from pyro_fcr.analysis.report import write_report
from pyro_fcr.cli.commands import fit
from pyro_fcr.cli.files import (
    compare_runs,
    latents_of,
    made_by,
    ready_folder,
    save_run,
    short_table,
    told_of,
    write_h5ad,
    write_text,
)
from pyro_fcr.cli.fitting import fit_to, fit_to_kang
from pyro_fcr.cli.group import fail
from pyro_fcr.cli.options import PATH, device_option, progress_option, seed_option
from pyro_fcr.cli.root import main
from pyro_fcr.errors import DesignError, sentence

__all__ = ["demo", "repeat"]


@main.command()
@click.option("--out", type=PATH, default=Path("runs/demo"), show_default=True, metavar="FOLDER")
@click.option("--quick", is_flag=True, help="A few epochs: to see that it works, not how well.")
@seed_option
@device_option
@progress_option
def demo(out: Path, quick: bool, seed: int, device: str, quiet: bool) -> None:
    """Fit FCR to bundled data: blood cells under interferon beta (Kang et al. 2018).

    The treated B cells are never seen in training; the model is asked what they would be.

    Example:
      pyro-fcr demo --out runs/demo

    Writes to the folder --out, in under five minutes on two cores:
      model.json, weights.safetensors, history.csv, split.csv, run.json   as fit does
      latents.h5ad            the three blocks of every cell
      counterfactuals.h5ad    every untreated cell as if treated, with its spread
      evaluation.csv          the prediction of the unseen B cells beside baselines
      report.html             all of it in pictures
    """
    start = time.perf_counter()
    ready_folder(out)
    options = {"quick": quick, "seed": seed, "device": device, "quiet": quiet}
    model, adata, split = fit_to_kang(options)
    fitted = time.perf_counter()
    click.echo(f"fitted in {fitted - start:.0f} s; predicting, judging, drawing", err=True)
    control = adata[(adata.obs["condition"] == "ctrl").to_numpy()]
    write_h5ad(latents_of(model, adata), out / "latents.h5ad")
    treated = model.counterfactual(control, do={"treatment": "stim"}, draws=20, seed=seed)
    write_h5ad(treated, out / "counterfactuals.h5ad")
    table = model.evaluate(adata, split, by_condition=True, seed=seed)
    write_text(out / "evaluation.csv", table.groupby("method", sort=False).mean().to_csv())
    made = {"data": None, "by": "demo", "options": options}
    save_run(out, model, adata, split, made, seconds=time.perf_counter() - start)
    write_report(
        model, out / "report.html", adata, split, run=told_of(out), evaluation=table, seed=seed
    )
    click.echo(short_table(table.groupby("method", sort=False).mean()), err=True)
    click.echo(f"done in {time.perf_counter() - start:.0f} s", err=True)
    for name in ("model.json", "latents.h5ad", "counterfactuals.h5ad", "history.csv",
                 "evaluation.csv", "report.html"):  # fmt: skip
        click.echo(out / name)


@main.command()
@click.argument("run", type=PATH)
@click.argument("data", type=PATH, required=False)
@click.option("--out", type=PATH, metavar="FOLDER", help="Keep the repeated run there.")
@progress_option
def repeat(run: Path, data: Path | None, out: Path | None, quiet: bool) -> None:
    """Fit again what RUN is, and say whether the weights are the same, bit for bit.

    The data are found where they were, unless DATA says where they are now.

    Example:
      pyro-fcr repeat runs/a

    Exit code 0: the same weights. Exit code 1: others, and what else is different: data,
    versions, device, threads. RUN itself stays as it is.
    """
    start = time.perf_counter()
    if out is not None:
        ready_folder(out)
        if out.resolve() == run.resolve():
            raise DesignError(
                sentence("the run's place is taken", where="--out", expected="another folder than "
                         "RUN", got=str(out), hint="choose another name")
            )  # fmt: skip
    record = made_by(run, {"fit": fit, "demo": demo})
    options = {**record["options"], "quiet": quiet}
    if record["by"] == "demo":
        place = None
        model, adata, split = fit_to_kang(options)
    else:
        place = Path(record["data"]) if data is None else data
        model, adata, split = fit_to(place, options, None)
    made = {"data": place, "by": record["by"], "options": options}
    with tempfile.TemporaryDirectory() as aside:
        again = Path(aside) if out is None else out
        save_run(again, model, adata, split, made, seconds=time.perf_counter() - start)
        same, differences = compare_runs(run, again)
    for line in differences:
        click.echo(line, err=True)
    if not same:
        fail(f"the weights are not those of {run}.", code=1)
    click.echo("the weights are the same, bit for bit")
