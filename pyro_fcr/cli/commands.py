"""The command line: the library's verbs, in the library's words.

Progress and tables go to stderr, the paths of results to stdout, so that
``pyro-fcr latents runs/a data.h5ad --out z.h5ad | xargs ...`` works. A mistake of the user's is
one line on stderr and exit code 2. Every file is written beside its place and moved there whole.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_fcr._version import __version__
from pyro_fcr.analysis.report import write_report
from pyro_fcr.benchmark import available, freeze, read_config
from pyro_fcr.benchmark import run as run_benchmark
from pyro_fcr.benchmark import write as write_tables
from pyro_fcr.cli.files import (
    compare_runs,
    latents_of,
    load_run,
    made_by,
    read_data,
    read_split,
    ready_file,
    ready_folder,
    save_run,
    told_of,
    write_h5ad,
    write_text,
)
from pyro_fcr.cli.fitting import fit_to, fit_to_kang
from pyro_fcr.cli.group import Polite, fail
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
    whole_numbers,
)
from pyro_fcr.errors import DesignError, sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd


__all__ = ["main"]


@click.group(
    cls=Polite, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, "--version", prog_name="pyro-fcr")
def main() -> None:
    r"""FCR: factorised causal representations of perturbed single cells.

    A run is a folder. `fit` makes it from an .h5ad file of counts; the other commands read it.

      pyro-fcr demo --out runs/demo
      pyro-fcr fit data.h5ad --treatment treatment --control control \
          --covariate cell_line --split random --out runs/a
      pyro-fcr latents runs/a data.h5ad --out latents.h5ad
      pyro-fcr counterfactual runs/a data.h5ad --do treatment=SGK1 --out cf.h5ad
      pyro-fcr means runs/a data.h5ad --out means.csv
      pyro-fcr evaluate runs/a data.h5ad --out table.csv
      pyro-fcr report runs/a data.h5ad --out report.html
      pyro-fcr repeat runs/a
      pyro-fcr benchmark recovery --out runs/benchmark

    Progress goes to stderr and the paths of results to stdout. A mistake in what was asked is one
    line and exit code 2.
    """


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
    ready_file(out)
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
    ready_file(out)
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
    ready_file(out)
    model, adata = load_run(run, options["device"]), read_data(data)
    schema = model.design.schema
    split = chosen_split(adata, options, [schema.treatment, *schema.covariates]) or read_split(run)
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
    table = model.evaluate(
        adata,
        split,
        **{k: options[k] for k in ("draws", "by_condition", "seed")},
    )
    write_text(out, table.to_csv())
    click.echo(_short_table(table), err=True)
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
    ready_file(out)
    model, adata = load_run(run, options["device"]), read_data(data)
    schema = model.design.schema
    split = chosen_split(adata, options, [schema.treatment, *schema.covariates]) or read_split(run)
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
    ready_file(out)
    adata = None if data is None else read_data(data)
    told = told_of(run)
    click.echo(write_report(model, out, adata, read_split(run), run=told, seed=seed))


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
    click.echo(_short_table(table.groupby("method", sort=False).mean()), err=True)
    click.echo(f"done in {time.perf_counter() - start:.0f} s", err=True)
    for name in ("model.json", "latents.h5ad", "counterfactuals.h5ad", "history.csv",
                 "evaluation.csv", "report.html"):  # fmt: skip
        click.echo(out / name)


@main.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--out",
    type=PATH,
    default=Path("runs/benchmark"),
    show_default=True,
    metavar="FOLDER",
    help="Each benchmark gets a folder in it.",
)
@click.option(
    "--jobs",
    type=click.IntRange(0),
    help="Processes at a time, one thread each; 0 runs them in this one.  [default: one a core]",
)
@click.option("--seeds", metavar="11,12", help="Instead of the configured ones.")
@click.option("--data", "sets", multiple=True, metavar="NAME", help="Only this data set; repeat.")
@click.option(
    "--method", "methods", multiple=True, metavar="NAME", help="Only this method; repeat."
)
@click.option("--quick", is_flag=True, help="A smoke test: to see that it works, not how well.")
@click.option("--reuse", is_flag=True, help="Keep results of an earlier state of the code.")
@click.option(
    "--freeze", is_flag=True, help="Only write the splits' hashes beside the configuration."
)
@progress_option
def benchmark(names: Sequence[str], out: Path, **options: Any) -> None:
    r"""Run benchmarks by NAME: those of the package, "all" of them, or a .toml file.

    Without a name it lists them. Jobs that are done already are not run again, so that a run
    that was broken off goes on where it was. A job that fails is written down; the others go on.

    Example:
      pyro-fcr benchmark held-out-combination --data kang --seeds 11 --out runs/benchmark

    Writes to FOLDER/NAME:
      rows.csv        a row per result;  jobs.csv: a row per job, with its cost and its error
      table.md        means over seeds, comparisons, cost, and what failed
      figure.png      the same as a picture
      jobs/           a file per job
    """
    if not names:
        for name in available():
            click.echo(f"{name:22s} {read_config(name).title}")
        return
    command = shlex.join(["pyro-fcr", *sys.argv[1:]])
    failed = 0
    seeds = whole_numbers("--seeds", options["seeds"]) if options["seeds"] else ()
    for name in available() if "all" in names else names:
        config = read_config(name).only(
            seeds=seeds, data=options["sets"], methods=options["methods"]
        )
        if options["freeze"]:
            click.echo(freeze(config, _tell))
            continue
        config = config.quick() if options["quick"] else config
        folder = out / config.name
        ready_folder(folder)
        try:
            outcome = run_benchmark(
                config,
                folder,
                processes=options["jobs"],
                reuse=options["reuse"],
                command=command,
                tell=(lambda line: None) if options["quiet"] else _tell,
            )
        except KeyboardInterrupt:
            fail("interrupted; the jobs that had ended are kept.", code=130)
        for path in write_tables(config, outcome, folder):
            click.echo(path)
        failed += len(outcome.failed)
    if failed:
        fail(f"{failed} jobs failed; table.md says why.", code=1)


def _tell(line: str) -> None:
    click.echo(line, err=True)


def _short_table(table: pd.DataFrame) -> str:
    width = shutil.get_terminal_size((100, 24)).columns
    return table.round(3).to_string(line_width=max(width, 60))
