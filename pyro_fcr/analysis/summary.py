"""Draws in one table: what ArviZ summarises one variable at a time, for thousands of cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pyro_fcr import arguments

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["summary"]


def summary(tree: xr.DataTree, *, level: float = 0.9) -> pd.DataFrame:
    """Return mean, spread and interval of every quantity in a posterior.

    All quantities at once, so that ten thousand cells take seconds. Draws of an amortised
    posterior are independent: there is no effective sample size to ask for.

    Parameters
    ----------
    tree
        What ``posterior()`` returns.
    level
        Probability of the central interval.

    Returns
    -------
    pandas.DataFrame
        One row per quantity, named as ArviZ names it (``z_x[cell7, 0]``): ``mean``, ``sd``,
        ``low``, ``high``, and ``mcse``, the Monte-Carlo error of the mean.

    Examples
    --------
    >>> import xarray as xr
    >>> draws = xr.Dataset({"a": (("chain", "draw"), [[0.0, 1.0, 2.0]])})
    >>> float(summary(xr.DataTree.from_dict({"/posterior": draws})).loc["a", "mean"])
    1.0
    """
    tails = arguments.tails(level)
    frames = []
    for name, values in tree["posterior"].dataset.data_vars.items():
        array = values.stack(sample=("chain", "draw")).transpose("sample", ...)
        flat = np.asarray(array.values, dtype=np.float64).reshape(array.sizes["sample"], -1)
        low, high = np.quantile(flat, tails, axis=0)
        sd = flat.std(0, ddof=1 if len(flat) > 1 else 0)
        frames.append(
            pd.DataFrame(
                {
                    "mean": flat.mean(0),
                    "sd": sd,
                    "low": low,
                    "high": high,
                    "mcse": sd / np.sqrt(len(flat)),
                },
                index=_names(str(name), array),
            )
        )
    return pd.concat(frames)


def _names(name: str, array: Any) -> list[str]:
    labels = [
        array[dim].to_numpy() if dim in array.coords else np.arange(array.sizes[dim])
        for dim in array.dims[1:]
    ]
    if not labels:
        return [name]
    grid = np.meshgrid(*(np.asarray([str(v) for v in values]) for values in labels), indexing="ij")
    return [f"{name}[{', '.join(at)}]" for at in zip(*(g.ravel() for g in grid), strict=True)]
