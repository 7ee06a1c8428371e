import numpy as np
import pytest

from pyro_fcr.errors import DesignError
from pyro_fcr.evaluate import cluster_agreement


@pytest.fixture
def cells():
    rng = np.random.default_rng(0)
    t, x = np.repeat([0, 1], 300), np.tile(np.repeat([0, 1, 2], 100), 2)
    noise = rng.normal(size=(600, 2))
    blocks = {
        "told": 10 * np.eye(3)[x][:, :2] + noise,
        "noise": noise,
    }
    return blocks, {"x": x, "t": t}, [f"{a}|{b}" for a, b in zip(t, x, strict=True)]


def score(table, metric, latent, labels):
    row = table[(table.metric == metric) & (table.latent == latent) & (table.labels == labels)]
    return row.iloc[0]


def test_separated_clusters_agree_and_noise_does_not(cells):
    table = cluster_agreement(*cells)
    for metric in ("nmi", "ari"):
        told = score(table, metric, "told", "x")
        assert told["score"] == pytest.approx(1, abs=0.02)
        assert told["label_only"] == pytest.approx(1)
        # Within conditions nothing of x is left.
        assert told["within"] == pytest.approx(0, abs=0.03)
        assert score(table, metric, "noise", "t")["score"] == pytest.approx(0, abs=0.03)
        assert score(table, metric, "told", "t")["score"] == pytest.approx(0, abs=0.03)


def test_labels_alone_win_where_the_means_of_noise_tell_conditions(cells):
    blocks, labels, condition = cells
    # Means of noise differ by chance alone, yet name every condition.
    row = score(cluster_agreement(blocks, {"c": condition}, condition), "nmi", "noise", "c")
    assert row["label_only"] == pytest.approx(1)
    assert row["score"] < 0.1


def test_agrees_with_scib_metrics(cells):
    scib = pytest.importorskip("scib_metrics")
    blocks, labels, condition = cells
    z = blocks["told"] * 0.12
    other = scib.nmi_ari_cluster_labels_kmeans(z, labels["x"])
    table = cluster_agreement({"z": z}, labels, condition)
    for metric in ("nmi", "ari"):
        assert score(table, metric, "z", "x")["score"] == pytest.approx(other[metric], abs=0.05)


def test_refusals(cells):
    blocks, labels, condition = cells
    with pytest.raises(DesignError, match="two labels or more"):
        cluster_agreement(blocks, {"x": ["a"] * 600}, condition)
