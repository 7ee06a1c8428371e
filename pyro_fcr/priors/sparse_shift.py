"""Sparse mechanism shifts: a treatment moves a few latents and leaves the others alone."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from pyro.nn import PyroSample
from torch import Tensor, nn

from pyro_fcr.distributions import StraightThroughBernoulli, spike_and_slab
from pyro_fcr.errors import SlotError, sentence
from pyro_fcr.nn import sparse_rotation
from pyro_fcr.priors.base import Prior

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyro_fcr.data import Batch, Design
    from pyro_fcr.nn import Block

__all__ = ["SparseShift"]

log = logging.getLogger(__name__)

GAIN = 5.0
"""Shifts are stored divided by this, as in :class:`~pyro_fcr.nn.ConditionTable`."""

START = 10.0
"""The sparsity that learning starts from."""

OPEN = 6.0
"""Log-odds of every target before any is pruned."""

LOGIT = 12.0
"""Beyond it no draw of a mask ever differs."""


class SparseShift(Prior):
    r"""Mask times shift at the cell's treatment: the prior of sVAE+.

    .. math::
        \pi_{aj} \sim \operatorname{Beta}(1, \lambda),\quad
        m_{aj} \sim \operatorname{Bernoulli}(\pi_{aj}),\quad
        \mu_{aj} \sim N(0, \sigma^2),\qquad
        z \sim N\Bigl(\sum_a t_a\, m_a \odot \mu_a,\; I\Bigr)

    with t the dose-weighted multi-hot row in units of training's doses: the control is the
    origin, combinations add, doses scale (Lopez et al., CLeaR 2023, arXiv 2211.03553). Every
    :math:`\pi_{aj}` meets one mask alone and is integrated out: m is Bernoulli(1/(1 + λ)).

    The masks' guide is a straight-through relaxed Bernoulli with an analytic divergence
    (:class:`~pyro_fcr.distributions.StraightThroughBernoulli`). Its gradient alone finds no
    sparse axes. So while a model is fitted, the block is turned onto the axes in which the
    treatments' effects are sparse (:meth:`axes`), and the posterior of masks and shifts is set to
    its optimum given the cells', a spike and slab in closed form (:meth:`settle`).

    Globals: ``mask`` and ``shift``, both (T, d). In a block whose parents have no treatment there
    is none to shift it: it has N(0, I).

    Parameters
    ----------
    sparsity
        λ, at least 1: prior odds of λ against each target. By default learned by maximum marginal
        likelihood, never below 1.
    bayesian
        Whether shifts have a Gaussian prior, its scale learned, and a posterior. Otherwise they
        are free parameters, and nothing but λ holds a small shift back.
    temperature
        Of the masks' relaxation.
    """

    mask: Any
    shift: Any
    dose_unit: Tensor
    discrepancy: Tensor

    def __init__(
        self,
        sparsity: float | None = None,
        bayesian: bool = True,
        temperature: float = 0.5,
    ) -> None:
        super().__init__()
        if sparsity is not None and not 1 <= sparsity < math.inf:
            raise SlotError(
                sentence(
                    "no sparsity",
                    where="SparseShift(sparsity=)",
                    expected="at least 1, the prior odds against a target",
                    got=repr(sparsity),
                    hint="leave it out to learn it; 100 is the paper's best",
                )
            )
        self.sparsity, self.bayesian, self.temperature = sparsity, bayesian, temperature

    def bind(self, block: Block, design: Design) -> None:
        """Make masks and shifts of every treatment that the block reads."""
        n = design.n_treatments if "treatment" in block.parents else 0
        shape = n, block.size
        if not n:
            log.info("%s: no treatment among its parents, so no shift in its prior", block.name)
        self.register_buffer("dose_unit", torch.tensor(design.dose_unit[:n]), persistent=False)
        start = START if self.sparsity is None else float(self.sparsity)
        self.log_sparsity = nn.Parameter(torch.tensor(math.log(start)), requires_grad=False)
        self.slab_log_scale = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("discrepancy", torch.tensor(0.0))
        self.mask_logits = nn.Parameter(torch.full(shape, OPEN))
        self.shift_loc = nn.Parameter(0.5 / GAIN * torch.randn(shape))
        self.shift_log_scale = nn.Parameter(torch.full(shape, -2.0))
        self.mask = PyroSample(lambda prior: prior.mask_prior())
        if self.bayesian:
            self.shift = PyroSample(lambda prior: prior.shift_prior())

    def mask_prior(self) -> dist.TorchDistribution:
        """Return the masks' prior, Bernoulli(1/(1 + λ)); event shape (T, d)."""
        logits = -self.log_sparsity
        return dist.Bernoulli(logits=logits.expand(self.mask_logits.shape)).to_event(2)

    def shift_prior(self) -> dist.TorchDistribution:
        """Return the shifts' prior given the masks; event shape (T, d).

        Where the mask is zero a shift has no effect, and whatever is assumed of it changes
        nothing: its own posterior is, a pseudo-prior (Carlin & Chib 1995). So it costs nothing.
        """
        on, off = self.mask, 1 - self.mask
        loc, scale = GAIN * self.shift_loc.detach(), self.shift_log_scale.detach().exp()
        return dist.Normal(off * loc, on * self.slab_log_scale.exp() + off * scale).to_event(2)

    def guide_globals(self) -> None:
        """Sample masks and shifts from their posterior."""
        masks = StraightThroughBernoulli(logits=self.mask_logits, temperature=self.temperature)
        self.sample_own("mask", masks.to_event(2))
        if self.bayesian:
            shifts = dist.Normal(GAIN * self.shift_loc, self.shift_log_scale.exp())
            self.sample_own("shift", shifts.to_event(2))

    def forward(self, batch: Batch) -> dist.TorchDistribution:
        """Return N(t · (mask × shift), I) with batch shape (B,) and event shape (d,)."""
        shift = self.shift if self.bayesian else GAIN * self.shift_loc
        dose = self._dose(batch).unsqueeze(1)
        return dist.Normal((dose @ (self.mask * shift)).squeeze(-2), 1.0).to_event(1)

    def effects(
        self, posteriors: Mapping[str, dist.TorchDistribution]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what treatments do to latents, per unit of training's doses.

        Parameters
        ----------
        posteriors
            The guide's distribution of each global, by its name.

        Returns
        -------
        tuple of Tensor
            Shape (T, d) each: the posterior probability that a treatment moves a latent, and the
            mean and standard deviation of the shift if it does.
        """
        inclusion = posteriors["mask"].mean
        if self.bayesian:
            return inclusion, posteriors["shift"].mean, posteriors["shift"].variance.sqrt()
        return inclusion, GAIN * self.shift_loc, self.shift_log_scale.exp()

    # ---- what the fit asks of it -----------------------------------------------------------

    @torch.no_grad()
    def axes(self, batch: Batch, size: Tensor, loc: Tensor, covariance: Tensor) -> Tensor:
        """Return the matrix onto the axes in which cells are white and effects sparse.

        Within a condition z has the identity as its covariance, which leaves a rotation open;
        of all rotations the one is taken in which the treatments move the fewest axes.

        Parameters
        ----------
        batch
            One cell per condition, C of them.
        size
            Shape (C,): their numbers of cells.
        loc, covariance
            Shapes (C, d) and (C, d, d), float64: moments of their aggregate posteriors.

        Returns
        -------
        Tensor
            Shape (d, d), float64.
        """
        pooled = (size[:, None, None] * covariance).sum(0) / size.sum()
        white = torch.linalg.inv(torch.linalg.cholesky(pooled))
        gram, cross = self._normal_equations(batch, size, loc @ white.T)
        seen = gram.diagonal() > 0
        if not seen.any():
            return white
        effect = _least_squares(gram, cross)[seen]
        noise = float(gram.diagonal()[seen].rsqrt().median())
        return sparse_rotation(effect, noise) @ white

    @torch.no_grad()
    def settle(
        self,
        batch: Batch,
        size: Tensor,
        loc: Tensor,
        variance: Tensor,
        *,
        rows: Tensor | None = None,
        dense: bool = False,
    ) -> None:
        """Set the posterior of masks and shifts to its optimum given the cells' posteriors.

        A spike and slab in closed form (:func:`~pyro_fcr.distributions.spike_and_slab`), in which
        what the counts do not tell of a cell's z is not counted as evidence.

        Parameters
        ----------
        batch
            One cell per condition, C of them.
        size
            Shape (C,): their numbers of cells.
        loc
            Shape (C, d): means of their cells' posterior means.
        variance
            Shape (d,): posterior variance, averaged over cells.
        rows
            Shape (T,), bool: the treatments to settle, everything else held; by default all, and
            λ, σ and the discrepancy with them.
        dense
            Set the shifts alone, by least squares, and open every mask: while the networks have
            yet to find out what treatments do, a mask that closed would keep them from it.
        """
        gram, cross = self._normal_equations(batch, size, loc)
        if not len(gram):
            return
        if dense:
            self.mask_logits.fill_(OPEN)
            self.shift_loc.copy_(_least_squares(gram, cross) / GAIN)
            return
        information = (1 - variance.double()).clamp_min(0.02)
        known = None
        if rows is None:
            rows = torch.ones(len(gram), dtype=torch.bool)
        else:
            cross = cross - gram[:, ~rows] @ self._expected()[~rows].to(cross)
            known = self.log_sparsity.exp(), self.slab_log_scale.exp(), self.discrepancy
        found = spike_and_slab(
            gram[rows][:, rows], cross[rows], information, self.sparsity, known=known
        )
        self.mask_logits[rows] = found.logits_td.clamp(-LOGIT, LOGIT).to(self.mask_logits)
        self.shift_loc[rows] = (found.loc_td / GAIN).to(self.shift_loc)
        self.shift_log_scale[rows] = found.scale_td.log().to(self.shift_log_scale)
        if known is None:
            self.log_sparsity.copy_(found.sparsity.log())
            self.slab_log_scale.copy_(found.slab.log())
            self.discrepancy.copy_(found.discrepancy)

    @torch.no_grad()
    def expected(self, batch: Batch) -> Tensor:
        """Return the mean under the posterior of masks and shifts, on the batch's device.

        Parameters
        ----------
        batch
            One cell per condition, C of them.

        Returns
        -------
        Tensor
            Shape (C, d).
        """
        return self._dose(batch) @ self._expected().to(batch.device)

    @torch.no_grad()
    def turn(self, columns: slice, inverse: Tensor) -> None:
        """Follow latents z' = A z in some columns: shifts turn with them and every mask opens.

        Parameters
        ----------
        columns
            Columns of the latents.
        inverse
            A⁻¹.
        """
        turned = torch.linalg.solve(inverse, self._expected()[:, columns].T).T
        self.shift_loc[:, columns] = turned / GAIN
        self.mask_logits[:, columns] = OPEN

    def _dose(self, batch: Batch) -> Tensor:
        return batch.treatment[:, : len(self.dose_unit)] / self.dose_unit.to(batch.device)

    def _expected(self) -> Tensor:
        return torch.sigmoid(self.mask_logits) * GAIN * self.shift_loc

    def _normal_equations(self, batch: Batch, size: Tensor, loc: Tensor) -> tuple[Tensor, Tensor]:
        dose = self._dose(batch).double()
        weighted = dose * size[:, None]
        return dose.T @ weighted, weighted.T @ loc


def _least_squares(gram: Tensor, cross: Tensor) -> Tensor:
    # A cell's worth of ridge: treatments without cells have no effect.
    return torch.linalg.solve(gram + torch.eye(len(gram), dtype=gram.dtype), cross)
