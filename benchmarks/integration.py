"""Integration of batches: what the invariant block gives away, keeps, and corrects.

    pip install -e ".[bench]"
    python benchmarks/integration.py                   # both real sets, simulation, reported seeds

Four tasks, each a CSV in ``benchmarks/results``:

``integration``: fit on 75 % of the cells. On the held-out cells, fresh classifiers (the stronger
of logistic regression and gradient boosting, cross-validated) read the batch given biology, and a
nearest-neighbour classifier fitted on the training cells reads biology. Beside InVAE stand PCA of
the training cells, Harmony of all cells, scVI and scANVI, trained on all cells without the test
cells' labels: InVAE alone has not seen the test cells at all.
``scib``: scib-metrics' scores of the same held-out cells, all methods in one run.
``left_out``: one batch is left out at a time; its cells' labels are predicted. scANVI, scVI and
Harmony see the left-out cells without labels, InVAE and PCA only once they are trained.
``environments``: simulated cells with known latents, at three strengths of confounding.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from _common import RESULTS, parser, run, table
from sklearn.decomposition import PCA
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.neighbors import KNeighborsClassifier

import pyro_fcr as pf
from pyro_fcr.errors import DesignWarning
from pyro_fcr.evaluate import log_normalised, recovery, separability

LABEL = {"pbmc_3tech": "cell_type", "mixology": "cell_line"}
NEIGHBOURS = 15
UNKNOWN = "unknown"
FILES = {
    "integration": "integration.csv",
    "scib": "integration_scib.csv",
    "left_out": "integration_left_out.csv",
    "environments": "integration_environments.csv",
}
SCVI_EPOCHS = 200
METHODS = ("pca", "harmony", "scvi", "scanvi", "invae:default", "invae:non_factorised")

MODEL: dict[str, dict[str, Any]] = {
    "default": {},
    "non_factorised": {"factorised": False},
    "batch_in_decoder": {"batch_in_decoder": True},
    "elbo": {"terms": 0.0},
    "weight_30": {"terms": 30.0},
    "total_correlation": {"terms": 0.0, "penalties": {"total_correlation": 1.0}},
    "density_ratio": {"terms": 0.0, "penalties": {"density_ratio": 1.0}},
    "no_head": {"head": 0.0},
    "small": {"sizes": {"z_inv": 6, "z_spur": 3}},
    "large": {"sizes": {"z_inv": 20, "z_spur": 5}},
}


def _invae(adata: Any, biology: str, variant: str, seed: int, **fit: Any) -> pf.InVAE:
    options = dict(MODEL[variant])
    penalties = dict(options.pop("penalties", {}))
    if (weight := options.pop("terms", None)) is not None:
        penalties |= {"z_inv_vs_batch": weight, f"z_spur_vs_{biology}": weight}
    if (weight := options.pop("head", None)) is not None:
        penalties[f"{biology}_head"] = weight
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DesignWarning)
        schema = pf.Schema(covariates=biology, batch="batch")
        model = pf.InVAE(adata, schema, penalties=penalties, **options)
    model.fit(seed=seed, device="cpu", progress=False, **fit)
    return model


def _pca(adata: Any, fitted_on: np.ndarray) -> np.ndarray:
    log = log_normalised(adata.X)
    return PCA(20, random_state=0).fit(log[fitted_on]).transform(log)


def _harmony(pca: np.ndarray, batch: np.ndarray, seed: int) -> np.ndarray:
    import harmonypy

    obs = pd.DataFrame({"batch": batch})
    found = np.asarray(
        harmonypy.run_harmony(pca, obs, "batch", random_state=seed, verbose=False).Z_corr
    )
    return found if found.shape[0] == len(pca) else found.T


def _scvi(adata: Any, name: str, seed: int) -> tuple[Any, Any]:
    import scvi

    scvi.settings.seed = seed
    data = ad.AnnData(adata.X.copy(), obs=adata.obs[["batch"]].copy())
    data.obs["label"] = UNKNOWN
    scvi.model.SCVI.setup_anndata(data, batch_key="batch", labels_key="label")
    # Kept between tasks: scVI sees no label, so each of them would train the same one.
    folder = Path(tempfile.gettempdir()) / f"scvi_{name}_{seed}_{SCVI_EPOCHS}"
    if folder.exists():
        return scvi.model.SCVI.load(str(folder), data, accelerator="cpu"), data
    model = scvi.model.SCVI(data, n_latent=10)
    model.train(SCVI_EPOCHS, **_quiet())
    model.save(str(folder))
    return model, data


def _scanvi(pretrained: Any, data: Any, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return scANVI's latents and labels of all cells; ``UNKNOWN`` marks those to predict."""
    import scvi

    data.obs["label"] = labels
    model = scvi.model.SCANVI.from_scvi_model(pretrained, UNKNOWN, labels_key="label")
    # Batches of 100: with 128 a last batch of one cell can remain, which BatchNorm refuses.
    model.train(20, batch_size=100, **_quiet())
    return model.get_latent_representation(), np.asarray(model.predict())


def _quiet() -> dict[str, Any]:
    return {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "accelerator": "cpu",
    }


def _neighbours(z: np.ndarray, labels: np.ndarray, train: np.ndarray) -> np.ndarray:
    return KNeighborsClassifier(NEIGHBOURS).fit(z[train], labels[train]).predict(z)


def integration(data: str, method: str, seed: int) -> list[dict[str, Any]]:
    """Return the scores of one method's embedding of the held-out cells."""
    warnings.simplefilter("ignore")
    adata, biology = getattr(pf.datasets, data)(), LABEL[data]
    split = pf.splits.random(adata, test=0.25, valid=0.0, stratify=biology, seed=seed)
    train, test = split.mask(adata, "train"), split.mask(adata, "test")
    x, b = (adata.obs[name].astype(str).to_numpy() for name in (biology, "batch"))
    start = time.perf_counter()
    spurious, labels = None, None
    if method.startswith("invae"):
        model = _invae(adata, biology, method.partition(":")[2], seed, split=split)
        z = model.get_latent_representation(adata, "z_inv")
        spurious = model.get_latent_representation(adata, "z_spur")
        labels = model.predict_labels(adata).to_numpy() if model.heads else None
    elif method in ("pca", "harmony"):
        z = _pca(adata, train)
        z = _harmony(z, b, seed) if method == "harmony" else z
    else:
        pretrained, encoded = _scvi(adata, data, seed)
        z = pretrained.get_latent_representation()
        if method == "scanvi":
            z, labels = _scanvi(pretrained, encoded, np.where(test, UNKNOWN, x))
    seconds = time.perf_counter() - start
    nearest = _neighbours(z, x, train)
    read = separability(z[test], b[test], x[test])
    found = {
        "batch given biology": read.score,
        "batch given biology, chance": read.chance,
        "batch given biology, excess": read.excess,
        "biology, nearest neighbours": balanced_accuracy_score(x[test], nearest[test]),
        "biology, macro-F1": f1_score(x[test], nearest[test], average="macro"),
        "fit seconds": seconds,
    }
    if labels is not None:
        found["biology, own classifier"] = balanced_accuracy_score(x[test], labels[test])
    if spurious is not None:
        found["batch from z_spur"] = separability(spurious[test], b[test]).score
        found["biology from z_spur given batch, excess"] = separability(
            spurious[test], x[test], b[test]
        ).excess
    np.save(_kept(data, method, seed), z)
    return [{"measure": name, "value": float(value)} for name, value in found.items()]


def _kept(data: str, method: str, seed: int) -> Path:
    name = f"integration_{data}_{method.replace(':', '_')}_{seed}.npy"
    return Path(tempfile.gettempdir()) / name


def scib(data: str, seed: int) -> list[dict[str, Any]]:
    """Return scib-metrics' scores of the held-out cells, for every embedding that was kept."""
    from scib_metrics.benchmark import BatchCorrection, Benchmarker, BioConservation

    warnings.simplefilter("ignore")
    full, biology = getattr(pf.datasets, data)(), LABEL[data]
    split = pf.splits.random(full, test=0.25, valid=0.0, stratify=biology, seed=seed)
    # Kinds of cells with a handful of cells have no neighbourhoods to be scored.
    x = full.obs[biology].astype(str)
    common = x[split.mask(full, "test")].value_counts().loc[lambda n: n >= 10].index
    keep = split.mask(full, "test") & x.isin(common).to_numpy()
    methods = [method for method in METHODS if _kept(data, method, seed).exists()]
    adata = ad.AnnData(np.zeros((int(keep.sum()), 1), "float32"))
    adata.obs["biology"] = x[keep].to_numpy()
    adata.obs["batch"] = full.obs["batch"].astype(str)[keep].to_numpy()
    for method in methods:
        adata.obsm[method] = np.load(_kept(data, method, seed))[keep]
    bench = Benchmarker(
        adata,
        batch_key="batch",
        label_key="biology",
        embedding_obsm_keys=methods,
        bio_conservation_metrics=BioConservation(),
        batch_correction_metrics=BatchCorrection(pcr_comparison=False),
        pre_integrated_embedding_obsm_key=methods[0],
        progress_bar=False,
    )
    bench.benchmark()
    scores = bench.get_results(min_max_scale=False).loc[methods]
    return [
        {"method": method, "measure": str(name), "value": float(scores.loc[method, name])}
        for method in methods
        for name in scores.columns
    ]


def left_out(data: str, method: str, seed: int) -> list[dict[str, Any]]:
    """Return macro-F1 of the labels of each batch, which was left out of training."""
    warnings.simplefilter("ignore")
    adata, biology = getattr(pf.datasets, data)(), LABEL[data]
    x, b = (adata.obs[name].astype(str).to_numpy() for name in (biology, "batch"))
    pretrained = _scvi(adata, data, seed) if method in ("scvi", "scanvi") else None
    rows = []
    for held in np.unique(b):
        train, test = b != held, b == held
        if method.startswith("invae"):
            model = _invae(adata[train].copy(), biology, method.partition(":")[2], seed)
            labels = model.predict_labels(adata).to_numpy()
        elif method in ("pca", "harmony"):
            z = _pca(adata, train if method == "pca" else train | test)
            z = _harmony(z, b, seed) if method == "harmony" else z
            labels = _neighbours(z, x, train)
        elif method == "scvi":
            labels = _neighbours(pretrained[0].get_latent_representation(), x, train)
        else:
            labels = _scanvi(*pretrained, np.where(test, UNKNOWN, x))[1]
        # Labels that the left-out batch does not hold have no F1 of their own.
        known = np.unique(x[test & np.isin(x, x[train])])
        score = f1_score(x[test], labels[test], labels=known, average="macro")
        rows.append({"held": held, "measure": "macro-F1", "value": float(score)})
        accuracy = float((x[test] == labels[test]).mean())
        rows.append({"held": held, "measure": "accuracy", "value": accuracy})
    return rows


def environments(confounding: float, variant: str, seed: int) -> list[dict[str, Any]]:
    """Return recovery of the true blocks, and the batch read from z_inv, on held-out cells."""
    adata = pf.simulate.environments(confounding=confounding, seed=seed)
    split = pf.splits.random(adata, test=0.25, valid=0.0, stratify="biology", seed=seed)
    test = split.mask(adata, "test")
    sizes = {"sizes": {"z_inv": 4, "z_spur": 2}}
    MODEL[variant] = sizes | MODEL[variant]
    model = _invae(adata, "biology", variant, seed, split=split)
    z = {name: frame.to_numpy()[test] for name, frame in model.latents(adata).items()}
    truth = {name: adata.obsm[name][test] for name in z}
    obs = adata.obs[test]
    x, b = (obs[name].astype(str).to_numpy() for name in ("biology", "batch"))
    found = {
        "batch given biology, excess": separability(z["z_inv"], b, x).excess,
        "batch from z_spur": separability(z["z_spur"], b).score,
        "batch from the true z_spur": separability(truth["z_spur"], b).score,
        "biology, nearest neighbours": balanced_accuracy_score(
            x, _neighbours(model.get_latent_representation(adata, "z_inv"),
                           adata.obs["biology"].astype(str).to_numpy(), ~test)[test]
        ),
    }  # fmt: skip
    rows = [{"measure": name, "value": float(value)} for name, value in found.items()]
    condition = pd.Series(x) + "|" + pd.Series(b)
    # Residuals within a condition need cells: confounding leaves some with a handful.
    often = (condition.map(condition.value_counts()) >= 8).to_numpy()
    scores = recovery(
        {name: values[often] for name, values in z.items()},
        {name: values[often] for name, values in truth.items()},
        condition[often].to_numpy(),
    )
    for row in scores.itertuples():
        name = f"within condition, {row.metric}: {row.latent} to {row.truth}"
        rows.append({"measure": name, "value": float(row.within)})
    return rows


def main() -> None:
    """Run the tasks and print the tables."""
    arguments = parser(__doc__.splitlines()[0], seeds=(11, 12, 13))
    tasks = {
        "integration": integration,
        "scib": scib,
        "left_out": left_out,
        "environments": environments,
    }
    arguments.add_argument("--tasks", nargs="+", default=list(tasks), choices=list(tasks))
    arguments.add_argument("--data", nargs="+", default=list(LABEL), choices=list(LABEL))
    arguments.add_argument(
        "--methods",
        nargs="+",
        default=list(METHODS),
    )
    arguments.add_argument("--confounding", type=float, nargs="+", default=[0.0, 0.5, 0.9])
    given = arguments.parse_args()
    folder = given.out or RESULTS
    for name in given.tasks:
        if name == "environments":
            variants = [m.partition(":")[2] for m in given.methods if m.startswith("invae")]
            todo = [
                {"confounding": c, "variant": v, "seed": s}
                for s in given.seeds
                for v in variants
                for c in given.confounding
            ]
            index = ["measure"]
            columns = ["variant", "confounding"]
        elif name == "scib":
            todo = [{"data": d, "seed": s} for s in given.seeds for d in given.data]
            index, columns = ["data", "measure"], ["method"]
        else:
            todo = [
                {"data": d, "method": m, "seed": s}
                for s in given.seeds
                for d in given.data
                for m in given.methods
            ]
            index = ["data", "measure"] + (["held"] if name == "left_out" else [])
            columns = ["method"]
        rows = run(tasks[name], todo, jobs=given.jobs, out=folder / FILES[name])
        wide = rows.pivot_table(index=index, columns=columns, values="value", sort=False)
        wide.columns = [" ".join(map(str, np.atleast_1d(c))) for c in wide.columns]
        print(table(wide), "\n")


if __name__ == "__main__":
    main()
