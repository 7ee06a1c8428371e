"""Every picture as the eye meets it: approved by hand, readable in a column, without overlap."""

from __future__ import annotations

import json
import sys
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pytest
from gallery import BY_BLOCK, PICTURES, figure_of, inclusion, labels, points
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from pyro_fcr.analysis import plots

APPROVED = Path(__file__).with_name("gallery.json")
"""Hashes of pictures that somebody has looked at; see :func:`test_pictures_are_those_approved`."""

SIDE = 16
FAR = 24
"""Bits of 3 · 16 · 15 by which fonts and releases of matplotlib may move a picture."""

COLUMN = 88 / 25.4
"""Width of a journal's column in inches."""


def pixels(figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(60)
    with plots.house_style():
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(float) / 255


def difference_hash(image: np.ndarray) -> np.ndarray:
    """Return, for each channel, where blocks of the picture are brighter than their neighbours."""
    rows = np.linspace(0, image.shape[0], SIDE + 1).astype(int)
    columns = np.linspace(0, image.shape[1], SIDE + 1).astype(int)
    blocks = np.add.reduceat(np.add.reduceat(image, rows[:-1], axis=0), columns[:-1], axis=1)
    area = np.diff(rows)[:, None, None] * np.diff(columns)[None, :, None]
    means = blocks / area
    # Blocks of bare paper are alike whatever their last digit.
    return (np.diff(means, axis=1) > 0.01).ravel()


def distance(a: np.ndarray, b: np.ndarray) -> int:
    return int((a != b).sum())


def as_text(bits: np.ndarray) -> str:
    return np.packbits(bits).tobytes().hex()


def approved(name: str) -> np.ndarray:
    stored = bytes.fromhex(json.loads(APPROVED.read_text())[name])
    return np.unpackbits(np.frombuffer(stored, np.uint8))[: 3 * SIDE * (SIDE - 1)].astype(bool)


def test_every_picture_is_in_the_gallery() -> None:
    drawn = {name for name in plots.__all__ if name.islower()}
    drawn -= {"house_style", "plain", "principal_axes"}
    assert drawn <= set(PICTURES)
    assert set(json.loads(APPROVED.read_text())) == set(PICTURES)


@pytest.mark.skipif(
    tuple(map(int, mpl.__version__.split(".")[:2])) < (3, 10),
    reason="pictures are approved as matplotlib 3.10 and later lay them out",
)
@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_those_approved(name) -> None:
    """One that has changed is looked at first: ``python tests/analysis/gallery_look.py``."""
    found = difference_hash(pixels(figure_of(PICTURES[name]())))
    assert distance(found, approved(name)) <= FAR


def spoilt(name: str) -> dict[str, np.ndarray]:
    """Return the picture after accidents that a careless change could bring about."""

    def fresh():
        drawn = PICTURES[name]()
        return figure_of(drawn), np.ravel(np.asarray(drawn, dtype=object))[0]

    made = {}
    figure, ax = fresh()
    ax.set_visible(False)
    made["a panel is empty"] = pixels(figure)
    figure, _ = fresh()
    for ax in figure.axes:
        for drawn in (*ax.lines, *ax.collections, *ax.patches, *ax.images):
            drawn.set_visible(False)
    made["nothing is drawn"] = pixels(figure)
    figure, ax = fresh()
    figure.set_layout_engine("none")
    ax.set_position([0.5, 0.5, 0.2, 0.2])
    made["a panel has shrunk"] = pixels(figure)
    return made


@pytest.mark.parametrize("name", PICTURES)
def test_a_spoilt_picture_is_noticed(name) -> None:
    for accident, image in spoilt(name).items():
        assert distance(difference_hash(image), approved(name)) > FAR, accident


def test_other_colours_and_other_data_are_noticed() -> None:
    swapped = plots.latents(points(), labels()["cell_type"], title="z_x", palette=["k", "r", "y"])
    assert distance(difference_hash(pixels(swapped.figure)), approved("latents")) > FAR
    masks = plots.masks(inclusion().iloc[::-1])
    assert distance(difference_hash(pixels(masks.figure)), approved("masks")) > FAR
    turned = plots.overview(BY_BLOCK, labels(), color=["cell_type", "condition"])
    assert distance(difference_hash(pixels(figure_of(turned))), approved("overview")) > FAR


def words(figure) -> list[tuple[str, float, object]]:
    """Return every text that is seen: its words, size in points and place in pixels."""
    figure.set_dpi(100)
    canvas = FigureCanvasAgg(figure)
    with plots.house_style():
        canvas.draw()
    renderer, found, hidden = canvas.get_renderer(), [], set()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = (*axis.get_major_ticks(), *axis.get_minor_ticks())
            # Ticks beyond the limits are there, and not drawn.
            beyond = [t for t in ticks if not low <= t.get_loc() <= high]
            hidden |= {id(label) for t in beyond for label in (t.label1, t.label2)}
            if not (ax.axison and ax.get_visible()):
                hidden |= {id(t) for t in axis.findobj(Text)}
    for text in figure.findobj(Text):
        if text.get_text().strip() and text.get_visible() and id(text) not in hidden:
            box = text.get_window_extent(renderer)
            if box.width > 0:
                found.append((text.get_text(), text.get_fontsize(), box))
    return found


@pytest.mark.parametrize("name", PICTURES)
def test_words_can_be_read_in_a_column(name) -> None:
    figure = figure_of(PICTURES[name]())
    shrunk = COLUMN / figure.get_figwidth()
    smallest = min(size for _, size, _ in words(figure))
    # Nature asks for five points at least.
    assert smallest * shrunk >= 5


@pytest.mark.parametrize("name", PICTURES)
def test_no_words_lie_on_others_or_over_the_edge(name) -> None:
    figure = figure_of(PICTURES[name]())
    found = words(figure)
    page = figure.bbox
    for text, _, box in found:
        assert box.x0 >= page.x0 - 1, text
        assert box.x1 <= page.x1 + 1, text
        assert box.y0 >= page.y0 - 1, text
        assert box.y1 <= page.y1 + 1, text
    for (a, _, one), (b, _, two) in combinations(found, 2):
        across = min(one.x1, two.x1) - max(one.x0, two.x0)
        down = min(one.y1, two.y1) - max(one.y0, two.y0)
        # Boxes hold the room of letters that a text lacks: a sliver is no overlap.
        assert not (across > 2 and down > 2), (a, b)


def test_an_overlap_would_be_noticed() -> None:
    figure = figure_of(PICTURES["latents"]())
    figure.axes[0].text(0.01, 0.99, "over the title", transform=figure.axes[0].transAxes)
    figure.axes[0].text(0.02, 0.99, "over the title", transform=figure.axes[0].transAxes)
    boxes = [box for text, _, box in words(figure) if text == "over the title"]
    assert len(boxes) == 2
    assert boxes[0].overlaps(boxes[1])


# ---- colours as the colour-blind see them ----------------------------------------------------

# Machado, Oliveira and Fernandes 2009 (doi 10.1109/TVCG.2009.113), severity 1, on linear RGB.
SIGHT = {
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                              [-0.011820, 0.042940, 0.968881]]),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                            [-0.003882, -0.048116, 1.051998]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                            [0.004733, 0.691367, 0.303900]]),
}  # fmt: skip
TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                   [0.0193339, 0.1191920, 0.9503041]])  # fmt: skip
WHITE = TO_XYZ.sum(1)


def lab(colour, sight: str | None = None) -> np.ndarray:
    """Return CIE L*a*b* of a colour, as somebody sees it."""
    rgb = np.asarray(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    if sight:
        linear = np.clip(SIGHT[sight] @ linear, 0, 1)
    t = TO_XYZ @ linear / WHITE
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def closest(colours, sight: str | None) -> float:
    """Return the smallest distance between two of the colours, 2.3 being just noticeable."""
    seen = [lab(colour, sight) for colour in colours]
    return min(float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2))


def test_the_eye_sees_what_it_should() -> None:
    np.testing.assert_allclose(lab("white"), [100, 0, 0], atol=0.01)
    np.testing.assert_allclose(lab("red"), [53.24, 80.09, 67.20], atol=0.05)
    # Matplotlib's red and green, which deuteranopes confuse, would not pass.
    assert closest(["#d62728", "#2ca02c"], None) > 80
    assert closest(mpl.colormaps["tab10"].colors[:8], "deuteranopia") < 10


@pytest.mark.parametrize("sight", [None, *SIGHT])
def test_colours_are_told_apart(sight) -> None:
    assert closest(plots.PALETTE[:8], sight) > 10
    assert closest(plots.PALETTE, sight) > 4


@pytest.mark.parametrize("sight", [None, *SIGHT])
def test_the_colour_map_brightens_all_the_way(sight) -> None:
    shades = [lab(mpl.colormaps["cividis"](v)[:3], sight)[0] for v in np.linspace(0, 1, 33)]
    assert (np.diff(shades) > 0).all()


# ---- scanpy's manners ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["latents", "overview", "history", "masks"])
def test_save_writes_the_figure(name, tmp_path) -> None:
    draw = {
        "latents": lambda **more: plots.latents(points(), **more),
        "overview": lambda **more: plots.overview(BY_BLOCK, labels(), color="condition", **more),
        "history": lambda **more: plots.history(__import__("gallery").history(), **more),
        "masks": lambda **more: plots.masks(inclusion(), **more),
    }[name]
    drawn = draw(save=tmp_path / "a.png")
    image, figure = mpl.image.imread(tmp_path / "a.png"), figure_of(drawn)
    assert image.shape[:2] == tuple(int(200 * v) for v in figure.get_size_inches()[::-1])
    assert image[..., :3].std() > 0.02
    draw(save=tmp_path / "a.pdf")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


def test_show_hands_the_figure_to_the_screen(monkeypatch) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    seen = []
    monkeypatch.setitem(sys.modules, "IPython", None)
    monkeypatch.setattr(pyplot, "show", lambda: seen.append(pyplot.gcf()))
    ax = plots.latents(points(), show=True)
    assert seen == [ax.figure]
    assert pyplot.get_fignums() == []


def test_show_displays_in_a_notebook(monkeypatch) -> None:
    class Notebook:
        seen: list = []

        @staticmethod
        def get_ipython() -> object:
            return object()

    Notebook.display = type("display", (), {"display": staticmethod(Notebook.seen.append)})
    monkeypatch.setitem(sys.modules, "IPython", Notebook)
    ax = plots.latents(points(), show=True)
    assert Notebook.seen == [ax.figure]


def test_palettes_by_name_and_by_order() -> None:
    kinds = labels()["cell_type"].astype("category")
    kinds = kinds.cat.reorder_categories(["CD4 T cells", "B cells", "CD14+ Monocytes"])
    ax = plots.latents(points(), kinds, palette=["#111111", "#222222", "#333333"])
    legend = ax.get_legend()
    found = {t.get_text(): h.get_color() for t, h in
             zip(legend.get_texts(), legend.legend_handles, strict=True)}  # fmt: skip
    assert found == {
        "CD4 T cells": "#111111", "B cells": "#222222", "CD14+ Monocytes": "#333333"
    }  # fmt: skip
    ax = plots.latents(points(), kinds, palette={"B cells": "#123456"})
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["B cells", "2 others"]


def test_names_stand_on_their_cells() -> None:
    ax = plots.latents(points(), labels()["cell_type"], legend_loc="on data")
    assert ax.get_legend() is None
    xy = plots.principal_axes(points())
    where = {t.get_text(): t.get_position() for t in ax.texts}
    rows = (labels()["cell_type"] == "B cells").to_numpy()
    np.testing.assert_allclose(where["B cells"], np.median(xy[rows], axis=0))
