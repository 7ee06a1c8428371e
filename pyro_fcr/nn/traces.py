"""Reading a Pyro trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyro.poutine.util import site_is_subsample

from pyro_fcr.errors import SlotError, sentence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyro.poutine import Trace

__all__ = ["Posteriors", "in_cell_plate", "latent_sites", "marginal"]


class Posteriors(dict[str, Any]):
    """The cells' posteriors by site: of each site alone, and of all together.

    Parameters
    ----------
    sites
        A guide's sites in the cell plate, by name.
    """

    def __init__(self, sites: Mapping[str, Any]) -> None:
        super().__init__({name: marginal(site) for name, site in sites.items()})
        told = [site["infer"] for site in sites.values()]
        self._dependent = any("marginal" in one for one in told)
        self._joint = next((one["joint"] for one in told if "joint" in one), None)

    @property
    def joint(self) -> Any:
        """All sites side by side, where they depend on one another; ``None`` if they do not.

        Raises
        ------
        SlotError
            If they depend on one another in a way that has no density of some alone.
        """
        if self._dependent and self._joint is None:
            raise SlotError(
                sentence(
                    "the guide has no density of a block alone",
                    where="guide=",
                    expected="independent blocks, or Gaussian ones as guides.Joint gives",
                    got=f"blocks that depend on one another: {list(self)}",
                    hint="use a penalty that reads draws, such as DensityRatioTC",
                )
            )
        return self._joint


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
    ``infer={"marginal": distribution}``; otherwise it is the site's own distribution. Where it
    knows, it adds by ``"joint"`` the distribution of all such sites side by side, which gives
    that of some columns alone by ``over(columns)``.
    """
    return site["infer"].get("marginal", site["fn"])


def in_cell_plate(site: Any) -> bool:
    """Tell whether a site is one per cell rather than global."""
    return any(frame.name == "cells" for frame in site["cond_indep_stack"])
