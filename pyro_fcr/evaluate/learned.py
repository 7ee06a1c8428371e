"""Baselines that learn a little: kernel ridge, shifts along principal components, a decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_fcr.evaluate.baselines import (
    Additive,
    Baseline,
    ControlMean,
    NearestCondition,
    Noise,
    Ridge,
    TreatedMean,
)
from pyro_fcr.evaluate.prediction import cell_values, log_normalised

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    import pandas as pd
    from numpy.typing import NDArray

    from pyro_fcr.evaluate.baselines import Training

    Floats = NDArray[np.floating[Any]]

__all__ = ["BASELINES", "DecoderOnly", "KernelRidge", "LatentAdditive", "PCAAdditive"]


class KernelRidge(Baseline):
    """Kernel ridge of the changes on treatment and on the similarity of controls.

    With k(x, x') a Gaussian kernel of the control profiles (width: their median distance), the
    kernel of conditions is k(x, x') + [t = t'] (1 + k(x, x')): a common change, the treatment's,
    and an interaction shared between similar covariates. The ridge with the least leave-one-out
    error is taken.

    Parameters
    ----------
    alphas
        Ridges to choose from.
    """

    name = "kernel ridge"

    def __init__(self, alphas: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)) -> None:
        self.alphas = alphas

    def _predict(self, train: pd.DataFrame, treatment: str, covariate: str) -> Floats:
        own = self._own_control(train, covariate)
        if treatment == self.training.control:
            return own
        self._of_treatment(train, treatment)
        changes = self.training.changes(train)
        if changes.empty:
            raise self._unknown("treatment", treatment, "a covariate with both it and a control")
        t, x = (np.asarray(changes.index.get_level_values(i)) for i in (0, 1))
        t, x = np.append(t, treatment), np.append(x, covariate)
        controls = np.stack([self._own_control(train, c) for c in x])
        square = ((controls[:, None] - controls[None]) ** 2).sum(-1)
        apart = square[square > 1e-12]
        near = np.exp(-square / (np.median(apart) if len(apart) else 1.0))
        kernel = near + (t[:, None] == t[None]) * (1 + near)
        k, asked, y = kernel[:-1, :-1], kernel[-1, :-1], changes.to_numpy()
        best, out = np.inf, y.mean(0)
        for alpha in self.alphas:
            inverse = np.linalg.inv(k + alpha * np.eye(len(k)))
            weight = inverse @ y
            error = float(((weight / np.diag(inverse)[:, None]) ** 2).sum())
            if error < best:
                best, out = error, asked @ weight
        return own + out


class PCAAdditive(Baseline):
    """The additive change, kept to the leading principal directions of the training changes.

    Parameters
    ----------
    n_components
        Directions kept.
    """

    name = "PCA + additive"

    def __init__(self, n_components: int = 10) -> None:
        self.n_components = n_components

    def _predict(self, train: pd.DataFrame, treatment: str, covariate: str) -> Floats:
        own = self._own_control(train, covariate)
        if treatment == self.training.control:
            return own
        self._of_treatment(train, treatment)
        changes = self.training.changes(train)
        of_t = changes[changes.index.get_level_values(0) == treatment].to_numpy()
        if not len(of_t):
            raise self._unknown("treatment", treatment, "a covariate with both it and a control")
        directions = np.linalg.svd(changes.to_numpy(), full_matrices=False)[2][: self.n_components]
        return own + of_t.mean(0) @ directions.T @ directions


class LatentAdditive(Baseline):
    """The own control's cells, each moved along principal components of cells, then averaged.

    The shift is the treatment's mean change of scores in the other covariates; scores are of
    log1p of counts per 10,000, and a moved cell's values are cut at 0.

    Parameters
    ----------
    n_components
        Principal components, of at most ``max_cells`` training cells.
    max_cells
        Cells the components are computed from, and cells of a condition at most.
    seed
        Seed of these draws.
    """

    name = "latent additive"

    def __init__(self, n_components: int = 30, max_cells: int = 2000, seed: int = 0) -> None:
        self.n_components, self.max_cells, self.seed = n_components, max_cells, seed

    def _predict(self, train: pd.DataFrame, treatment: str, covariate: str) -> Floats:
        from sklearn.decomposition import PCA

        data = self.training
        own = self._own_control(train, covariate)
        if treatment == data.control:
            return own
        rows = self._of_treatment(train, treatment)
        pairs = [x for x in rows.index.get_level_values(1) if (data.control, x) in train.index]
        if not pairs:
            raise self._unknown("treatment", treatment, "a covariate with both it and a control")
        unseen = (data.treatment == treatment) & (data.covariate == covariate)
        basis = self._cells(~unseen)
        k = min(self.n_components, len(basis) - 1, basis.shape[1])
        components = PCA(k, svd_solver="randomized", random_state=self.seed).fit(basis).components_
        shift = np.mean(
            [self._scores(treatment, x, components) - self._scores(data.control, x, components)
             for x in pairs], axis=0,
        )  # fmt: skip
        start = self._cells((data.treatment == data.control) & (data.covariate == covariate))
        moved = start + shift @ components
        if not data.log_normalise:
            return moved.mean(0)
        return log_normalised(np.expm1(np.clip(moved, 0, None)).sum(0))[0]

    def _cells(self, mask: NDArray[np.bool_]) -> Floats:
        rows = np.random.default_rng(self.seed).permutation(np.flatnonzero(mask))
        kept = self.training.counts[np.sort(rows[: self.max_cells])]
        return cell_values(kept, log_normalise=self.training.log_normalise)

    def _scores(self, treatment: str, covariate: str, components: Floats) -> Floats:
        data = self.training
        cells = self._cells((data.treatment == treatment) & (data.covariate == covariate))
        return (cells @ components.T).mean(0)


class DecoderOnly(Baseline):
    """Embeddings of treatment and covariate, added and decoded by a small network to the profile.

    No encoder and no cells: what a model of conditions knows without looking at one. Trained on
    profiles by squared error; the control's embedding is 0.

    Parameters
    ----------
    size, hidden
        Dimensions of the embedding and of the hidden layer.
    steps
        Full-batch steps of AdamW.
    seed
        Seed of the start.
    """

    name = "decoder only"

    def __init__(self, size: int = 8, hidden: int = 64, steps: int = 200, seed: int = 0) -> None:
        self.size, self.hidden, self.steps, self.seed = size, hidden, steps, seed

    def _predict(self, train: pd.DataFrame, treatment: str, covariate: str) -> Floats:
        self._own_control(train, covariate)
        self._of_treatment(train, treatment)
        # Conditions outside of training share one network; a trained one is left out of its own.
        key = (treatment, covariate) if len(train) < len(self.training.profiles) else None
        if key not in self._networks:
            self._networks[key] = self._train(train)
        return self._networks[key](treatment, covariate)

    def fit(self, training: Training) -> Self:
        """Keep the training cells."""
        self._networks: dict[tuple[str, str] | None, Callable[[str, str], Floats]] = {}
        return super().fit(training)

    def _train(self, train: pd.DataFrame) -> Callable[[str, str], Floats]:
        import torch

        t, x = (train.index.get_level_values(i) for i in (0, 1))
        t_levels, x_levels = list(dict.fromkeys(t)), list(dict.fromkeys(x))
        center = train.to_numpy().mean(0)
        y = torch.as_tensor(train.to_numpy() - center, dtype=torch.float32)
        t_n, x_n = (
            torch.tensor([levels.index(a) for a in labels])
            for levels, labels in ((t_levels, t), (x_levels, x))
        )
        # The caller's random state is put back: a baseline must not change what comes after it.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            control = t_levels.index(self.training.control)
            of_t = torch.nn.Embedding(len(t_levels), self.size, padding_idx=control)
            of_x = torch.nn.Embedding(len(x_levels), self.size)
            net = torch.nn.Sequential(
                torch.nn.Linear(self.size, self.hidden),
                torch.nn.GELU(),
                torch.nn.Linear(self.hidden, y.shape[1]),
            )
            parts = torch.nn.ModuleList([of_t, of_x, net])
            optimiser = torch.optim.AdamW(parts.parameters(), lr=1e-2, weight_decay=1e-2)
            for _ in range(self.steps):
                optimiser.zero_grad()
                torch.nn.functional.mse_loss(net(of_t(t_n) + of_x(x_n)), y).backward()
                optimiser.step()

        def decode(treatment: str, covariate: str) -> Floats:
            asked = torch.tensor([t_levels.index(treatment), x_levels.index(covariate)])
            with torch.no_grad():
                decoded = net(of_t(asked[0]) + of_x(asked[1]))
            return center + decoded.double().numpy()

        return decode


#: Every baseline with its defaults, by the name used in tables.
BASELINES: dict[str, type[Baseline]] = {
    c.name: c
    for c in (
        ControlMean,
        TreatedMean,
        Additive,
        NearestCondition,
        Ridge,
        KernelRidge,
        PCAAdditive,
        LatentAdditive,
        DecoderOnly,
        Noise,
    )
}
