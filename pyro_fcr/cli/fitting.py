"""How commands fit: from a command's options to a model, its data and its split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyro_fcr as pf
from pyro_fcr.cli.files import read_data
from pyro_fcr.cli.options import chosen_split, known_device
from pyro_fcr.data import open_data
from pyro_fcr.errors import DesignError, sentence

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from anndata import AnnData

    from pyro_fcr import Split

__all__ = ["fit_to", "fit_to_kang"]

DEMO_GENES = 2000
"""The most variable genes, which hold 80 % of the molecules: the demo ends within minutes."""


def fit_to(
    data: Path, options: Mapping[str, Any], checkpoint: Path | None
) -> tuple[pf.FCR, AnnData, Split | None]:
    """Fit FCR to a file as the options of ``fit`` say."""
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
    adata: Any = open_data(data) if on_disk else read_data(data)
    split = chosen_split(adata, options, [schema.treatment, *schema.covariates])
    if options["top_genes"] is not None:
        adata = pf.top_genes(adata, options["top_genes"], split=split, layer=schema.counts)
    sizes = {k: options[k] for k in ("z_x", "z_t", "z_tx") if options[k] is not None}
    model = pf.FCR(adata, schema, sizes=sizes, likelihood=options["likelihood"])
    told = ("max_epochs", "batch_size", "on_nonfinite", "seed", "early_stopping")
    model.fit(
        split=split,
        progress=not options["quiet"],
        checkpoint=checkpoint,
        resume=checkpoint is not None,
        **{k: options[k] for k in told},
        device=known_device(options["device"]),
    )
    return model, adata, split


def fit_to_kang(options: Mapping[str, Any]) -> tuple[pf.FCR, AnnData, Split | None]:
    """Fit FCR to the bundled blood cells as the options of ``demo`` say; B cells are held out."""
    adata, seed = pf.datasets.kang(), options["seed"]
    schema = pf.Schema(treatment="condition", control="ctrl", covariates=["cell_type"])
    split = pf.splits.hold_out(adata, {"cell_type": ["B cells"], "condition": ["stim"]}, seed=seed)
    adata = pf.top_genes(adata, DEMO_GENES, split=split)
    model = pf.FCR(adata, schema)
    model.fit(
        split=split,
        max_epochs=10 if options["quick"] else None,
        seed=seed,
        device=known_device(options["device"]),
        progress=not options["quiet"],
    )
    return model, adata, split
