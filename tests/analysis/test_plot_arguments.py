"""What pictures say to input that they cannot draw: one line, by the argument's name."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from gallery import AGREEMENT, BY_BLOCK, CHECKS, RANKS, USE, labels, points, probes, table
from gallery import curves as dose_curves
from gallery import evaluation as judged
from matplotlib.backends.backend_agg import FigureCanvasAgg

from pyro_fcr import errors
from pyro_fcr.analysis import plots

EMPTY = pd.DataFrame({"other": [1.0]})

REFUSED = {
    "latents, save=True": (lambda: plots.latents(points(), save=True), r"save=.*got True"),
    "latents, no ending": (lambda: plots.latents(points(), save="umap"), r"save=.*\.png"),
    "latents, another ending": (lambda: plots.latents(points(), save="a.docx"), r"a\.docx"),
    "latents, basis": (lambda: plots.latents(points(), basis="tsne"), r"basis=.*'pca'.*'umap'"),
    "latents, cmap": (lambda: plots.latents(points(), np.arange(300), cmap="no"), "cmap="),
    "overview, unknown column": (
        lambda: plots.overview(BY_BLOCK, labels(), color=["condition", "celltype"]),
        r"overview\(color=\).*condition, cell_type, got celltype; did you mean cell_type",
    ),
    "overview, one block": (
        lambda: plots.overview(points(), labels(), color="condition"), "block's latents by name",
    ),
    "overview, other cells": (
        lambda: plots.overview(BY_BLOCK, labels(10), color="condition"), "300 cells",
    ),
    "overview, no obs": (lambda: plots.overview(BY_BLOCK, None, color="condition"), "obs="),
    "intervals, one table": (lambda: plots.intervals(table(), ["ISG15"]), "by name"),
    "intervals, unknown gene": (
        lambda: plots.intervals({"T": table()}, ["ISG15", "IFIT9"]),
        r"intervals\(genes=\).*'T'.*IFIT9",
    ),
    "intervals, another table": (lambda: plots.intervals({"T": EMPTY}, []), "lfc"),
    "dose_response, unknown gene": (
        lambda: plots.dose_response(dose_curves(), ["ISG15", "IFIT9"]),
        r"dose_response\(genes=\).*IFIT9",
    ),
    "dose_response, another table": (lambda: plots.dose_response(EMPTY), "covariate"),
    "rank_histogram, nothing": (lambda: plots.rank_histogram(None, draws=9), "ranks=.*by name"),
    "rank_histogram, no block": (lambda: plots.rank_histogram({}, draws=9), "at least one"),
    "rank_histogram, ranks beyond": (
        lambda: plots.rank_histogram(RANKS, draws=9), "ranks from 0 to 9",
    ),
    "coverage, nothing": (lambda: plots.coverage(None), "positions=.*by name"),
    "coverage, ranks for positions": (lambda: plots.coverage(RANKS), "from 0 to 1"),
    "leakage_matrix, nothing": (lambda: plots.leakage_matrix(None), "shares=.*by name"),
    "leakage_matrix, another": (lambda: plots.leakage_matrix({"loss": 1.0}), r"leakage\.A\.B"),
    "leakage, nothing": (lambda: plots.leakage(None), r"leakage\(table=\)"),
    "leakage, another table": (lambda: plots.leakage(EMPTY), "block, question"),
    "interaction, nothing": (lambda: plots.interaction(None), r"interaction\(table=\)"),
    "interaction, words": (lambda: plots.interaction(probes()), "numbers"),
    "masks, words": (lambda: plots.masks(probes()), "numbers"),
    "history, nothing": (lambda: plots.history(None), r"history\(table=\)"),
    "history, another table": (lambda: plots.history(pd.DataFrame()), "fit"),
    "block_use, another table": (lambda: plots.block_use(CHECKS), "information"),
    "predictive_checks, another": (lambda: plots.predictive_checks(USE), "observed"),
    "stability, another table": (lambda: plots.stability(USE), "mcc"),
    "importance, another": (lambda: plots.importance(AGREEMENT), r"fcr\.importance"),
    "evaluation, another table": (lambda: plots.evaluation(EMPTY), "pearson_change_top100"),
    "evaluation, unknown metric": (
        lambda: plots.evaluation(judged(), metrics=["r2", "r3"]), r"evaluation\(metrics=\).*r3",
    ),
    "counterfactual, lengths": (
        lambda: plots.counterfactual(np.zeros(3), np.zeros(4)), "as many genes",
    ),
    "counterfactual, genes": (
        lambda: plots.counterfactual(np.zeros(3), np.zeros(3), genes=["A"]), "genes=",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_drawn_is_refused_in_one_line(name) -> None:
    draw, match = REFUSED[name]
    with pytest.raises(errors.ArgumentError, match=match) as caught:
        draw()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_save_makes_the_folder_and_keeps_the_former_picture_on_failure(
    tmp_path, monkeypatch
) -> None:
    path = tmp_path / "figures" / "z_x.png"
    plots.latents(points(), save=str(path))
    former = path.read_bytes()
    assert mpl.image.imread(path).std() > 0.02

    def fails(self, place, **_):
        place.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mpl.figure.Figure, "savefig", fails)
    with pytest.raises(errors.WriteError, match=r"z_x\.png"):
        plots.latents(points(), save=path)
    assert path.read_bytes() == former


def test_a_colour_by_name_is_that_of_the_label_and_nobody_elses() -> None:
    ax = plots.latents(points(), labels()["cell_type"], palette={"B cells": "red"})
    drawn = {mpl.colors.to_hex(c) for c in ax.collections[0].get_facecolors()}
    assert drawn == {"#ff0000", plots.style.GREY}


@pytest.mark.parametrize("colour", ["black", "#F0E442"])
def test_names_on_the_data_stand_on_light_ground_whatever_the_dots(colour) -> None:
    packed = pd.DataFrame(np.stack(np.meshgrid(*[np.linspace(0, 1, 60)] * 2), -1).reshape(-1, 2))
    ax = plots.latents(packed, ["B cells"] * 3600, legend_loc="on data", palette=[colour], size=60)
    figure, (word,) = ax.figure, ax.texts
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())[..., :3].mean(-1) / 255
    box = word.get_window_extent()
    x = np.arange(int(box.x0), int(box.x1))
    around = [image[len(image) - 1 - int(y), x] for y in (box.y0 - 1, box.y1 + 1)]
    assert np.min(around) > 0.7
