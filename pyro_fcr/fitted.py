"""What can be asked of a fitted model: latents, draws, counterfactuals, judgement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import anndata as ad
import numpy as np
import pandas as pd
import torch
import xarray as xr
from pyro import poutine

from pyro_fcr import io
from pyro_fcr.analysis.certificate import interaction_certificate, learned_prior
from pyro_fcr.analysis.diagnose import diagnose
from pyro_fcr.analysis.diagnostics import importance, predictive_checks
from pyro_fcr.analysis.doses import dose_response
from pyro_fcr.analysis.draws import (
    draw_globals,
    draw_observation,
    draw_sites,
    moments,
    seeded,
)
from pyro_fcr.analysis.effects import estimate_effects
from pyro_fcr.analysis.expression import Expression, expected_counts, sampled_counts
from pyro_fcr.analysis.performance import performance
from pyro_fcr.analysis.posterior import fill, fill_observed
from pyro_fcr.analysis.programs import gene_programs
from pyro_fcr.analysis.report import write_report
from pyro_fcr.analysis.targets import target_table
from pyro_fcr.data import open_data, open_source
from pyro_fcr.errors import DesignError, NotFittedError, sentence
from pyro_fcr.model import OBSERVATION

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from torch import nn

    from pyro_fcr.analysis.diagnose import Diagnosis
    from pyro_fcr.analysis.diagnostics import Importance
    from pyro_fcr.analysis.effects import Effects
    from pyro_fcr.assembly import Declaration
    from pyro_fcr.data import Batch, Cells, Design, Split
    from pyro_fcr.evaluate import Certificate
    from pyro_fcr.model import LatentModel
    from pyro_fcr.penalties import Head

    Data: TypeAlias = AnnData | str | Path | Sequence[str | Path] | None

__all__ = ["Fitted"]

CHUNK = 512
"""Cells read at a time."""


class Fitted(ABC):
    """The verbs of a fitted model; :class:`~pyro_fcr.estimator.Estimator` says how it is made."""

    design: Design
    """What the codes mean."""

    declaration: Declaration
    """The system's blocks, priors and terms."""

    # ---- the plain Pyro halves -------------------------------------------------------------

    settings: dict[str, Any]
    """How the model was trained."""

    _cells: Cells | None
    _history: pd.DataFrame | None
    _split: Split | None

    @property
    @abstractmethod
    def model(self) -> LatentModel:
        """The generative half, a plain Pyro module called with a batch."""

    @property
    @abstractmethod
    def guide(self) -> nn.Module:
        """The approximate posterior, a plain Pyro module called with a batch."""

    @property
    @abstractmethod
    def heads(self) -> Mapping[str, Head]:
        """The classifiers in the objective, by name."""

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return next(self.model.parameters()).device

    @property
    def cells(self) -> Cells:
        """The training data as encoded cells; ``cells.batch(rows)`` is what the model reads.

        Raises
        ------
        NotFittedError
            If the model was loaded from a file, which holds no cells.
        """
        if self._cells is None:
            raise NotFittedError(
                sentence(
                    "a loaded model holds no cells",
                    where="adata",
                    expected="an AnnData",
                    got="nothing",
                    hint="pass the data to this call",
                )
            )
        return self._cells

    def encode(self, adata: Data = None) -> Cells:
        """Return data as encoded cells: genes realigned, categories looked up.

        Parameters
        ----------
        adata
            New data; the training data by default. Labels that the data do not have are marked
            unknown, which label-free encoders do not mind.
        """
        if adata is None:
            return self.cells
        cells = self.design.encode(open_data(adata), labels="optional")
        reads: frozenset[str] = getattr(self.guide, "reads", frozenset())
        self._require(cells, reads, "the encoders")
        self._require_known(cells, ["the encoder"] if "treatment" in reads else [])
        return cells

    def _require(self, cells: Cells, read: frozenset[str], reader: str) -> None:
        schema = self.design.schema
        covariates = (*schema.covariates, *schema.continuous)
        columns = {
            "treatment": (schema.treatment, schema.dose),
            "covariates": covariates,
            "batch": (schema.batch,),
        } | {name: (name,) for name in (*covariates, schema.batch) if name is not None}
        needed = [column for label in sorted(read) for column in columns[label]]
        if missing := [column for column in needed if column in cells.unknown]:
            raise DesignError(
                sentence(
                    f"{reader} read a label that the cells do not have",
                    where="adata.obs",
                    expected=f"the columns {sorted(set(filter(None, needed)))}",
                    got=f"no {missing[0]!r}",
                    hint="add the column, or set it with do=",
                )
            )

    def _require_known(self, cells: Cells, blind: Sequence[str]) -> None:
        # A table's row that was never trained would answer like the control.
        if blind and (new := self.design.without_cells(cells)):
            raise DesignError(
                sentence(
                    f"{blind[0]} knows nothing of {new[0]!r}, a treatment without cells",
                    where="treatment",
                    expected="a treatment that cells had, or parts that read its features",
                    got=f"{len(new)} without cells",
                    hint="use pf.priors.TreatmentFeatures() in every block that depends on the "
                    "treatment, and encoders and decoder without labels",
                )
            )

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch of the last training run."""
        return self._fitted()

    def _fitted(self) -> pd.DataFrame:
        if self._history is None:
            raise NotFittedError(
                sentence(
                    "the model is not trained",
                    where=type(self).__name__,
                    expected="fit() first",
                    got="no training run",
                    hint="call fit(), or load a saved model",
                )
            )
        return self._history

    # ---- latents ---------------------------------------------------------------------------

    @overload
    def latents(
        self, adata: Data = ..., *, key_added: str | None = ..., out: None = ...
    ) -> dict[str, pd.DataFrame]: ...

    @overload
    def latents(self, adata: Data = ..., *, out: str | Path) -> Path: ...

    def latents(
        self,
        adata: Data = None,
        *,
        key_added: str | None = None,
        out: str | Path | None = None,
    ) -> dict[str, pd.DataFrame] | Path:
        """Return the posterior means of every block.

        Parameters
        ----------
        adata
            The training data by default.
        key_added
            Also write them to ``adata.obsm["X_{key_added}_{block}"]``; nothing is written
            without it.
        out
            An ``.h5ad`` file or ``.zarr`` store to write them to instead, as they come, under
            ``obsm["X_{block}"]``.

        Returns
        -------
        dict of pandas.DataFrame
            Per block (N, d), one row per cell; the file's path where ``out`` is given.
        """
        self._fitted()
        cells = self.encode(adata)
        if out is not None:
            self._write_latents(cells, out)
            return Path(out)
        frames = {
            name: pd.DataFrame(
                mean, index=cells.names, columns=[f"{name}_{i}" for i in range(mean.shape[1])]
            )
            for name, (mean, _) in self._moments(cells).items()
        }
        if key_added is not None:
            if not isinstance(adata, ad.AnnData):
                raise DesignError(
                    sentence(
                        "nowhere to write",
                        where="key_added",
                        expected="an AnnData to write to",
                        got=type(adata).__name__,
                        hint="pass adata as well",
                    )
                )
            for name, frame in frames.items():
                adata.obsm[f"X_{key_added}_{name}"] = frame.to_numpy()
        return frames

    def get_latent_representation(
        self, adata: AnnData | None = None, block: str | None = None
    ) -> np.ndarray:
        """Return the posterior means of one block as an array, or of all side by side.

        Parameters
        ----------
        adata
            The training data by default.
        block
            A block's name; all blocks in decoding order by default.

        Returns
        -------
        numpy.ndarray
            Shape (N, d), float32.
        """
        frames = self.latents(adata)
        names = [b.name for b in self.declaration.blocks] if block is None else [block]
        if unknown := [name for name in names if name not in frames]:
            raise DesignError(
                sentence(
                    f"no block is called '{unknown[0]}'",
                    where="block",
                    expected=f"one of {list(frames)}",
                    got=repr(unknown[0]),
                    hint="use one of the names",
                )
            )
        return np.concatenate([frames[name].to_numpy() for name in names], axis=1)

    def _write_latents(self, cells: Cells, out: str | Path) -> None:
        shapes = {f"obsm/X_{block.name}": block.size for block in self.declaration.blocks}
        start = 0
        with io.cells_file(out, cells.obs(), shapes=shapes) as arrays, seeded(0):
            for batch in self._chunks(cells):
                for name, (mean, _) in moments(self.guide, batch).items():
                    arrays[f"obsm/X_{name}"][start : start + len(batch)] = mean.cpu().numpy()
                start += len(batch)

    def _moments(self, cells: Cells) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        with seeded(0):
            for batch in self._chunks(cells):
                for name, (mean, sd) in moments(self.guide, batch).items():
                    parts.setdefault(name, []).append((mean.cpu().numpy(), sd.cpu().numpy()))
        return {
            name: (np.concatenate([m for m, _ in both]), np.concatenate([s for _, s in both]))
            for name, both in parts.items()
        }

    # ---- labels ----------------------------------------------------------------------------

    def predict_labels(
        self,
        adata: AnnData | None = None,
        head: str | None = None,
        *,
        soft: bool = False,
        draws: int = 20,
        seed: int = 0,
    ) -> pd.Series | pd.DataFrame:
        """Return each cell's label as a classifier on the latents reads it.

        The cells' own labels, batch and covariates are not read, known or not: cells of a batch
        that training never saw are welcome.

        Parameters
        ----------
        adata
            The cells; the training data by default.
        head
            Name of the head in the objective; may be left out where there is one alone.
        soft
            Return probabilities instead of the most probable label.
        draws
            Posterior draws over which probabilities are averaged.
        seed
            Governs the draws.

        Returns
        -------
        pandas.Series or pandas.DataFrame
            One label per cell; or one row per cell and one column per label.

        Raises
        ------
        DesignError
            If there is no such head, or the encoders read labels.
        """
        self._fitted()
        known = {name: part for name, part in self.heads.items() if part.levels}
        name = next(iter(known), None) if head is None and len(known) == 1 else head
        if name not in known:
            raise DesignError(
                sentence(
                    "no one classifier to ask" if head is None else "no such classifier",
                    where="predict_labels(head=)",
                    expected=f"one of {sorted(known)}",
                    got=repr(head),
                    hint="give the model a weight for one: penalties={'NAME': 1.0}",
                )
            )
        cells = self.cells if adata is None else self.design.encode(adata, labels="ignored")
        self._require(cells, getattr(self.guide, "reads", frozenset()), "the encoders")
        parts: list[np.ndarray] = []
        with seeded(seed):
            shared = draw_globals(self.guide, next(self._chunks(cells)), draws)
            for batch in self._chunks(cells):
                found = draw_sites(self.guide, batch, shared)
                with torch.no_grad():
                    odds = [known[name](z, batch).distribution.probs for z in found]
                parts.append(torch.stack(odds).mean(0).cpu().numpy())
        frame = pd.DataFrame(np.concatenate(parts), index=cells.names, columns=known[name].levels)
        return frame if soft else frame.idxmax(axis=1).rename(name)

    # ---- posterior -------------------------------------------------------------------------

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

    # ---- expression ------------------------------------------------------------------------

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

    # ---- judgement -------------------------------------------------------------------------

    def evaluate(
        self,
        adata: AnnData | None = None,
        split: Split | None = None,
        *,
        draws: int = 20,
        by_condition: bool = False,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Compare predictions of test conditions with what was measured, beside baselines.

        Parameters
        ----------
        adata
            All cells of the split; the training data by default.
        split
            The split the model was trained with; its test cells are the truth.
        draws
            Posterior draws per predicted cell.
        by_condition
            Return one row per method and condition instead of the means.
        seed
            Governs the draws.

        Returns
        -------
        pandas.DataFrame
            See :func:`pyro_fcr.analysis.performance.performance`.
        """
        cells = self.encode(adata).loaded()
        everything = np.ones(len(cells), bool)
        masks = [everything if split is None else split.mask(cells, k) for k in ("train", "test")]

        def intervention(group: int) -> dict[str, Any]:
            label, dose = self.design.label(self.design.treatment_rows[group])
            return {"treatment": label} | ({"dose": dose} if self.design.schema.dose else {})

        def predict(factual: Cells, group: int) -> np.ndarray:
            return self._expected(factual, intervention(group), draws, seed).mean

        def sample(factual: Cells, group: int) -> np.ndarray:
            do = intervention(group)
            return sampled_counts(
                self.model, self.guide, factual, self.design.do(factual, do),
                redraw=self.descendants(do), draws=1, seed=seed, device=self.device,
            )[0]  # fmt: skip

        def reconstruct(factual: Cells) -> np.ndarray:
            return self._expected(factual, {}, draws, seed).mean

        return performance(
            predict,
            reconstruct,
            cells,
            *masks,
            name=type(self).__name__,
            by_condition=by_condition,
            sample=sample,
            counts=self.model.likelihood.reads_counts,
        )

    def certificate(
        self,
        adata: AnnData | None = None,
        split: Split | None = None,
        *,
        block: str | None = None,
        replicates: int = 200,
        seed: int = 0,
    ) -> Certificate:
        """Say whether the interaction block is identified, from its prior's interactions.

        Parameters
        ----------
        adata
            The cells the model was trained on; the training data by default.
        split
            The split the model was trained with: conditions without training cells do not count.
            That of the last ``fit`` by default; a loaded model has none, and then all cells are
            taken for training cells.
        block
            The block that depends on treatment and covariates; found by its parents by default.
        replicates
            Bootstrap replicates behind the interval.
        seed
            Governs the bootstrap.

        Returns
        -------
        Certificate
            ``verdict`` is "identified", "not identified" or "undetermined"; print it for words.

        Raises
        ------
        DesignError
            If there is no such block, or the cells do not tell their conditions.
        """
        both = frozenset({"treatment", "covariates"})
        names = [b.name for b in self.declaration.blocks]
        candidates = [b.name for b in self.declaration.blocks if both <= b.parents]
        if block not in names and not (block is None and candidates):
            raise DesignError(
                sentence(
                    "no interaction block to certify",
                    where=type(self).__name__ if block is None else f"block={block!r}",
                    expected="a block that depends on treatment and covariates",
                    got=f"blocks {names}",
                    hint="use a system with such a block",
                )
            )
        block = block or candidates[0]
        self._fitted()
        cells = self.encode(adata)
        self._require(cells, both, "the certificate")
        split = self._split if adata is None and split is None else split
        if split is not None:
            cells = cells.subset(split.mask(cells, "train"))
        mean, sd = self._moments(cells)[block]
        with seeded(seed):
            prior = learned_prior(self.model, self.guide, block, self.design)
        return interaction_certificate(
            mean, sd, cells, prior=prior, replicates=replicates, seed=seed
        )

    def diagnose(self, adata: AnnData | None = None, *, seed: int = 0) -> Diagnosis:
        """Run the cheap diagnostics and say in plain words what is fine, what is not, what to try.

        Training, overfitting, discriminators, use of each block, separation of the blocks, fresh
        classifiers, replicated counts, the guide against the exact posterior, identifiability.

        Parameters
        ----------
        adata
            Cells to look at, at most 1,000 of them; the training data by default.
        seed
            Governs which cells, and all draws.

        Returns
        -------
        Diagnosis
            Print it; ``.table`` has one row per finding, ``.state`` is the worst of them.
        """
        self._fitted()
        both = frozenset({"treatment", "covariates"})
        certify = any(both <= block.parents for block in self.declaration.blocks)
        return diagnose(
            self,
            self.encode(adata),
            certificate=(lambda: self.certificate(adata, replicates=50)) if certify else None,
            seed=seed,
        )

    # ---- mechanisms ------------------------------------------------------------------------

    def targets(
        self, block: str | None = None, *, level: float = 0.10, credible: float = 0.90
    ) -> pd.DataFrame:
        """Return which latents every treatment moves, and how far.

        Parameters
        ----------
        block
            A block whose prior has sparse effects; found by itself where there is one.
        level
            Nominal false discovery rate of ``selected``, by its posterior expectation over all
            treatments and latents.
        credible
            Mass of the intervals.

        Returns
        -------
        pandas.DataFrame
            One row per (treatment, latent): ``inclusion``, the posterior probability that the
            treatment moves the latent; ``shift``, by how many standard deviations of an untreated
            cell if it does, per unit of training's doses, with its interval ``lower`` to
            ``upper``; ``selected``. ``targets()["inclusion"].unstack()`` is the matrix.

        Raises
        ------
        DesignError
            If no block has such a prior.
        """
        self._fitted()
        chosen = self._sparse_block(block, "targets")
        with seeded(0):
            return target_table(
                self.model, self.guide, chosen, self.design, self.device,
                level=level, credible=credible,
            )  # fmt: skip

    def gene_programs(
        self,
        adata: AnnData | None = None,
        block: str | None = None,
        *,
        pseudocount: float = 1.0,
    ) -> pd.DataFrame:
        """Return what each latent does to genes.

        The decoder's central difference about the average cell, from half a standard deviation of
        the latent below to half of one above.

        Parameters
        ----------
        adata
            The cells to average; the training data by default.
        block
            Any block; by default the one whose prior has sparse effects.
        pseudocount
            Added to a gene's molecules per 10⁴, so that genes next to silent do not lead the list.

        Returns
        -------
        pandas.DataFrame
            Genes × latents: signed log2 fold change per standard deviation of the latent among
            the cells, or change of the mean per standard deviation where values are no counts.

        Raises
        ------
        DesignError
            If no block is named and none has sparse effects.
        """
        self._fitted()
        names = [one.name for one in self.declaration.blocks]
        chosen = block if block in names else self._sparse_block(block, "gene_programs")
        cells = self.encode(adata)
        self._require(cells, self.model.decoder.reads, "the decoder")
        return gene_programs(
            self.model, self._moments(cells), cells, chosen, self.device, pseudocount=pseudocount
        )

    def _sparse_block(self, block: str | None, where: str) -> str:
        sparse = [name for name, prior in self.model.priors.items() if hasattr(prior, "effects")]
        if len(sparse) == 1 and block is None:
            return sparse[0]
        if block in sparse:
            return str(block)
        raise DesignError(
            sentence(
                "no block with sparse effects" if not sparse else "which block is open",
                where=f"{where}(block={block!r})",
                expected=f"one of {sparse}" if sparse else "a block with the prior SparseShift",
                got=f"blocks {[one.name for one in self.declaration.blocks]}",
                hint="name the block"
                if sparse
                else "pass priors={'z_t': pf.priors.SparseShift()}",
            )
        )

    def importance(
        self, adata: AnnData | None = None, *, draws: int = 100, seed: int = 0
    ) -> Importance:
        """Weigh the guide's draws by the model, cell by cell.

        Parameters
        ----------
        adata
            The training data by default.
        draws
            Draws per cell.
        seed
            Governs the draws.

        Returns
        -------
        Importance
            ``k_hat`` (N,), the importance-weighted ``bound`` and the ``elbo`` (N,) in nats,
            smoothed ``log_weights`` (N, draws) and the ``draws`` behind them.
        """
        self._fitted()
        cells = self.encode(adata)
        return importance(self.model, self.guide, self._chunks(cells), draws=draws, seed=seed)

    def predictive_checks(
        self, adata: AnnData | None = None, *, draws: int = 10, seed: int = 0
    ) -> pd.DataFrame:
        """Compare counts with replicates: depth, zeros, means, variances, correlations.

        Parameters
        ----------
        adata
            The training data by default; ``draws`` copies of their dense counts are held.
        draws
            Replicated data sets.
        seed
            Governs the draws.

        Returns
        -------
        pandas.DataFrame
            See :func:`pyro_fcr.analysis.diagnostics.predictive_checks`.
        """
        self._fitted()
        cells = self.encode(adata)
        return predictive_checks(
            self.model, self.guide, cells, draws=draws, seed=seed, device=self.device
        )

    def effects(
        self,
        adata: AnnData | None = None,
        *,
        draws: int = 200,
        replicate: str | None = None,
        level: float = 0.9,
        seed: int = 0,
    ) -> Effects:
        """Estimate what every treatment does to every gene of every kind of cell.

        Parameters
        ----------
        adata
            The cells; the training data by default.
        draws
            Posterior draws.
        replicate
            Column of ``adata.obs`` that tells donors or wells apart: they, instead of cells, are
            then what is resampled.
        level
            Probability of the intervals.
        seed
            Governs the draws.

        Returns
        -------
        Effects
            ``genes_of``, ``compare``, ``interactions``, ``interaction_genes`` and ``decompose``
            give tables with intervals, in log2 units.

        Raises
        ------
        DesignError
            If the cells do not tell their conditions, or no group has enough control cells.
        """
        self._fitted()
        cells = self.encode(adata)
        self._require(cells, frozenset({"treatment", "covariates"}), "effects")
        told = None if replicate is None else _column(adata, replicate, "effects(replicate=)")
        return estimate_effects(self, cells, draws=draws, replicates=told, level=level, seed=seed)

    def dose_response(
        self,
        adata: AnnData | None = None,
        *,
        treatment: str,
        doses: Sequence[float],
        genes: Sequence[str] | None = None,
        cells: int = 200,
        draws: int = 50,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Return what a treatment does to genes over a grid of doses, with 90 % bands.

        Parameters
        ----------
        adata
            The cells; the training data by default. Only control cells are read.
        treatment
            A single treatment.
        doses
            In the data's unit; they need not have been measured.
        genes
            Names; all by default.
        cells
            Control cells per covariate group.
        draws
            Posterior draws.
        seed
            Governs which cells, and all draws.

        Returns
        -------
        pandas.DataFrame
            One row per covariate group, dose and gene: ``covariate``, ``dose``, ``gene``,
            ``lfc`` (log2 against the control), ``low``, ``high``.

        Raises
        ------
        DesignError
            If the schema names no dose, or there are no control cells.
        """
        self._fitted()
        return dose_response(
            self,
            adata,
            treatment=treatment,
            doses=doses,
            genes=genes,
            cells=cells,
            draws=draws,
            seed=seed,
        )

    def report(
        self,
        path: str | Path,
        adata: AnnData | None = None,
        split: Split | None = None,
    ) -> Path:
        """Write a self-contained page with the pictures and tables of the run.

        Parameters
        ----------
        path
            The page, an ``.html`` file.
        adata
            The cells to describe; the training data by default.
        split
            The split the model was trained with: its test cells are predicted.

        Returns
        -------
        pathlib.Path
            The page.
        """
        self._fitted()
        return write_report(self, path, adata=adata, split=split)

    def _chunks(self, cells: Cells) -> Iterator[Batch]:
        source = open_source(cells, batch_size=CHUNK, shuffle=False)
        return (batch.to(self.device) for batch in source.batches(epoch=0))


def _column(adata: AnnData | None, name: str, where: str) -> NDArray[Any]:
    if adata is None or name not in adata.obs:
        raise DesignError(
            sentence(
                f"no column '{name}' to read",
                where=where,
                expected="a column of adata.obs, and adata itself",
                got="no adata" if adata is None else f"columns {list(adata.obs.columns)[:12]}",
                hint="pass the data, or leave it out",
            )
        )
    return adata.obs[name].astype(str).to_numpy()


def _opened(store: io.Tree, out: str | Path | None) -> xr.DataTree:
    return store.held() if out is None else xr.open_datatree(out, engine="zarr")
