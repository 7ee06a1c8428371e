"""Reading a Pyro trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyro.poutine.util import site_is_subsample

if TYPE_CHECKING:
    from pyro.poutine import Trace

__all__ = ["in_cell_plate", "latent_sites", "marginal"]


def latent_sites(
    trace: Trace, *, auxiliary: bool = False, observed: bool = False
) -> dict[str, Any]:
    """Return the latent sample sites of a trace by name, without plates' subsampling.

    Parameters
    ----------
    trace
        Of a model or a guide.
    auxiliary
        Whether to include a guide's auxiliary sites, which stand for no variable of the model:
        an AutoGuide's draw before it is split and constrained.
    observed
        Whether to include sites with a given value.
    """
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and (observed or not site["is_observed"])
        and not site_is_subsample(site)
        and (auxiliary or not (site["infer"] or {}).get("is_auxiliary"))
    }


def marginal(site: Any) -> Any:
    """Return the distribution of a site alone, by its mean and variance.

    A guide that samples one site given another says what it is alone by
    ``infer={"marginal": distribution}``; otherwise it is the site's own distribution.
    """
    return site["infer"].get("marginal", site["fn"])


def in_cell_plate(site: Any) -> bool:
    """Tell whether a site is one per cell rather than global."""
    return any(frame.name == "cells" for frame in site["cond_indep_stack"])
