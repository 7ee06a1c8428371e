"""How far a fit can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pyro_fcr.analysis.assumptions import doubts, posterior_and_prior
from pyro_fcr.analysis.certificate import interaction_certificate, learned_prior
from pyro_fcr.analysis.diagnose import diagnose
from pyro_fcr.analysis.diagnostics import (
    block_use,
    importance,
    pit_values,
    predictive_checks,
    simulated_ranks,
)
from pyro_fcr.analysis.draws import seeded
from pyro_fcr.analysis.expression import sampled_counts
from pyro_fcr.analysis.performance import performance
from pyro_fcr.errors import DesignError, sentence
from pyro_fcr.fitted.counterfactuals import Counterfactuals

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from pyro_fcr.analysis.diagnose import Diagnosis
    from pyro_fcr.analysis.diagnostics import Importance
    from pyro_fcr.data import Cells, Split
    from pyro_fcr.evaluate import Certificate


__all__ = ["Evidence"]


class Evidence(Counterfactuals):
    """The verbs that judge the fit."""

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

        def predict(factual: Cells, group: int) -> np.ndarray:
            return self._expected(factual, self.design.setting(group), draws, seed).mean

        def sample(factual: Cells, group: int) -> np.ndarray:
            do = self.design.setting(group)
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

        The theory assumes more than the rank of these: that no block depends on a label which is
        no parent of it, and that the block's components are independent within conditions. Where
        the training cells contradict that, ``doubts`` says so and nothing is "identified".

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
        moments = posterior_and_prior(self.model, self.guide, self._chunks(cells), seed=seed)
        with seeded(seed):
            prior = learned_prior(self.model, self.guide, block, self.design)
        mean, variance = moments[block][:2]
        certificate = interaction_certificate(
            mean, np.sqrt(variance), cells, prior=prior, replicates=replicates, seed=seed
        )
        parents = {b.name: self.design.roles(b.parents) for b in self.declaration.blocks}
        return certificate.doubting(doubts(moments, parents, cells, block))

    def diagnose(
        self, adata: AnnData | None = None, split: Split | None = None, *, seed: int = 0
    ) -> Diagnosis:
        """Run the cheap diagnostics and say in plain words what is fine, what is not, what to try.

        Training, overfitting, discriminators, use of each block, separation of the blocks, fresh
        classifiers, replicated counts, the guide against the exact posterior, identifiability.

        Parameters
        ----------
        adata
            Cells to look at, at most 1,000 of them; the training data by default.
        split
            The split the model was trained with, where ``adata`` is given: its training cells say
            which interactions could be learned. Without it all cells given are taken for them,
            and the finding says so.
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
            certificate=(lambda: self.certificate(adata, split, replicates=50))
            if certify
            else None,
            assumed=adata is not None and split is None,
            seed=seed,
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

    def pit_values(
        self, adata: AnnData | None = None, *, draws: int = 20, seed: int = 0
    ) -> np.ndarray:
        """Return where each count lies in its predictive distribution, 0 to 1, shape (N, G).

        Parameters
        ----------
        adata
            The training data by default; cells held out make the fairer test.
        draws
            Predictive draws per count.
        seed
            Governs draws and randomisation.

        Returns
        -------
        numpy.ndarray
            See :func:`pyro_fcr.analysis.diagnostics.pit_values`.
        """
        self._fitted()
        cells = self.encode(adata)
        return pit_values(
            self.model, self.guide, cells, draws=draws, seed=seed, device=self.device
        )

    def block_use(self, adata: AnnData | None = None, *, seed: int = 0) -> pd.DataFrame:
        """Say how much each block tells of the single cell, beyond its condition.

        Parameters
        ----------
        adata
            The training data by default.
        seed
            Governs the draws where a divergence has no closed form.

        Returns
        -------
        pandas.DataFrame
            See :func:`pyro_fcr.analysis.diagnostics.block_use`.
        """
        self._fitted()
        return block_use(self.guide, self.model, self._chunks(self.encode(adata)), seed=seed)

    def simulated_ranks(
        self, adata: AnnData | None = None, *, draws: int = 99, seed: int = 0
    ) -> dict[str, np.ndarray]:
        """Rank latents that the model draws among the guide's: uniform where it is calibrated.

        Parameters
        ----------
        adata
            The cells whose conditions are simulated; the training data by default.
        draws
            Guide draws L per cell; ranks run from 0 to L.
        seed
            Governs all draws.

        Returns
        -------
        dict
            Ranks (N, d) by block, see :func:`pyro_fcr.analysis.diagnostics.simulated_ranks`.
        """
        self._fitted()
        chunks = self._chunks(self.encode(adata))
        return simulated_ranks(self.model, self.guide, chunks, draws=draws, seed=seed)
