"""What analyses ask of a fitted model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    import torch
    from anndata import AnnData

    from pyro_fcr.data import Cells, Design, Split
    from pyro_fcr.model import LatentModel
    from pyro_fcr.penalties import Head

__all__ = ["Diagnosed", "FittedPair", "Intervened", "Reported"]


class FittedPair(Protocol):
    """A model and its guide, fitted to the cells of a design."""

    design: Design

    @property
    def model(self) -> LatentModel:
        """The generative half."""

    @property
    def guide(self) -> Any:
        """The approximate posterior."""

    @property
    def device(self) -> torch.device:
        """Where the weights live."""


class Intervened(FittedPair, Protocol):
    """What effects and predictions ask of a fitted model."""

    def encode(self, adata: AnnData | None = None) -> Cells:
        """Return data as encoded cells."""

    def descendants(self, do: Mapping[str, Any]) -> list[str]:
        """Return the blocks an intervention redraws."""


class Diagnosed(FittedPair, Protocol):
    """What a diagnosis asks of a fitted model."""

    declaration: Any

    @property
    def history(self) -> pd.DataFrame:
        """The training curves."""


class Reported(Intervened, Diagnosed, Protocol):
    """What the report page asks of a fitted model."""

    settings: dict[str, Any]

    @property
    def heads(self) -> Mapping[str, Head]:
        """The classifiers in the objective, by name."""

    def targets(self, block: str | None = None, *, level: float = ...) -> pd.DataFrame:
        """Return which latents every treatment moves, and how far."""

    def evaluate(
        self,
        adata: AnnData | None = None,
        split: Split | None = None,
        *,
        draws: int = ...,
        by_condition: bool = ...,
        seed: int = ...,
    ) -> pd.DataFrame:
        """Score predictions beside baselines."""
