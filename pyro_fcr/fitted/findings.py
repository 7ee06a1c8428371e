"""What a fit says of genes and treatments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyro_fcr import arguments
from pyro_fcr.analysis.changes import estimate_effects
from pyro_fcr.analysis.condition_means import estimate_condition_means
from pyro_fcr.analysis.contrasts import Group, estimate_contrast
from pyro_fcr.analysis.doses import dose_response
from pyro_fcr.analysis.draws import seeded
from pyro_fcr.analysis.programs import gene_programs
from pyro_fcr.analysis.report import write_report
from pyro_fcr.analysis.targets import sparse_priors, target_table
from pyro_fcr.errors import DesignError, sentence
from pyro_fcr.fitted.evidence import Evidence

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

    from pyro_fcr.analysis.condition_means import ConditionMeans
    from pyro_fcr.analysis.effects import Effects
    from pyro_fcr.data import Split
    from pyro_fcr.fitted.core import Data
    from pyro_fcr.model import Conditional


__all__ = ["Findings"]


class Findings(Evidence):
    """The verbs that tell of genes and treatments."""

    def targets(
        self, block: str | None = None, *, level: float = 0.10, credible: float = 0.90
    ) -> pd.DataFrame:
        """Return which latents every treatment moves, and how far.

        Parameters
        ----------
        block
            A block whose prior has sparse effects, or ``"decoder.effects"`` for those that the
            decoder adds; found by itself where there is one.
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
            If there is no such prior.
        """
        self._fitted()
        chosen = self._sparse(block, sparse_priors(self.model), "targets")
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
        if block not in names:
            held = sparse_priors(self.model).items()
            alone = {name: one for name, one in held if len(one.blocks) == 1}
            block = alone[self._sparse(block, alone, "gene_programs")].blocks[0].name
        cells = self.encode(adata)
        self._require(cells, self.model.decoder.reads, "the decoder")
        return gene_programs(
            self.model, self._moments(cells), cells, block, self.device, pseudocount=pseudocount
        )

    def _sparse(self, name: str | None, sparse: Mapping[str, Conditional], where: str) -> str:
        if len(sparse) == 1 and name is None:
            return next(iter(sparse))
        if name is not None and name in sparse:
            return name
        raise DesignError(
            sentence(
                "no block with sparse effects" if not sparse else "which block is open",
                where=f"{where}(block={name!r})",
                expected=f"one of {[*sparse]}" if sparse else "a block with the prior SparseShift",
                got=f"blocks {[one.name for one in self.declaration.blocks]}",
                hint="name the block"
                if sparse
                else "pass priors={'z_t': pf.priors.SparseShift()}",
            )
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

    def differential(
        self,
        group: AnnData,
        other: AnnData,
        *,
        do: Mapping[str, Any] | None = None,
        other_do: Mapping[str, Any] | None = None,
        effects: Effects | None = None,
        draws: int = 200,
        replicate: str | None = None,
        level: float = 0.9,
        least: float = 0.25,
        fdr: float = 0.05,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Compare the expression of two groups of cells, as they are or as they would have been.

        Parameters
        ----------
        group, other
            Any cells; the table tells of the first minus the second.
        do, other_do
            What is done to either group, as for ``counterfactual``; by default nothing. The same
            cells with and without ``do`` tell what it would do to them.
        effects
            Where there is a ``do``: its measured conditions say how far counterfactuals are off.
            By default ``effects()`` of the training data.
        draws
            Posterior draws.
        replicate
            Column of ``obs`` in both groups that tells donors or wells apart: they, instead of
            cells, are then what is resampled.
        level
            Probability of the intervals.
        least
            Smallest change that counts as an effect, in log2 units.
        fdr
            Genes are ``selected`` as long as the expected share of false ones is below this.
        seed
            Governs the draws.

        Returns
        -------
        pandas.DataFrame
            One row per gene, the likeliest differences first; columns as ``Effects.genes_of`` has
            them. Of a counterfactual nothing is ``measured``, and what the model cannot know of a
            condition that no cell was in is not in its interval: ``effects`` and
            ``condition_means`` widen that one.

        Raises
        ------
        DesignError
            If a group has fewer than ten cells, or lacks a label that is read.
        CategoryError
            If ``do`` names a column or value the model does not know.
        ArgumentError
            If a group is missing.
        """
        self._fitted()
        for name, cells in (("group", group), ("other", other)):
            if cells is None:
                raise arguments.refused(
                    cells, where=f"differential({name}=)", expected="an AnnData of cells",
                    hint="choose them, as in adata[adata.obs['cell_type'] == 'B cells']",
                )  # fmt: skip
        where = "differential(replicate=)"
        for name, given in (("do=", do), ("other_do=", other_do)):
            if given is not None:
                arguments.mapping(given, name, of="what to set")
        groups = (
            Group(
                self.encode(adata),
                done,
                None if replicate is None else _column(adata, replicate, where),
            )
            for adata, done in ((group, do), (other, other_do))
        )
        return estimate_contrast(
            self,
            *groups,
            error=lambda: (self.effects(seed=seed) if effects is None else effects).counterfactual,
            draws=draws,
            level=level,
            least=least,
            fdr=fdr,
            seed=seed,
        )

    def condition_means(
        self,
        adata: Data = None,
        split: Split | None = None,
        *,
        draws: int = 20,
        seed: int = 0,
    ) -> ConditionMeans:
        """Predict the mean of every treatment in every kind of cell, measured or not.

        Where :meth:`counterfactual` gives the model's own expectation, cell by cell, this moves
        it by the residuals of the measured conditions: what a kind of cell or a treatment has in
        common over conditions, shrunk by what the measurements can tell. Its intervals are of
        the condition's true mean, so new measurements add their own noise.

        Parameters
        ----------
        adata
            The cells that residuals are measured on; the training data by default.
        split
            The split the model was trained with, whose test cells are then not read. That of the
            last ``fit`` by default, where ``adata`` is not given.
        draws
            Posterior draws per cell.
        seed
            Governs the draws.

        Returns
        -------
        ConditionMeans
            ``of(treatment, covariate)`` gives a condition's genes: mean and change from the
            control with intervals; ``mean`` and ``change`` are the arrays.

        Raises
        ------
        DesignError
            If the schema names no treatment, the cells do not tell their conditions, or no
            condition has two cells.
        """
        self._fitted()
        if self.design.schema.treatment is None:
            raise DesignError(
                sentence(
                    "no treatments to predict",
                    where="condition_means",
                    expected="a schema with a treatment column",
                    got="none",
                    hint="Schema(treatment=..., control=...)",
                )
            )
        split = self._split if adata is None and split is None else split
        cells = self.encode(adata)
        self._require(cells, frozenset({"treatment", "covariates"}), "condition_means")
        if split is not None:
            cells = cells.subset(~split.mask(cells, "test"))
        return estimate_condition_means(self, cells, draws=draws, seed=seed)

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
