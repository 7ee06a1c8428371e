"""The command ``pyro-fcr``, to which the others belong.

Progress and tables go to stderr, the paths of results to stdout, so that
``pyro-fcr latents runs/a data.h5ad --out z.h5ad | xargs ...`` works. A mistake of the user's is
one line on stderr and exit code 2. Every file is written beside its place and moved there whole.
"""

from __future__ import annotations

import click

from pyro_fcr._version import __version__
from pyro_fcr.cli.group import Polite

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
