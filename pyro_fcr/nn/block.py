"""What a latent block is."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Block"]


@dataclass(frozen=True)
class Block:
    """A latent block of the generative model.

    Parameters
    ----------
    name
        Site name, by the paper's symbol.
    size
        Number of latent dimensions.
    parents
        What the block depends on in the causal graph: any of ``"treatment"``, ``"covariates"``
        (all of them), ``"batch"``, or single covariates by their columns' names. An intervention
        redraws the blocks that descend from what it sets.
    """

    name: str
    size: int
    parents: frozenset[str] = frozenset()
