"""The picture of the README: the bundled Kang data, 2,000 genes, default settings.

    python benchmarks/figures.py                      # writes docs/images/kang_factors.png

All cells train: the picture shows what the blocks hold, it tests nothing.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import pyro_fcr as pf
from pyro_fcr.analysis import plots
from pyro_fcr.errors import DesignWarning

if TYPE_CHECKING:
    import pandas as pd

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def factors(latents: dict[str, pd.DataFrame], obs: pd.DataFrame) -> Figure:
    """Draw the blocks side by side, coloured by condition above and by cell type below."""
    with plots.house_style():
        figure = Figure(figsize=(8.6, 4.8), layout="constrained")
        grid = figure.subplots(2, len(latents) + 1, width_ratios=[1.0] * len(latents) + [0.55])
        plots.overview(latents, obs, color=["condition", "cell_type"], axes=grid[:, :-1].T)
        for ax, column in zip(grid[:, -1], ("condition", "cell_type"), strict=True):
            ax.set_axis_off()
            # The palette goes over the labels in sorted order, as in the panels.
            labels = sorted(set(obs[column].astype(str)))
            dots = [
                Line2D([], [], ls="", marker="o", color=colour, label=label)
                for label, colour in zip(labels, plots.PALETTE, strict=False)
            ]
            ax.legend(handles=dots, title=column, loc="center left", alignment="left")
    return figure


def main() -> None:
    """Fit, draw, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder; default docs/images")
    given = parser.parse_args()
    adata = pf.top_genes(pf.datasets.kang(), 2000)
    schema = pf.Schema(treatment="condition", control="ctrl", covariates="cell_type")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DesignWarning)
        model = pf.FCR(adata, schema)
    model.fit(seed=given.seed, device="cpu", progress=False)
    figure = factors(model.latents(), adata.obs)
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "kang_factors.png"
    figure.savefig(path, dpi=150)
    print(path)


if __name__ == "__main__":
    main()
