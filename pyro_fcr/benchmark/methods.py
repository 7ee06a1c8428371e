"""What is judged: every system of the house by its name, and other people's as adapters."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
from anndata import AnnData

import pyro_fcr as pf
from pyro_fcr import io
from pyro_fcr.errors import BenchmarkError, FCRError, sentence
from pyro_fcr.systems import __all__ as SYSTEMS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pyro_fcr.benchmark.problem import Problem

__all__ = ["EXTERNALS", "KINDS", "Judged", "MissingPackageError", "check_method", "fitted"]

KINDS = {
    "system": {"options", "fit", "calibrate", "schema", "likelihood"},
    "external": {"options"},
    "references": set[str](),
}
"""The kinds of a method, with the keys each may have beside its name."""


class MissingPackageError(Exception):
    """An external method's package is not installed: its job is skipped with a word."""


class Judged(Protocol):
    """What a task needs of a method; systems have it, and :meth:`counterfactual` beside."""

    def latents(self, adata: AnnData | None = None) -> Mapping[str, pd.DataFrame]:
        """Return blocks of latents, one row per cell."""


def fitted(method: Mapping[str, Any], problem: Problem, seed: int) -> Any:
    """Fit a method on the training cells of a problem.

    Parameters
    ----------
    method
        As a configuration gives it.
    problem
        Its split says which cells train.
    seed
        Of the fit.

    Raises
    ------
    MissingPackageError
        If an external method's package is not installed.
    """
    if "external" in method:
        package, fit = EXTERNALS[method["external"]]
        if find_spec(package) is None:
            raise MissingPackageError(f"{package} is not installed: pip install 'pyro-fcr[bench]'")
        return fit(problem, seed, **method.get("options", {}))
    system = getattr(pf, method["system"])
    schema = problem.schema
    if "schema" in method:
        schema = pf.Schema(**method["schema"])
    likelihood = method.get("likelihood", problem.likelihood)
    options = {"likelihood": likelihood, **_options(method.get("options", {}))}
    model = system(problem.adata, schema, **options)
    model.fit(
        split=problem.split, seed=seed, device="cpu", progress=False, **method.get("fit", {})
    )
    if "calibrate" in method:
        model.calibrate(seed=seed, device="cpu", **method["calibrate"])
    return model


def check_method(method: Mapping[str, Any], *, where: str) -> None:
    """Refuse a method that is none, before anything is loaded.

    Raises
    ------
    BenchmarkError
        With what is wrong.
    """
    kinds = [kind for kind in KINDS if kind in method]
    if len(kinds) != 1:
        raise _refusal("what kind of method", where, f"one of the keys {sorted(KINDS)}",
                       f"{kinds}")  # fmt: skip
    kind, name = kinds[0], method[kinds[0]]
    if extra := set(method) - {kind} - KINDS[kind]:
        raise _refusal("unknown keys", where, f"some of {sorted(KINDS[kind])}", f"{sorted(extra)}")
    known: Any = {"system": SYSTEMS, "external": EXTERNALS, "references": [True]}[kind]
    if name not in known:
        raise _refusal(f"no such {kind}", where, f"one of {sorted(known)}", repr(name))
    try:
        _options(method.get("options", {}))
    except FCRError as error:
        raise _refusal("a part that cannot be made", where, "public parts with their arguments",
                       str(error).rstrip(".")) from error  # fmt: skip


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a system's options, with its parts built from their descriptions."""
    out: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, dict) and "part" in value:
            out[name] = io.rebuild(value, None, slot=name)
        elif isinstance(value, dict):
            out[name] = _options(value)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            out[name] = tuple(io.rebuild(item, None, slot=name) for item in value)
        else:
            out[name] = value
    return out


_QUIET = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "logger": False,
}


class _Embedding:
    """Latents of cells that were embedded once, by name, and labels where they were predicted."""

    def __init__(
        self, z_nd: np.ndarray, adata: AnnData, labels: Mapping[str, np.ndarray] | None = None
    ) -> None:
        self._frame = pd.DataFrame(np.asarray(z_nd), index=adata.obs_names)
        self.heads = {name: pd.Series(v, adata.obs_names) for name, v in (labels or {}).items()}

    def latents(self, adata: AnnData | None = None) -> dict[str, pd.DataFrame]:
        """Return the one block ``z``."""
        return {"z": self._frame if adata is None else self._frame.loc[adata.obs_names]}

    def predict_labels(self, adata: AnnData, head: str, *, seed: int = 0) -> pd.Series:
        """Return the labels that were predicted."""
        return self.heads[head].loc[adata.obs_names]


def _scvi(
    problem: Problem, seed: int, *, labels: bool = False, max_epochs: int = 200
) -> _Embedding:
    """scVI, or with ``labels`` scANVI; both see all cells, those to be named without labels."""
    import scvi

    batch, unknown = problem.schema.batch, "unknown"
    scvi.settings.seed = seed
    batches = problem.adata.obs[[] if batch is None else [batch]]
    adata = AnnData(problem.adata.X.copy(), batches.copy())
    adata.obs["label"] = unknown
    scvi.model.SCVI.setup_anndata(adata, batch_key=batch, labels_key="label")
    # scVI sees no label: it is the same for every split, and is trained once.
    told = f"{batches.to_numpy().tolist()} {seed} {max_epochs} {version('scvi-tools')}"
    key = hashlib.sha256(told.encode() + problem.adata.X.data.tobytes()).hexdigest()[:16]
    folder = Path(gettempdir()) / f"pyro_fcr-scvi-{key}"
    if folder.exists():
        model = scvi.model.SCVI.load(str(folder), adata, accelerator="cpu")
    else:
        model = scvi.model.SCVI(adata)
        model.train(max_epochs, **_QUIET)
        partial = folder.with_name(f"{folder.name}.{os.getpid()}")
        model.save(str(partial))
        # Another process may have been quicker.
        with suppress(OSError):
            partial.rename(folder)
    if not labels:
        return _Embedding(model.get_latent_representation(), problem.adata)
    column = problem.schema.covariates[0]
    known = problem.adata.obs[column].astype(str)
    adata.obs["label"] = np.where(problem.mask("test"), unknown, known)
    model = scvi.model.SCANVI.from_scvi_model(model, unknown, labels_key="label")
    # In batches of 128 a last one of a single cell can remain, which BatchNorm refuses.
    model.train(20, batch_size=100, **_QUIET)
    named = {f"{column}_head": np.asarray(model.predict())}
    return _Embedding(model.get_latent_representation(), problem.adata, named)


def _harmony(problem: Problem, seed: int, *, n_components: int = 30) -> _Embedding:
    """Harmony on principal components of the training cells; it reads the batch of all cells."""
    import harmonypy

    scores = problem.components(n_components).transform(problem.adata.X)
    found = harmonypy.run_harmony(
        scores, problem.adata.obs, problem.schema.batch, random_state=seed, verbose=False
    )
    z = np.asarray(found.Z_corr)
    return _Embedding(z if len(z) == len(scores) else z.T, problem.adata)


EXTERNALS: dict[str, tuple[str, Callable[..., Judged]]] = {
    "scVI": ("scvi", _scvi),
    "Harmony": ("harmonypy", _harmony),
}
"""By name: the package it needs, and what fits it."""


def _refusal(what: str, where: str, expected: str, got: str) -> BenchmarkError:
    return BenchmarkError(
        sentence(what, where=where, expected=expected, got=got, hint="correct it")
    )
