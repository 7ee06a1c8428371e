"""Reading a Pyro trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyro.poutine.util import site_is_subsample

if TYPE_CHECKING:
    from pyro.poutine import Trace

__all__ = ["in_cell_plate", "latent_sites", "marginal"]


def latent_sites(trace: Trace) -> dict[str, Any]:
    """Return the latent sample sites of a trace by name, without plates' subsampling."""
    return {n: s for n, s in trace.iter_stochastic_nodes() if not site_is_subsample(s)}


def marginal(site: Any) -> Any:
    """Return the distribution of a site alone, by its mean and variance.

    A guide that samples one site given another says what it is alone by
    ``infer={"marginal": distribution}``; otherwise it is the site's own distribution.
    """
    return site["infer"].get("marginal", site["fn"])


def in_cell_plate(site: Any) -> bool:
    """Tell whether a site is one per cell rather than global."""
    return any(frame.name == "cells" for frame in site["cond_indep_stack"])
