"""Expression as it is, without its batch, and as it would have been."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import anndata as ad
import numpy as np
import pandas as pd

from pyro_fcr import arguments, io
from pyro_fcr.analysis.expression import Expression, expected_counts
from pyro_fcr.errors import DesignError, sentence
from pyro_fcr.fitted.core import Core

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

    from pyro_fcr.data import Cells
    from pyro_fcr.fitted.core import Data


__all__ = ["Counterfactuals"]


class Counterfactuals(Core):
    """The verbs that answer with expression."""

    @overload
    def counterfactual(
        self,
        adata: Data = ...,
        *,
        do: Mapping[str, Any],
        library: float | None = ...,
        draws: int = ...,
        seed: int = ...,
        out: None = ...,
    ) -> AnnData: ...

    @overload
    def counterfactual(
        self,
        adata: Data = ...,
        *,
        do: Mapping[str, Any],
        library: float | None = ...,
        draws: int = ...,
        seed: int = ...,
        out: str | Path,
    ) -> Path: ...

    def counterfactual(
        self,
        adata: Data = None,
        *,
        do: Mapping[str, Any],
        library: float | None = None,
        draws: int = 50,
        seed: int = 0,
        out: str | Path | None = None,
    ) -> AnnData | Path:
        """Return the expression each cell would have had.

        The latents that do not descend from what ``do`` sets keep their posterior draws; the
        others are drawn anew from their priors under ``do`` (abduction, action, prediction).

        Parameters
        ----------
        adata
            The cells; the training data by default.
        do
            What to set: ``{"treatment": "A+B", "dose": "0.5+1.0"}``, a covariate by its column's
            name, or both.
        library
            Molecules per cell under ``do``; by default each cell's own library size.
        draws
            Number of posterior draws.
        seed
            Governs the draws.
        out
            An ``.h5ad`` file or ``.zarr`` store to write the result to as it comes; its path is
            returned.

        Returns
        -------
        AnnData
            ``X``: posterior mean of the expected counts, in molecules at each cell's own library
            size. Layers ``sd``, ``q05``, ``q95``: its posterior spread. ``obs``: the cells'
            labels under ``do``, and as they were with the suffix ``_factual``.

        Raises
        ------
        CategoryError
            If ``do`` names a column or value the model does not know.
        DesignError
            If nothing in the model depends on what ``do`` sets, or the cells lack a label that
            is read.
        """
        if not arguments.mapping(do, "do=", of="what to set"):
            raise arguments.refused(
                do, where="do=", expected="a label or a dose to set",
                hint="reconstruct() tells what is",
            )  # fmt: skip
        factual = self.encode(adata)
        intervened, redraw = self.design.do(factual, do), self.descendants(do)
        obs, before = intervened.obs(), factual.obs()
        for name in obs.columns.intersection(before.columns):
            if list(before[name].astype(str)) != list(obs[name].astype(str)):
                obs[f"{name}_factual"] = before[name].to_numpy()
        told = {name: str(value) for name, value in do.items()}
        uns = {"counterfactual": {"do": told, "draws": draws, "redrawn": sorted(redraw)}}
        if out is None:
            found = self._expected(factual, do, draws, seed, library=library)
            made = self._expression(found, intervened)
            made.obs, made.uns = obs, uns
            return made
        genes = self.design.genes
        shapes = dict.fromkeys(("X", "layers/sd", "layers/q05", "layers/q95"), len(genes))
        with io.cells_file(out, obs, genes=genes, shapes=shapes, uns=uns) as arrays:
            into = Expression(*(arrays[place] for place in shapes))
            self._expected(factual, do, draws, seed, library=library, into=into)
        return Path(out)

    def corrected_expression(
        self,
        adata: AnnData | None = None,
        *,
        batch: str | Mapping[str, Any],
        library: float | None = None,
        draws: int = 50,
        seed: int = 0,
    ) -> AnnData:
        """Return the expression each cell would have had in a reference batch.

        It is :meth:`counterfactual` with ``do`` on the batch: what descends from the batch is
        drawn from its prior in the reference batch, all else is the cell's own.

        Parameters
        ----------
        adata
            The cells; the training data by default. Their own batch need not be known.
        batch
            The reference batch, or values for several columns by name.
        library
            Molecules per cell, alike for all; by default each cell's own library size, with what
            the batch did to it.
        draws
            Number of posterior draws.
        seed
            Governs the draws.

        Returns
        -------
        AnnData
            As :meth:`counterfactual` returns it.

        Raises
        ------
        CategoryError
            If the model does not know the batch.
        DesignError
            If nothing in the model depends on it.
        """
        do = {"batch": batch} if isinstance(batch, str) else dict(batch)
        return self.counterfactual(adata, do=do, library=library, draws=draws, seed=seed)

    def reconstruct(
        self, adata: AnnData | None = None, *, draws: int = 50, seed: int = 0
    ) -> AnnData:
        """Return the expected counts of the cells as they are.

        A reconstruction has read the very cells it describes: it says how much of them the
        latents hold, and is never a prediction.

        Parameters
        ----------
        adata
            The cells; the training data by default.
        draws
            Number of posterior draws.
        seed
            Governs the draws.

        Returns
        -------
        AnnData
            As :meth:`counterfactual` returns it.
        """
        cells = self.encode(adata)
        return self._expression(self._expected(cells, {}, draws, seed), cells)

    def descendants(self, do: Mapping[str, Any]) -> list[str]:
        """Return the blocks that descend from what an intervention sets.

        Parameters
        ----------
        do
            As for :meth:`counterfactual`.
        """
        causes = self.design.causes(do)
        return [block.name for block in self.declaration.blocks if block.parents & causes]

    def _expression(self, found: Expression, cells: Cells) -> AnnData:
        genes = pd.DataFrame(index=pd.Index(self.design.genes))
        layers = {"sd": found.sd, "q05": found.q05, "q95": found.q95}
        return ad.AnnData(found.mean, obs=cells.obs(), var=genes, layers=layers)

    def _expected(
        self,
        factual: Cells,
        do: Mapping[str, Any],
        draws: int,
        seed: int,
        *,
        library: float | None = None,
        into: Expression | None = None,
    ) -> Expression:
        self._fitted()
        intervened, redraw = self.design.do(factual, do) if do else factual, self.descendants(do)
        if library is not None:
            arguments.number(library, "library=", least=1e-30, most=1e12)
            same = np.full(len(factual), library, np.float32)
            intervened = replace(intervened, library=same)
        if do and not redraw and not self.model.decoder.reads & self.design.causes(do):
            raise DesignError(
                sentence(
                    f"nothing in this {type(self).__name__} depends on {sorted(do)}",
                    where="do",
                    expected="a label that a block's prior or the decoder reads",
                    got=f"{dict(do)}",
                    hint="it can reconstruct, but knows no such intervention; use another system",
                )
            )
        parents = [block.parents for block in self.declaration.blocks if block.name in redraw]
        read = self.model.decoder.reads.union(*parents)
        self._require(intervened, read, "the priors and the decoder")
        blind = [
            f"the prior of '{block.name}'"
            for block in self.declaration.blocks
            if block.name in redraw
            and "treatment" in block.parents
            and not self.model.priors[block.name].extrapolates
        ]
        blind += ["the decoder"] if "treatment" in self.model.decoder.reads else []
        self._require_known(intervened, blind)
        return expected_counts(
            self.model,
            self.guide,
            factual,
            intervened,
            redraw=redraw,
            draws=draws,
            seed=seed,
            device=self.device,
            into=into,
        )
