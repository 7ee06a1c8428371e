"""What each latent does to genes: the decoder's slope about the average cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pyro_fcr.data import Cells
    from pyro_fcr.model import LatentModel

__all__ = ["gene_programs"]


@torch.no_grad()
def gene_programs(
    model: LatentModel,
    moments: Mapping[str, tuple[NDArray, NDArray]],
    cells: Cells,
    block: str,
    device: torch.device,
    *,
    pseudocount: float,
) -> pd.DataFrame:
    """Return the change of every gene's mean from half an sd below to half an sd above.

    Parameters
    ----------
    model
        Fitted.
    moments
        Posterior means and standard deviations (N, d) of every block.
    cells
        The cells they are of. The average cell has their mean latents; what else the decoder
        reads is averaged over an even sample of them.
    block
        The block.
    device
        Where the weights live.
    pseudocount
        Added to a gene's molecules per 10⁴.

    Returns
    -------
    pandas.DataFrame
        See :meth:`pyro_fcr.fitted.Fitted.gene_programs`.
    """
    few = np.unique(np.linspace(0, len(cells) - 1, 64).astype(int))
    batch = cells.batch(few).to(device)
    centre = {
        name: torch.from_numpy(mean.mean(0)).to(device).expand(len(few), -1)
        for name, (mean, _) in moments.items()
    }
    mean, sd = moments[block]
    spread = np.sqrt(mean.var(0) + (sd**2).mean(0))
    columns = {}
    for j, width in enumerate(spread):
        step = torch.zeros(len(spread), device=device)
        step[j] = float(width) / 2
        low, high = (
            model.observation({**centre, block: centre[block] + sign * step}, batch).mean
            for sign in (-1, 1)
        )
        if model.likelihood.reads_counts:
            high, low = (1e4 * m / m.sum(-1, keepdim=True) + pseudocount for m in (high, low))
            change = (high.log2() - low.log2()).mean(0)
        else:
            change = (high - low).mean(0)
        columns[f"{block}_{j}"] = change.cpu().numpy()
    return pd.DataFrame(columns, index=pd.Index(cells.design.genes, name="gene"))
