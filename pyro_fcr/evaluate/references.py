"""What recovery is read against: latents without merit, and what the counts can tell at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_fcr.errors import DesignError, sentence
from pyro_fcr.evaluate.conditions import (
    condition_codes,
    latent_matrix,
    ranks_within,
    within_condition,
)
from pyro_fcr.evaluate.prediction import cell_values, principal_components
from pyro_fcr.evaluate.recovery import recovery

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.floating[Any]]

__all__ = ["ceiling", "null_latents"]


def null_latents(
    counts: Any,
    truth: Mapping[str, ArrayLike],
    condition: ArrayLike,
    *,
    log_normalise: bool = True,
    seed: int = 0,
) -> dict[str, dict[str, Floats]]:
    """Latents that deserve no credit, to be scored beside a model's.

    Parameters
    ----------
    counts
        (cells, genes), dense or sparse.
    truth
        True blocks (cells, d) by name.
    condition
        Labels (cells,).
    log_normalise
        log1p of counts per 10,000 first; off for Gaussian observations.
    seed
        Seed of the noise.

    Returns
    -------
    nulls
        ``noise`` (independent N(0, 1)), ``label_only`` (the true condition means) and ``pca``
        (every block given as many components as all true blocks together).
    """
    true = {name: latent_matrix(name, a) for name, a in truth.items()}
    codes = condition_codes(condition, len(next(iter(true.values()))))
    rng = np.random.default_rng(seed)
    values = cell_values(counts, log_normalise=log_normalise)
    total = min(sum(a.shape[1] for a in true.values()), min(values.shape) - 1)
    components = principal_components(values, total, log_normalise=False).transform(values)
    return {
        "noise": {name: rng.standard_normal(a.shape) for name, a in true.items()},
        "label_only": {name: a - within_condition(a, codes) for name, a in true.items()},
        "pca": dict.fromkeys(true, components),
    }


def ceiling(
    counts: Any,
    truth: Mapping[str, ArrayLike],
    condition: ArrayLike,
    *,
    test: ArrayLike | None = None,
    log_normalise: bool = True,
    hidden: int = 128,
    max_epochs: int = 200,
    patience: int = 15,
    seed: int = 0,
    max_cells: int = 2000,
) -> pd.DataFrame:
    """Score a network trained on the true latents: what the counts can tell at all.

    Parameters
    ----------
    counts
        (cells, genes), dense or sparse.
    truth, condition
        As in `recovery`.
    test
        Boolean mask of the cells to score, which the network never sees; 30 % within condition
        unless given. A tenth of the others decides when to stop.
    log_normalise
        log1p of counts per 10,000 first; off for Gaussian observations.
    hidden, max_epochs, patience
        Width of the two hidden layers, and when to stop.
    seed
        Seed of everything drawn here.
    max_cells
        As in `recovery`.

    Returns
    -------
    scores
        As `recovery` gives them for the network's predictions on the test cells.
    """
    true = {name: latent_matrix(name, a) for name, a in truth.items()}
    y_nd = np.concatenate(list(true.values()), axis=1)
    codes = condition_codes(condition, len(y_nd))
    rng = np.random.default_rng(seed)
    order = ranks_within(codes, rng)
    test_n = order < 0.3 if test is None else np.asarray(test, bool)
    # Condition-stratified ranks again: a test mask may have taken some conditions apart.
    valid_n = ~test_n & (ranks_within(codes, rng) < 0.1)
    train_n = ~test_n & ~valid_n
    if min(test_n.sum(), valid_n.sum(), train_n.sum()) < 2:
        raise DesignError(
            sentence(
                "too few cells for a supervised ceiling",
                where="test",
                expected="train, validation and test cells",
                got=f"{train_n.sum()}, {valid_n.sum()} and {test_n.sum()}",
                hint="pass more cells, or a smaller test mask",
            )
        )
    predicted = _predicted(
        cell_values(counts, log_normalise=log_normalise), y_nd, train_n, valid_n, test_n,
        hidden=hidden, max_epochs=max_epochs, patience=patience, seed=seed,
    )  # fmt: skip
    edges = np.cumsum([a.shape[1] for a in true.values()])[:-1]
    blocks = dict(zip(true, np.split(predicted, edges, axis=1), strict=True))
    return recovery(
        blocks,
        {name: a[test_n] for name, a in true.items()},
        codes[test_n],
        max_cells=max_cells,
        seed=seed,
    )


def _predicted(
    x_ng: Floats,
    y_nd: Floats,
    train_n: NDArray[np.bool_],
    valid_n: NDArray[np.bool_],
    test_n: NDArray[np.bool_],
    *,
    hidden: int,
    max_epochs: int,
    patience: int,
    seed: int,
) -> Floats:
    """Predict y from x on test cells, by a network that stops where validation cells say so."""
    import torch

    x_center, x_spread = x_ng[train_n].mean(0), x_ng[train_n].std(0)
    y_center, y_spread = y_nd[train_n].mean(0), y_nd[train_n].std(0)
    x_ng = (x_ng - x_center) / np.where(x_spread > 1e-8, x_spread, 1.0)
    y_scaled = (y_nd - y_center) / np.where(y_spread > 1e-8, y_spread, 1.0)
    x = torch.as_tensor(x_ng, dtype=torch.float32)
    y = torch.as_tensor(y_scaled, dtype=torch.float32)
    # The caller's random state is put back: a metric must not change what is trained after it.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = torch.nn.Sequential(
            torch.nn.Linear(x.shape[1], hidden),
            torch.nn.GELU(),
            torch.nn.Dropout(0.1),
            torch.nn.Linear(hidden, hidden),
            torch.nn.GELU(),
            torch.nn.Linear(hidden, y.shape[1]),
        )
        optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
        rows = torch.as_tensor(np.flatnonzero(train_n))
        valid = torch.as_tensor(np.flatnonzero(valid_n))
        best, waited = float("inf"), 0
        kept = {key: value.clone() for key, value in net.state_dict().items()}
        for _ in range(max_epochs):
            net.train()
            for batch in rows[torch.randperm(len(rows))].split(256):
                optimiser.zero_grad()
                torch.nn.functional.mse_loss(net(x[batch]), y[batch]).backward()
                optimiser.step()
            net.eval()
            with torch.no_grad():
                loss = torch.nn.functional.mse_loss(net(x[valid]), y[valid]).item()
            waited += 1
            if loss < best:
                best, waited = loss, 0
                kept = {key: value.clone() for key, value in net.state_dict().items()}
            if waited >= patience:
                break
        net.load_state_dict(kept)
        net.eval()
        with torch.no_grad():
            predicted = net(x[torch.as_tensor(np.flatnonzero(test_n))]).numpy()
    return predicted * y_spread + y_center
