from __future__ import annotations

import io
import sys

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_fcr import errors
from pyro_fcr.analysis import plots


def frame(n: int = 60, d: int = 3) -> pd.DataFrame:
    return pd.DataFrame(np.random.default_rng(0).normal(size=(n, d)))


def texts(ax: Axes) -> str:
    legend = ax.get_legend()
    parts = [t.get_text() for t in ax.texts] + [t.get_text() for t in ax.get_xticklabels()]
    parts += [t.get_text() for t in ax.get_yticklabels()]
    parts += [t.get_text() for t in legend.get_texts()] if legend else []
    return "\n".join(parts)


def test_principal_axes_find_the_long_direction() -> None:
    x = np.array([[-2.0, 0.1], [2.0, 0.1], [0.0, -0.1], [0.0, -0.1]])
    scores = plots.principal_axes(x)
    np.testing.assert_allclose(np.abs(scores[:2, 0]), 2.0, atol=1e-12)
    np.testing.assert_allclose(np.abs(scores[:, 1]), 0.1, atol=1e-12)


def test_principal_axes_do_not_depend_on_the_sign_convention() -> None:
    x = np.random.default_rng(1).normal(size=(20, 4))
    np.testing.assert_allclose(plots.principal_axes(x), plots.principal_axes(x[:, ::-1]))


def test_one_dimension_is_drawn_on_a_line() -> None:
    scores = plots.principal_axes(np.array([[0.0], [1.0], [2.0]]))
    assert scores.shape == (3, 2)
    np.testing.assert_array_equal(scores[:, 1], 0)


def test_latents_name_every_label() -> None:
    ax = plots.latents(frame(), np.array(["a", "b"] * 30), title="here")
    assert isinstance(ax, Axes)
    assert ax.get_title(loc="left") == "here"
    assert texts(ax).split() == ["a", "b"]


def test_latents_draw_on_the_axes_given() -> None:
    ax = Figure().subplots()
    assert plots.latents(frame(), ax=ax) is ax


def test_numbers_take_a_colour_map() -> None:
    ax = plots.latents(frame(), pd.Series(np.arange(60.0), name="dose"))
    assert ax.get_legend() is None
    assert [a.get_ylabel() for a in ax.figure.axes if a is not ax] == ["dose"]


def test_labels_beyond_the_palette_are_told_as_others() -> None:
    labels = np.array([f"type{i:02d}" for i in range(20)] * 3)
    assert "4 others" in texts(plots.latents(frame(), labels))


def test_overview_has_a_row_per_block_and_two_colourings() -> None:
    obs = pd.DataFrame(
        {"drug": ["a", "b"] * 30, "line": ["x"] * 60, "donor": ["1", "2", "3"] * 20}
    )
    axes = plots.overview({"z_x": frame(), "z_t": frame(d=1)}, obs, color=["drug", "donor"])
    assert axes.shape == (2, 2)
    assert axes[1, 1].get_title(loc="left").endswith("by donor")
    legends = [a.get_legend() for a in axes[0, 0].figure.axes if a.get_legend()]
    assert [t.get_text() for t in legends[1].get_texts()] == ["1", "2", "3"]


def test_history_groups_the_terms_and_dashes_the_held_out() -> None:
    table = pd.DataFrame(
        {
            "step": [1, 2], "loss": [2.0, 1.0], "valid.loss": [2.5, 1.5], "kl.z_x": [0.1, 9.0],
            "kl.z_t": [0.1, 0.2], "z_x_vs_t": [0.3, 0.2], "accuracy.z_x_vs_t": [0.6, 0.5],
            "gradient_norm": [40.0, 20.0], "gradient_norm.max": [90.0, 60.0],
        },
        index=pd.Index([1, 2], name="epoch"),
    )  # fmt: skip
    axes = plots.history(table)
    assert [ax.get_title(loc="left") for ax in axes] == [
        "loss", "divergence from prior", "independence and heads", "discriminator accuracy",
        "gradient norm",
    ]  # fmt: skip
    assert [len(ax.lines) for ax in axes] == [2, 2, 1, 2, 2]
    assert [line.get_linestyle() for line in axes[0].lines] == ["-", "--"]
    assert axes[1].get_yscale() == "log"
    assert axes[0].get_yscale() == "linear"


def test_leakage_colours_by_the_way_from_chance_to_perfect() -> None:
    table = pd.DataFrame(
        {"block": ["z_x", "z_t"], "question": "treatment", "score": [0.5, 1.0], "chance": 0.5}
    )
    ax = plots.leakage(table)
    np.testing.assert_allclose(ax.images[0].get_array(), [[0.0], [1.0]])
    assert "0.50\nchance 0.50" in texts(ax)


def test_interaction_marks_what_was_not_seen() -> None:
    table = pd.DataFrame([[1.0, np.nan]], index=["drug"], columns=["T cells", "B cells"])
    ax = plots.interaction(table, title="interaction")
    assert "T cells" in texts(ax)
    assert "1.0" in texts(ax)
    assert "–" in texts(ax)


def test_counterfactual_names_the_strongest_genes() -> None:
    observed = np.array([0.0, 1.0, 3.0])
    ax = plots.counterfactual(
        observed, observed, genes=["A", "$B$", "C"], highlight=[2, 1], quantity="change"
    )
    assert ax.get_xlabel() == "observed change"
    assert ax.get_ylabel() == "predicted change"
    assert ax.get_xlim() == ax.get_ylim()
    assert {"C", r"\$B\$"} <= set(texts(ax).splitlines())
    assert "top 2 DE genes" in texts(ax)


def test_evaluation_draws_a_reconstruction_hollow_and_says_what_is_missing() -> None:
    table = pd.DataFrame(
        {"r2": [0.9, 0.8, 0.95], "pearson_change": [0.5, np.nan, 0.6]},
        index=["FCR", "control mean", "reconstruction (reads the test cells)"],
    )
    axes = plots.evaluation(table)
    assert len(axes) == 2
    bars = axes[0].patches
    assert [bar.get_hatch() for bar in bars] == [None, None, "////"]
    assert "none" in texts(axes[0])
    assert "reconstruction" in texts(axes[0])


@pytest.mark.parametrize("draw", [lambda: plots.latents(frame()), lambda: plots.history(
    pd.DataFrame({"loss": [2.0, 1.0]}))])  # fmt: skip
def test_settings_are_restored_and_pyplot_is_left_alone(draw) -> None:
    before = dict(mpl.rcParams)
    figures = len(sys.modules["matplotlib.pyplot"].get_fignums()) if _pyplot() else 0
    draw()
    assert dict(mpl.rcParams) == before
    assert not _pyplot() or len(sys.modules["matplotlib.pyplot"].get_fignums()) == figures


def _pyplot() -> bool:
    return "matplotlib.pyplot" in sys.modules


def test_names_are_drawn_letter_by_letter() -> None:
    labels = np.array(["$a", "_b", "c$x$"] * 20)
    ax = plots.latents(frame(), labels)
    ax.figure.canvas.draw()
    assert len(ax.get_legend().get_texts()) == 3


def test_many_covariates_are_drawn_as_rows() -> None:
    table = pd.DataFrame([np.arange(30.0)], index=["drug"], columns=[f"c{i}" for i in range(30)])
    ax = plots.interaction(table)
    np.testing.assert_array_equal(ax.images[0].get_array(), np.arange(30.0)[:, None])
    assert [label.get_text() for label in ax.get_yticklabels()] == list(table.columns)


def test_intervals_stand_where_the_table_says() -> None:
    table = pd.DataFrame(
        {"lfc": [1.0, -2.0], "low": [0.5, -2.5], "high": [2.0, -1.0]}, index=["a", "_b$"]
    )
    other = table + 1
    ax = plots.intervals({"u": table, "v": other}, ["_b$", "a"], title="here")
    assert [t.get_text().strip("\u200a") for t in ax.get_yticklabels()] == ["_b\\$", "a"]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["u", "v"]
    first, second = ax.containers
    np.testing.assert_allclose(first.lines[0].get_xdata(), [-2.0, 1.0])
    np.testing.assert_allclose(second.lines[0].get_xdata(), [-1.0, 2.0])
    (bars,) = first.lines[2]
    np.testing.assert_allclose([s[:, 0] for s in bars.get_segments()], [[-2.5, -1.0], [0.5, 2.0]])
    assert ax.yaxis_inverted()


def curves() -> pd.DataFrame:
    rows = [
        {"covariate": x, "dose": d, "gene": g, "lfc": d * k, "low": d * k - 1, "high": d * k + 1}
        for x, k in (("u", 1.0), ("v", -1.0))
        for g in ("a", "_b$")
        for d in (10.0, 0.0, 0.1, 1.0)
    ]
    return pd.DataFrame(rows)


def test_dose_response_draws_a_panel_per_gene_and_a_band_per_group() -> None:
    first, second = plots.dose_response(curves(), measured=[0.1, 10.0])
    assert first.get_title(loc="left") == "a"
    assert second.get_title(loc="left").endswith("b\\$")
    zero, u, v, marks = first.lines
    np.testing.assert_allclose(u.get_xdata(), [0, 0.1, 1, 10])
    np.testing.assert_allclose(v.get_ydata(), [0, -0.1, -1, -10])
    assert u.get_linestyle() != v.get_linestyle()
    assert u.get_color() != v.get_color()
    np.testing.assert_allclose(marks.get_xdata(), [0.1, 10.0])
    band = first.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (-1, 11)
    assert first.get_xscale() == "symlog"
    assert len(plots.dose_response(curves(), ["a"])) == 1


def test_leakage_matrix_reads_rows_and_tells_columns() -> None:
    history = {"loss": 3.0, "leakage.z_x.z_t": 0.25, "leakage.z_t.z_x": -0.01}
    ax = plots.leakage_matrix(history)
    drawn = ax.images[0].get_array()
    np.testing.assert_array_equal(np.ma.getmaskarray(np.ma.masked_invalid(drawn)), np.eye(2))
    assert drawn[0, 1] == 0.25
    assert drawn[1, 0] == 0
    assert "-0.01" in texts(ax)
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("read from", "told of")


def test_masks_are_drawn_as_probabilities() -> None:
    table = pd.DataFrame([[0.0, 1.0], [0.5, 0.25]], index=["A", "B"], columns=[0, 1])
    ax = plots.masks(table)
    np.testing.assert_allclose(ax.images[0].get_array(), table)
    assert ax.images[0].get_clim() == (0, 1)
    assert "0.25" in texts(ax)


def test_uniform_ranks_lie_in_the_band_and_crowded_ones_do_not() -> None:
    uniform = np.tile(np.arange(100), 50)
    flat, hill = plots.rank_histogram({"z_x": uniform, "z_t": 40 + uniform // 5}, draws=99)
    np.testing.assert_allclose(flat.patches[0].get_data().values, 1.0)
    assert hill.patches[0].get_data().values.max() == pytest.approx(5)
    # Binomial(5000, 1/20) leaves 99 % within about 2.58 standard deviations.
    band = flat.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(1 + 2.58 * np.sqrt(0.95 / 250), abs=0.02)


def test_coverage_of_uniform_positions_is_the_diagonal() -> None:
    uniform = (np.arange(1000) + 0.5) / 1000
    ax = plots.coverage({"z_x": uniform, "z_t": 0.25 + uniform / 2})
    _, right, wide = ax.lines
    np.testing.assert_allclose(right.get_ydata(), right.get_xdata(), atol=0.01)
    np.testing.assert_allclose(wide.get_ydata()[[25, 50, 75]], [0.5, 1, 1], atol=0.01)


def test_umap_is_named_as_such_and_its_absence_is_told(monkeypatch) -> None:
    class Umap:
        def __init__(self, **options) -> None:
            self.options = options

        def fit_transform(self, x):
            return x[:, :2]

    monkeypatch.setitem(sys.modules, "umap", type(sys)("umap"))
    sys.modules["umap"].UMAP = Umap
    assert plots.latents(frame(), basis="umap").get_xlabel() == "UMAP 1"
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(errors.DesignError, match="umap-learn"):
        plots.latents(frame(), basis="umap")


PICTURES = {
    "dose_response": lambda: plots.dose_response(curves())[0],
    "leakage_matrix": lambda: plots.leakage_matrix({"leakage.z_x.z_t": 0.2}),
    "masks": lambda: plots.masks(pd.DataFrame(np.eye(3), index=["a long treatment", "B", "C"])),
    "coverage": lambda: plots.coverage({"z_x": [0.2, 0.7]}),
    "ranks": lambda: plots.rank_histogram({"z_x": [1, 5], "z_t": [2, 3]}, draws=9)[0],
    "latents": lambda: plots.latents(frame(), np.array(["a", "b"] * 30)),
    "interaction": lambda: plots.interaction(pd.DataFrame([[1.0, 2.0]], columns=["u", "v"])),
}


@pytest.mark.parametrize("name", PICTURES)
def test_nothing_is_clipped_at_the_edge_of_the_picture(name) -> None:
    figure = PICTURES[name]().figure
    with plots.house_style():
        figure.savefig(io.BytesIO(), dpi=figure.dpi)
        page, drawn = figure.bbox, figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert drawn.x0 >= page.x0 - 1
    assert drawn.y0 >= page.y0 - 1
    assert drawn.x1 <= page.x1 + 1
    assert drawn.y1 <= page.y1 + 1


def test_latents_are_asked_for_as_scanpy_would():
    z, kinds = np.random.default_rng(0).normal(size=(6, 3)), np.array(list("abcabc"))
    ax = plots.latents(pd.DataFrame(z), kinds, palette="Set2")
    drawn = {tuple(np.round(c[:3], 3)) for c in ax.collections[0].get_facecolors()}
    assert drawn == {tuple(np.round(c, 3)) for c in mpl.color_sequences["Set2"][:3]}
    with pytest.raises(errors.ArgumentError, match=r"palette=.*Set2"):
        plots.latents(pd.DataFrame(z), kinds, palette="none such")
    with pytest.raises(errors.ArgumentError, match="a row per cell"):
        plots.latents(AnnData(z), kinds)
    with pytest.raises(errors.ArgumentError, match="one value for each of 6 cells"):
        plots.latents(pd.DataFrame(z), "cell_type")
