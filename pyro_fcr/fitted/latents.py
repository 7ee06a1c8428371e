"""Where cells lie: posterior means, and labels read from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, overload

import anndata as ad
import numpy as np
import pandas as pd
import torch

from pyro_fcr import io
from pyro_fcr.analysis.draws import draw_globals, draw_sites, moments, seeded
from pyro_fcr.errors import DesignError, sentence
from pyro_fcr.fitted.core import Core

if TYPE_CHECKING:
    from anndata import AnnData

    from pyro_fcr.data import Cells
    from pyro_fcr.fitted.core import Data


__all__ = ["Latents"]


class Latents(Core):
    """The verbs that place cells."""

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
