"""What is done with a model: fit it, read its latents, ask it, judge it, report on it."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import click

from pyro_fcr.analysis.report import write_report
from pyro_fcr.cli.files import (
    latents_of,
    load_run,
    read_data,
    read_split,
    ready_file,
    ready_folder,
    save_run,
    short_table,
    told_of,
    write_h5ad,
    write_text,
)
from pyro_fcr.cli.fitting import fit_to
from pyro_fcr.cli.group import fail
from pyro_fcr.cli.options import (
    PATH,
    OrAuto,
    chosen_split,
    device_option,
    draws_option,
    matching,
    pairs,
    progress_option,
    seed_option,
    split_options,
)
from pyro_fcr.cli.root import main
from pyro_fcr.errors import DesignError, sentence

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from anndata import AnnData

    from pyro_fcr import Split
    from pyro_fcr.fitted import Fitted

__all__ = ["counterfactual", "evaluate", "fit", "latents", "means", "report"]


@main.command()
@click.argument("data", type=PATH)
@click.option(
    "--treatment",
    required=True,
    metavar="COLUMN",
    help="obs column of the treatment; A+B is a combination.",
)
@click.option("--control", required=True, metavar="LABEL", help="Its label for untreated cells.")
@click.option(
    "--covariate",
    "--covariates",
    "covariates",
    multiple=True,
    required=True,
    metavar="COLUMN",
    help="obs column of a covariate such as the cell type; repeat it, or give a,b.",
)
@click.option("--counts", metavar="LAYER", help="Layer with raw counts.  [default: X]")
@click.option(
    "--dose", metavar="COLUMN", help="obs column of the dose; 0.5+1.0 for a combination."
)
@click.option("--batch", metavar="COLUMN", help="obs column of the technical batch.")
@click.option(
    "--size-factor", metavar="COLUMN", help="obs column of size factors.  [default: total counts]"
)
@click.option(
    "--likelihood",
    type=click.Choice(["nb", "zinb", "poisson", "normal"]),
    default="nb",
    show_default=True,
)
@click.option("--z-x", type=click.IntRange(1), help="Size of z_x, what the cell is.")
@click.option("--z-t", type=click.IntRange(1), help="Size of z_t, the treatment's common effect.")
@click.option("--z-tx", type=click.IntRange(1), help="Size of z_tx, the interaction.")
@split_options
@click.option(
    "--max-epochs",
    type=click.IntRange(1),
    help="Passes over the training cells.  [default: by the data's size]",
)
@click.option(
    "--batch-size",
    type=OrAuto(2),
    default=512,
    show_default=True,
    help="Cells per step; auto takes the largest of 512, 256, ... that fits into memory.",
)
@click.option(
    "--on-nonfinite",
    type=click.Choice(["raise", "skip"]),
    default="raise",
    show_default=True,
    help="What is done about a step whose loss is not finite.",
)
@click.option(
    "--early-stopping",
    is_flag=True,
    help="Stop when every block has settled on the validation cells.",
)
@click.option(
    "--top-genes",
    type=click.IntRange(2),
    metavar="N",
    help="Keep the N genes that vary most among the training cells.",
)
@click.option(
    "--stream", is_flag=True, help="Leave the counts on disk; a Zarr store stays there anyway."
)
@click.option(
    "--resume",
    is_flag=True,
    help="Keep the run's state in the folder, and go on from it if it is there.",
)
@seed_option
@device_option
@progress_option
@click.option("--out", type=PATH, required=True, metavar="FOLDER", help="The run's folder.")
def fit(data: Path, out: Path, **options: Any) -> None:
    r"""Fit FCR to DATA, an .h5ad file of raw counts.

    Example:
      pyro-fcr fit data.h5ad --treatment treatment --control control \
          --covariate cell_line --hold-out cell_line=A172 --hold-out treatment=SGK1 \
          --out runs/a

    With several processes, which share each step and leave the writing to the first:
      torchrun --nproc-per-node 2 -m pyro_fcr fit data.h5ad --resume ... --out runs/a

    Writes to the folder --out, over an earlier run's files:
      model.json, weights.safetensors   the model, read back by pyro_fcr.load
      history.csv                       every term of the objective, epoch by epoch
      split.csv                         which cells trained, validated, test
      run.json                          command, versions, hashes of data and split, seconds
    """
    start = time.perf_counter()
    ready_folder(out)
    checkpoint = out / "checkpoint.safetensors" if options["resume"] else None
    try:
        model, adata, split = fit_to(data, options, checkpoint)
    except KeyboardInterrupt:
        if checkpoint is not None and checkpoint.exists():
            fail(f"interrupted; the same command goes on from {checkpoint}.", code=130)
        raise
    if os.environ.get("RANK", "0") == "0":
        made = {"data": data, "by": "fit", "options": options}
        save_run(out, model, adata, split, made, seconds=time.perf_counter() - start)
        click.echo(out)


@main.command()
@click.argument("run", type=PATH)
@click.argument("data", type=PATH)
@click.option("--out", type=PATH, required=True, metavar="FILE.h5ad")
@device_option
def latents(run: Path, data: Path, out: Path, device: str) -> None:
    """Write the latents of the cells of DATA under the model of RUN.

    Example:
      pyro-fcr latents runs/a data.h5ad --out latents.h5ad

    Writes an .h5ad file without counts: the cells' obs, and per block
      obsm["X_fcr_z_x"], obsm["X_fcr_z_t"], obsm["X_fcr_z_tx"]   posterior means
    """
    ready_file(out, ".h5ad")
    model, adata = load_run(run, device), read_data(data)
    click.echo(write_h5ad(latents_of(model, adata), out))


@main.command()
@click.argument("run", type=PATH)
@click.argument("data", type=PATH)
@click.option(
    "--do",
    "do",
    multiple=True,
    required=True,
    metavar="NAME=VALUE",
    help="What to set: treatment, dose, or a covariate by its column's name.",
)
@click.option(
    "--where",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="Only the cells that match, for example the control cells.",
)
@draws_option
@seed_option
@device_option
@click.option("--out", type=PATH, required=True, metavar="FILE.h5ad")
def counterfactual(
    run: Path,
    data: Path,
    do: Sequence[str],
    where: Sequence[str],
    draws: int,
    seed: int,
    device: str,
    out: Path,
) -> None:
    r"""Write the expression that the cells of DATA would have had.

    What does not descend from --do keeps its posterior; the rest is drawn anew.

    Example:
      pyro-fcr counterfactual runs/a data.h5ad --where treatment=control \
          --do treatment=SGK1 --draws 50 --out cf.h5ad

    Writes an .h5ad file:
      X                  expected counts at each cell's own library size
      layers             sd, q05, q95: the posterior's spread of the expectation
      obs                labels under --do; the former ones with the suffix _factual
    """
    ready_file(out, ".h5ad")
    model, adata = load_run(run, device), read_data(data)
    wanted = {name: values[-1] for name, values in pairs("--do", do, single=True).items()}
    if where:
        adata = matching(adata, pairs("--where", where))
    found = model.counterfactual(adata, do=wanted, draws=draws, seed=seed)
    click.echo(write_h5ad(found, out))


@main.command()
@click.argument("run", type=PATH)
@click.argument("data", type=PATH)
@split_options
@click.option("--by-condition", is_flag=True, help="One row per method and condition.")
@click.option("--draws", type=click.IntRange(1), default=20, show_default=True)
@seed_option
@device_option
@click.option("--out", type=PATH, required=True, metavar="TABLE.csv")
def evaluate(run: Path, data: Path, out: Path, **options: Any) -> None:
    """Compare RUN's predictions of held-out conditions with DATA, beside baselines.

    The split is the run's own (split.csv) unless another is given: mind that cells which trained
    the model are no test of it.

    Example:
      pyro-fcr evaluate runs/a data.h5ad --out table.csv

    Writes a CSV table: a row per method (the model, control mean, treated mean, additive, ...), a
    column per metric. The row "reconstruction" has read the test cells: no prediction.
    """
    ready_file(out, ".csv")
    model, adata = load_run(run, options["device"]), read_data(data)
    split = _split_of(run, model, adata, options)
    if split is None:
        raise DesignError(
            sentence(
                "no cells were held out",
                where=f"{run}/split.csv",
                expected="a split with test cells",
                got="none",
                hint="give --split or --hold-out, here and to fit",
            )
        )
    asked = {name: options[name] for name in ("draws", "by_condition", "seed")}
    table = model.evaluate(adata, split, **asked)
    write_text(out, table.to_csv())
    click.echo(short_table(table), err=True)
    click.echo(out)


@main.command()
@click.argument("run", type=PATH)
@click.argument("data", type=PATH)
@split_options
@click.option("--draws", type=click.IntRange(1), default=20, show_default=True)
@seed_option
@device_option
@click.option("--out", type=PATH, required=True, metavar="TABLE.csv")
def means(run: Path, data: Path, out: Path, **options: Any) -> None:
    """Write the mean of every condition, measured in DATA or not, with intervals.

    RUN's expectation, moved by what the measured conditions tell of its error. The test cells of
    the run's own split (split.csv), or of another that is given, are not read.

    Example:
      pyro-fcr means runs/a data.h5ad --out means.csv

    Writes a CSV table: a row per treatment, covariates and gene; mean, low, high and the same of
    the change from the control; the model's own expectation; what was measured, if it was.
    """
    ready_file(out, ".csv")
    model, adata = load_run(run, options["device"]), read_data(data)
    split = _split_of(run, model, adata, options)
    found = model.condition_means(adata, split, draws=options["draws"], seed=options["seed"])
    write_text(out, found.table().to_csv(index=False))
    click.echo(out)


@main.command()
@click.argument("run", type=PATH)
@click.argument("data", type=PATH, required=False)
@click.option("--out", type=PATH, metavar="PAGE.html", help="[default: RUN/report.html]")
@seed_option
@device_option
def report(run: Path, data: Path | None, out: Path | None, seed: int, device: str) -> None:
    """Write one page with pictures on RUN; with DATA, on its cells too.

    Example:
      pyro-fcr report runs/a data.h5ad --out report.html

    Writes one self-contained HTML file, good offline, on a phone and in print. Without DATA it
    holds the run, its design and its training curves alone.
    """
    out = out or run / "report.html"
    model = load_run(run, device)
    ready_file(out, ".html")
    adata = None if data is None else read_data(data)
    told = told_of(run)
    click.echo(write_report(model, out, adata, read_split(run), run=told, seed=seed))


def _split_of(
    run: Path, model: Fitted, adata: AnnData, options: Mapping[str, Any]
) -> Split | None:
    """Return the split that was asked for, or else the run's own."""
    schema = model.design.schema
    return chosen_split(adata, options, [schema.treatment, *schema.covariates]) or read_split(run)
