"""The command line: the library's verbs, in the library's words.

Progress and tables go to stderr, the paths of results to stdout, so that
``pyro-fcr latents runs/a data.h5ad --out z.h5ad | xargs ...`` works. A mistake of the user's is
one line on stderr and exit code 2. Every file is written beside its place and moved there whole.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import platform
import shlex
import shutil
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import anndata
import click
import pandas as pd
import torch

import pyro_fcr as pf
from pyro_fcr._version import __version__
from pyro_fcr.analysis.report import write_report
from pyro_fcr.benchmark import available, freeze, read_config
from pyro_fcr.benchmark import run as run_benchmark
from pyro_fcr.benchmark import write as write_tables
from pyro_fcr.data import open_data
from pyro_fcr.datasets.bundled import SHA256
from pyro_fcr.errors import DesignError, DesignWarning, FCRError, LoadError, sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from anndata import AnnData

    from pyro_fcr import Split

__all__ = ["main"]

PATH = click.Path(path_type=Path)

DEMO_GENES = 2000
"""The most variable genes, which hold 80 % of the molecules: the demo ends within minutes."""


class _Taught(click.Command):
    """A command whose help is its docstring as it stands, examples and tables unwrapped."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the docstring's lines."""
        _write_as_is(self.help, formatter)


class _InterruptedError(Exception):
    """Ctrl-C."""


class _Polite(click.Group):
    """A group that answers a user's mistake with one line and exit code 2."""

    command_class = _Taught

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the docstring's lines."""
        _write_as_is(self.help, formatter)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an interrupt is kept from click, which would print a line of its own."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _InterruptedError from None

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run the command line; with ``standalone_mode`` the process exits."""
        run: Any = super().main
        if not standalone_mode:
            return run(*args, standalone_mode=False, **extra)
        try:
            with _one_line_warnings():
                code = run(*args, standalone_mode=False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(2)
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx else "pyro-fcr"
            _fail(f"{error.format_message()} See '{where} --help'.")
        except click.ClickException as error:
            _fail(error.format_message())
        except FCRError as error:
            _fail(str(error))
        except (_InterruptedError, click.Abort, KeyboardInterrupt):
            _fail("interrupted; nothing was written.", code=130)
        except BrokenPipeError:
            # Whoever read stdout has gone; keep the interpreter from writing to it at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except OSError as error:
            _fail(f"{error.strerror or error}: {error.filename or 'file'}")
        sys.exit(code if isinstance(code, int) else 0)


def _write_as_is(text: str | None, formatter: click.HelpFormatter) -> None:
    formatter.write_paragraph()
    with formatter.indentation():
        for line in inspect.cleandoc(text or "").splitlines():
            formatter.write(f"{'':>{formatter.current_indent if line else 0}}{line}\n")


def _fail(message: str, *, code: int = 2) -> NoReturn:
    click.echo("pyro-fcr: " + " ".join(message.split()), err=True)
    sys.exit(code)


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        click.echo("pyro-fcr: warning: " + " ".join(str(message).split()), err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", DesignWarning)
        warnings.showwarning = show
        yield


def _options(*decorators: Callable[..., Any]) -> Callable[..., Any]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


_split_options = _options(
    click.option("--split", metavar="random|COLUMN", help="How to hold out test cells: at random "
                 "within conditions, or a column of obs with train, valid and test."),
    click.option("--hold-out", "held_out", multiple=True, metavar="COLUMN=VALUE", help="Hold out "
                 "the cells that match; several columns must all match, values of one column "
                 "add up. A tenth of the other cells validates."),
)  # fmt: skip
_seed = click.option("--seed", default=0, show_default=True, help="Governs everything random.")
_device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps.")
_draws = click.option("--draws", type=click.IntRange(1), default=50, show_default=True,
                      help="Posterior draws per cell.")  # fmt: skip
_progress = click.option("--quiet", is_flag=True, help="No progress on stderr.")


@click.group(
    cls=_Polite, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
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
      pyro-fcr evaluate runs/a data.h5ad --out table.csv
      pyro-fcr report runs/a data.h5ad --out report.html
      pyro-fcr benchmark recovery --out runs/benchmark

    Progress goes to stderr and the paths of results to stdout. A mistake in what was asked is one
    line and exit code 2.
    """


# ---- commands --------------------------------------------------------------------------------


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
@_split_options
@click.option(
    "--max-epochs",
    type=click.IntRange(1),
    help="Passes over the training cells.  [default: by the data's size]",
)
@click.option("--batch-size", type=click.IntRange(2), default=512, show_default=True)
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
@_seed
@_device
@_progress
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
    _ready_folder(out)
    schema = pf.Schema(
        covariates=[name for given in options["covariates"] for name in given.split(",") if name],
        **{k: options[k] for k in ("treatment", "control", "counts", "dose", "batch")},
        size_factor=options["size_factor"],
    )
    on_disk = options["stream"] or data.is_dir()
    if on_disk and options["top_genes"] is not None:
        raise DesignError(
            sentence("genes cannot be left out of counts on disk", where="--top-genes",
                     expected="a file that is read into memory", got=str(data),
                     hint="write the file with fewer genes, or leave --stream out")
        )  # fmt: skip
    adata: Any = open_data(data) if on_disk else _read(data)
    split = _split(adata, options, [schema.treatment, *schema.covariates])
    if options["top_genes"] is not None:
        adata = pf.top_genes(adata, options["top_genes"], split=split, layer=schema.counts)
    sizes = {k: options[k] for k in ("z_x", "z_t", "z_tx") if options[k] is not None}
    model = pf.FCR(adata, schema, sizes=sizes, likelihood=options["likelihood"])
    first = os.environ.get("RANK", "0") == "0"
    model.fit(
        split=split,
        progress=not options["quiet"],
        checkpoint=out / "checkpoint.safetensors" if options["resume"] else None,
        resume=options["resume"],
        **{k: options[k] for k in ("max_epochs", "batch_size", "seed", "early_stopping")},
        device=_known_device(options["device"]),
    )
    if first:
        _save_run(out, model, adata, split, data=data, seconds=time.perf_counter() - start)
        click.echo(out)


@main.command()
@click.argument("run", type=PATH)
@click.argument("data", type=PATH)
@click.option("--out", type=PATH, required=True, metavar="FILE.h5ad")
@_device
def latents(run: Path, data: Path, out: Path, device: str) -> None:
    """Write the latents of the cells of DATA under the model of RUN.

    Example:
      pyro-fcr latents runs/a data.h5ad --out latents.h5ad

    Writes an .h5ad file without counts: the cells' obs, and per block
      obsm["X_fcr_z_x"], obsm["X_fcr_z_t"], obsm["X_fcr_z_tx"]   posterior means
    """
    _ready_file(out)
    model, adata = _load(run, device), _read(data)
    click.echo(_write_h5ad(_latents(model, adata), out))


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
@_draws
@_seed
@_device
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
    _ready_file(out)
    model, adata = _load(run, device), _read(data)
    wanted = {name: values[-1] for name, values in _pairs("--do", do, single=True).items()}
    if where:
        adata = _matching(adata, _pairs("--where", where))
    found = model.counterfactual(adata, do=wanted, draws=draws, seed=seed)
    click.echo(_write_h5ad(found, out))


@main.command()
@click.argument("run", type=PATH)
@click.argument("data", type=PATH)
@_split_options
@click.option("--by-condition", is_flag=True, help="One row per method and condition.")
@click.option("--draws", type=click.IntRange(1), default=20, show_default=True)
@_seed
@_device
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
    _ready_file(out)
    model, adata = _load(run, options["device"]), _read(data)
    schema = model.design.schema
    split = _split(adata, options, [schema.treatment, *schema.covariates]) or _read_split(run)
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
    _write_text(out, table.to_csv())
    click.echo(_short_table(table), err=True)
    click.echo(out)


@main.command()
@click.argument("run", type=PATH)
@click.argument("data", type=PATH, required=False)
@click.option("--out", type=PATH, metavar="PAGE.html", help="[default: RUN/report.html]")
@_seed
@_device
def report(run: Path, data: Path | None, out: Path | None, seed: int, device: str) -> None:
    """Write one page with pictures on RUN; with DATA, on its cells too.

    Example:
      pyro-fcr report runs/a data.h5ad --out report.html

    Writes one self-contained HTML file, good offline, on a phone and in print. Without DATA it
    holds the run, its design and its training curves alone.
    """
    out = out or run / "report.html"
    model = _load(run, device)
    _ready_file(out)
    adata = None if data is None else _read(data)
    told = _told_of(run)
    click.echo(write_report(model, out, adata, _read_split(run), run=told, seed=seed))


@main.command()
@click.option("--out", type=PATH, default=Path("runs/demo"), show_default=True, metavar="FOLDER")
@click.option("--quick", is_flag=True, help="A few epochs: to see that it works, not how well.")
@_seed
@_device
@_progress
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
    _ready_folder(out)
    adata = pf.datasets.kang()
    schema = pf.Schema(treatment="condition", control="ctrl", covariates=["cell_type"])
    split = pf.splits.hold_out(adata, {"cell_type": ["B cells"], "condition": ["stim"]}, seed=seed)
    adata = pf.top_genes(adata, DEMO_GENES, split=split)
    model = pf.FCR(adata, schema)
    model.fit(
        split=split,
        max_epochs=10 if quick else None,
        seed=seed,
        device=_known_device(device),
        progress=not quiet,
    )
    fitted = time.perf_counter()
    click.echo(f"fitted in {fitted - start:.0f} s; predicting, judging, drawing", err=True)
    control = adata[(adata.obs["condition"] == "ctrl").to_numpy()]
    _write_h5ad(_latents(model, adata), out / "latents.h5ad")
    treated = model.counterfactual(control, do={"treatment": "stim"}, draws=20, seed=seed)
    _write_h5ad(treated, out / "counterfactuals.h5ad")
    table = model.evaluate(adata, split, by_condition=True, seed=seed)
    _write_text(out / "evaluation.csv", table.groupby("method", sort=False).mean().to_csv())
    _save_run(out, model, adata, split, data=None, seconds=time.perf_counter() - start)
    write_report(
        model, out / "report.html", adata, split, run=_told_of(out), evaluation=table, seed=seed
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
@_progress
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
    seeds = _whole_numbers("--seeds", options["seeds"]) if options["seeds"] else ()
    for name in available() if "all" in names else names:
        config = read_config(name).only(
            seeds=seeds, data=options["sets"], methods=options["methods"]
        )
        if options["freeze"]:
            click.echo(freeze(config, _tell))
            continue
        config = config.quick() if options["quick"] else config
        folder = out / config.name
        _ready_folder(folder)
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
            _fail("interrupted; the jobs that had ended are kept.", code=130)
        for path in write_tables(config, outcome, folder):
            click.echo(path)
        failed += len(outcome.failed)
    if failed:
        _fail(f"{failed} jobs failed; table.md says why.", code=1)


def _tell(line: str) -> None:
    click.echo(line, err=True)


def _whole_numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise DesignError(
            sentence("cannot be read", where=option, expected="whole numbers, with commas between",
                     got=repr(text), hint=f"for example {option} 11,12")
        ) from None  # fmt: skip


# ---- reading ---------------------------------------------------------------------------------


def _read(path: Path) -> AnnData:
    if not path.is_file():
        raise LoadError(
            sentence("no such data file", where="DATA", expected="an .h5ad file", got=str(path),
                     hint="check the path")
        )  # fmt: skip
    try:
        return anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise LoadError(
            sentence(
                "the data file cannot be read",
                where=str(path),
                expected="an .h5ad file that anndata can read",
                got=f"{type(error).__name__}: {error}"[:160],
                hint="write it again with adata.write_h5ad",
            )
        ) from error


def _load(run: Path, device: str) -> Any:
    return pf.load(run, device=_known_device(device))


def _known_device(name: str) -> str:
    try:
        kind = "cpu" if name == "auto" else torch.device(name).type
    except RuntimeError:
        kind = ""
    there = {"cpu": True, "cuda": torch.cuda.is_available(),
             "mps": torch.backends.mps.is_available()}  # fmt: skip
    if not there.get(kind, False):
        raise DesignError(
            sentence(
                "no such device here",
                where="--device",
                expected=f"auto or one of {[k for k, found in there.items() if found]}",
                got=repr(name),
                hint="use --device auto",
            )
        )
    return name


def _pairs(option: str, given: Sequence[str], *, single: bool = False) -> dict[str, list[str]]:
    """Return NAME=VALUE options as lists of values by name."""
    found: dict[str, list[str]] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name or not value or (single and name in found):
            raise DesignError(
                sentence(
                    "cannot be read" if name not in found else f"{name!r} is set twice",
                    where=option,
                    expected="NAME=VALUE" + (", each name once" if single else ""),
                    got=repr(text),
                    hint=f"for example {option} treatment=SGK1",
                )
            )
        found.setdefault(name, []).append(value)
    return found


def _split(
    adata: AnnData, options: Mapping[str, Any], conditions: Sequence[str | None]
) -> Split | None:
    named, held_out = options["split"], _pairs("--hold-out", options["held_out"])
    if named is not None and held_out:
        raise DesignError(
            sentence("two splits were asked for", where="--split, --hold-out", expected="one",
                     got="both", hint="leave one out")
        )  # fmt: skip
    if held_out:
        return pf.splits.hold_out(adata, held_out, seed=options["seed"])
    if named == "random":
        columns = [name for name in conditions if name is not None]
        return pf.splits.random(adata, stratify=columns, seed=options["seed"])
    return None if named is None else pf.splits.column(adata, named)


def _matching(adata: AnnData, wanted: Mapping[str, Sequence[str]]) -> AnnData:
    # A split refuses unknown columns and values by name, and says which cells match.
    return adata[pf.splits.hold_out(adata, wanted, valid=0).mask(adata, "test")]


def _read_split(run: Path) -> Split | None:
    path = run / "split.csv"
    if not path.is_file():
        return None
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        names, parts = table["cell"].tolist(), table["part"].tolist()
    except (ValueError, KeyError) as error:
        raise LoadError(
            sentence(
                "the run's split cannot be read",
                where=str(path),
                expected="columns cell and part",
                got=f"{type(error).__name__}: {error}"[:120],
                hint="fit again, or give a split",
            )
        ) from error
    if "test" not in parts:
        return None
    recipe = str((_read_run(run).get("split") or {}).get("recipe", ""))
    return pf.Split(tuple(names), tuple(parts), recipe)


def _read_run(run: Path) -> dict[str, Any]:
    try:
        found = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _told_of(run: Path) -> dict[str, str]:
    """Return what the page says of a run beside what the model knows."""
    found = _read_run(run)
    told = {"Command": found.get("command"), "Started": found.get("started")}
    if isinstance(found.get("versions"), dict):
        told["Versions"] = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    data = found.get("data")
    if isinstance(data, dict):
        told["Data"] = (
            f"{data.get('path')}: {data.get('cells')} cells, {data.get('genes')} genes, "
            f"sha256 {str(data.get('sha256'))[:12]}"
        )
    return {name: str(value) for name, value in told.items() if value}


# ---- writing ---------------------------------------------------------------------------------


def _ready_folder(folder: Path) -> None:
    """Find out before the work that the results will have a place."""
    if folder.exists() and not folder.is_dir():
        raise DesignError(
            sentence("the run's place is taken", where="--out", expected="a folder", got=f"a file "
                     f"called {folder}", hint="choose another name")
        )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(13, "cannot write to the folder", str(folder))


def _ready_file(path: Path) -> None:
    if path.is_dir():
        raise DesignError(
            sentence("the result's place is taken", where="--out", expected="a file", got=f"the "
                     f"folder {path}", hint="give a file's name in it")
        )  # fmt: skip
    _ready_folder(path.parent)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Give a name to write to, and move the file into place when it is whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _write_text(path: Path, text: str) -> Path:
    with _whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def _write_h5ad(adata: AnnData, path: Path) -> Path:
    with _whole(path) as partial:
        adata.write_h5ad(partial)
    return path


def _latents(model: Any, adata: AnnData) -> AnnData:
    out = anndata.AnnData(obs=adata.obs.copy())
    key = type(model).__name__.lower()
    for name, frame in model.latents(adata).items():
        out.obsm[f"X_{key}_{name}"] = frame.to_numpy()
    return out


def _save_run(
    out: Path,
    model: Any,
    adata: AnnData,
    split: Split | None,
    *,
    data: Path | None,
    seconds: float,
) -> None:
    """Write the model, its split and its record; ``model.json`` last, which makes it a run."""
    names = [str(name) for name in adata.obs_names]
    parts = dict(zip(split.names, split.parts, strict=True)) if split is not None else {}
    table = pd.DataFrame({"cell": names, "part": [parts.get(name, "train") for name in names]})
    record = {
        "command": shlex.join(["pyro-fcr", *sys.argv[1:]]),
        "started": datetime.fromtimestamp(time.time() - seconds, UTC).isoformat("T", "seconds"),
        "seconds": round(seconds, 2),
        "versions": _versions(),
        "data": {
            "path": "pyro_fcr.datasets.kang()" if data is None else str(data.resolve()),
            "sha256": _data_hash(data) if data is None or data.is_file() else None,
            "cells": adata.n_obs,
            "genes": adata.n_vars,
        },
        "split": None if split is None else {
            "recipe": split.recipe, "hash": split.hash, "cells": split.counts()
        },
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=out) as folder:
        whole = Path(folder)
        model.save(whole)
        table.to_csv(whole / "split.csv", index=False)
        text = json.dumps(record, indent=1, ensure_ascii=False)
        (whole / "run.json").write_text(text, encoding="utf-8")
        for path in sorted(whole.iterdir(), key=lambda path: path.name == "model.json"):
            os.replace(path, out / path.name)


def _data_hash(data: Path | None) -> str:
    if data is None:
        return SHA256["kang_ifnb"]
    with data.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "pyro-fcr": __version__}
    for name in ("pyro-ppl", "torch", "anndata", "numpy", "scipy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def _short_table(table: pd.DataFrame) -> str:
    width = shutil.get_terminal_size((100, 24)).columns
    return table.round(3).to_string(line_width=max(width, 60))
