"""Closed-form divergences that torch and Pyro do not register."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Independent, LowRankMultivariateNormal, Normal, register_kl

__all__ = ["kl_mean_field_low_rank"]


@register_kl(Independent, LowRankMultivariateNormal)
def kl_mean_field_low_rank(p: Independent, q: LowRankMultivariateNormal) -> Tensor:
    r"""KL of a diagonal Gaussian from one of covariance :math:`W W^\top + D`.

    By Woodbury, the diagonal of the precision is :math:`1/D - \sum_r A_{ir}^2` with
    :math:`A = D^{-1} W \operatorname{chol}(I + W^\top D^{-1} W)^{-\top}`.
    """
    if not (isinstance(p.base_dist, Normal) and p.reinterpreted_batch_ndims == 1):
        raise NotImplementedError
    scaled = q.cov_factor / q.cov_diag.unsqueeze(-1)
    eye = torch.eye(scaled.shape[-1], dtype=scaled.dtype, device=scaled.device)
    capacitance = torch.linalg.cholesky_ex(q.cov_factor.mT @ scaled + eye).L
    root = torch.linalg.solve_triangular(capacitance, scaled.mT, upper=False)
    precision = 1 / q.cov_diag - root.square().sum(-2)
    # Minus the entropy of p, and the cross entropy: at p's mean, plus its spread's share.
    spread = 0.5 * (precision * p.variance).sum(-1)
    return spread - q.log_prob(p.mean) - p.entropy()
