"""Draws from posterior and prior as labelled trees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import xarray as xr
from pyro import poutine

from pyro_fcr import io
from pyro_fcr.analysis.draws import draw_globals, draw_observation, draw_sites
from pyro_fcr.analysis.posterior import fill, fill_observed
from pyro_fcr.fitted.core import Core
from pyro_fcr.model import OBSERVATION

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

    from pyro_fcr.data import Batch
    from pyro_fcr.fitted.core import Data


__all__ = ["Draws"]


class Draws(Core):
    """The verbs that draw."""

    def posterior(
        self,
        adata: Data = None,
        *,
        draws: int = 200,
        seed: int = 0,
        out: str | Path | None = None,
    ) -> xr.DataTree:
        """Draw the latents of every cell, and the globals.

        Parameters
        ----------
        adata
            The training data by default.
        draws
            Number of draws.
        seed
            Governs the draws.
        out
            A ``.zarr`` store to write the draws to as they come, where memory is short of draws
            × N × d; what is returned then reads from it what is asked for.

        Returns
        -------
        xarray.DataTree
            Group ``posterior``: dimensions chain (1), draw, cell, and one per block; the cells'
            labels are coordinates along ``cell``.

        Raises
        ------
        DesignError
            If ``out`` is no ``.zarr`` store, or zarr is not installed.
        """
        self._fitted()
        cells = self.encode(adata)
        with io.tree(out) as store:
            fill(
                store, "posterior", cells, self._chunks(cells), seed=seed,
                shared=lambda batch: draw_globals(self.guide, batch, draws),
                sites=lambda batch, shared: draw_sites(self.guide, batch, shared),
            )  # fmt: skip
        return _opened(store, out)

    def posterior_predictive(
        self,
        adata: Data = None,
        *,
        draws: int = 20,
        seed: int = 0,
        out: str | Path | None = None,
    ) -> xr.DataTree:
        """Draw counts of the cells as they are from the posterior predictive distribution.

        Parameters
        ----------
        adata
            The training data by default.
        draws
            Number of draws; the result holds draws × N × G values.
        seed
            Governs the draws.
        out
            As for :meth:`posterior`.

        Returns
        -------
        xarray.DataTree
            Groups ``posterior_predictive`` (chain, draw, cell, gene) and ``observed_data``.
        """
        self._fitted()
        cells = self.encode(adata)

        def replicate(batch: Batch, shared: Any) -> Iterator[dict[str, torch.Tensor]]:
            observations = draw_observation(
                self.model, self.guide, batch, batch, redraw=(), shared=shared
            )
            return ({OBSERVATION: observation.sample()} for observation in observations)

        with io.tree(out) as store:
            fill(
                store, "posterior_predictive", cells, self._chunks(cells), seed=seed,
                shared=lambda batch: draw_globals(self.guide, batch, draws), sites=replicate,
            )  # fmt: skip
            fill_observed(store, cells, self._chunks(cells))
        return _opened(store, out)

    def prior_predictive(
        self,
        adata: Data = None,
        *,
        draws: int = 20,
        seed: int = 0,
        out: str | Path | None = None,
    ) -> xr.DataTree:
        """Draw latents and counts from the prior, under each cell's condition and library size.

        The prior is the one that was learned: the conditional priors' weights are the fitted
        ones, and Bayesian globals come from their own priors. Counts of the cells are not read.

        Parameters
        ----------
        adata
            The training data by default; their labels must be known.
        draws
            Number of draws; the result holds draws × N × G values.
        seed
            Governs the draws.
        out
            As for :meth:`posterior`.

        Returns
        -------
        xarray.DataTree
            Groups ``prior`` (latents and globals), ``prior_predictive`` (chain, draw, cell,
            gene) and ``observed_data``.

        Raises
        ------
        DesignError
            If the cells lack a label that a prior or the decoder reads.
        """
        self._fitted()
        cells = self.encode(adata)
        read = self.model.decoder.reads.union(*(b.parents for b in self.declaration.blocks))
        self._require(cells, read, "the priors and the decoder")
        model = poutine.uncondition(self.model)
        with io.tree(out) as store:
            fill(
                store, "prior", cells, self._chunks(cells), seed=seed,
                shared=lambda batch: draw_globals(model, batch, draws),
                sites=lambda batch, shared: draw_sites(model, batch, shared),
                separate={OBSERVATION: "prior_predictive"},
            )  # fmt: skip
            fill_observed(store, cells, self._chunks(cells))
        return _opened(store, out)


def _opened(store: io.Tree, out: str | Path | None) -> xr.DataTree:
    return store.held() if out is None else xr.open_datatree(out, engine="zarr")
