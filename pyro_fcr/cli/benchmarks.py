"""Benchmarks from the command line."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyro_fcr.benchmark import available, freeze, read_config
from pyro_fcr.benchmark import run as run_benchmark
from pyro_fcr.benchmark import write as write_tables
from pyro_fcr.cli.files import ready_folder
from pyro_fcr.cli.group import fail
from pyro_fcr.cli.options import PATH, progress_option, whole_numbers
from pyro_fcr.cli.root import main

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["benchmark"]


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
