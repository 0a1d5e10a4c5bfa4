"""Tweedie moment projection: the covariance of ``y`` given ``x_t`` is taken as diagonal, with the sums of its rows.

    x_hat' = x_hat + g J^T A^T u,    u = (y - A x_hat) / (sigma_y^2 + g A J^T A^T 1),    g = sigma_t^2 / alpha_t

The division is element by element. ``g A J^T A^T`` is the covariance ``A Cov(x_0 | x_t) A^T`` of what is measured, and
``A J^T A^T 1`` costs one vector-Jacobian product. A row sum is the variance where the covariance is diagonal;
correlated entries make it larger, and anticorrelated ones smaller, down to negative values. The sums are therefore
bounded below by a fraction of ``r_t^2 |A|_F^2 / m``, the mean variance of the isotropic covariance. A move that
overshoots is fitted (see `cmidiff.solvers.cadps`). ``guard=False`` is the literal rule.

Boys, Girolami, Pidstrigach, Reich, Mosca, Akyildiz, "Tweedie Moment Projected Diffusions for Inverse Problems", 2023,
https://arxiv.org/abs/2310.06721
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cmidiff.config import NotNegative
from cmidiff.covariance import isotropic_variance
from cmidiff.krylov import dot, per_sample
from cmidiff.physics import measured_count
from cmidiff.solvers.base import PosteriorMean, fitted
from cmidiff.step import Step

FLOOR = 0.1  # of the mean isotropic variance: least sum of a row


@dataclass(frozen=True)
class TMPD(PosteriorMean):
    """Tweedie moment projection, for linear physics.

    Args:
        scale: factor on the guidance; 1 is the formula, 0 the unconditional sampler.
        guard: bound the sums of rows below and shorten a move that overshoots. The paper has no guard.
    """

    scale: NotNegative = 1.0
    guard: bool = True

    needs_linear: ClassVar[bool] = True

    @property
    def needs_graph(self) -> bool:
        return self.scale > 0

    def estimate(self, step: Step) -> Tensor:
        """``x_hat'``."""
        x_hat = step.x_hat.detach()
        if self.scale == 0:
            return x_hat
        m = step.measurement
        residual = m.residual(x_hat)
        w = m.At(residual / (m.noise_std**2 + self.variances(step)))
        move = step.covariance_gain * step.vjp(w, last=True)
        return x_hat + self.scale * (fitted(step, move, w, residual) if self.guard else move)

    def variances(self, step: Step) -> Tensor:
        """``g A J^T A^T 1``, bounded below by the guard, shape of ``y``."""
        m = step.measurement
        sums = step.covariance_gain * m.A(step.vjp(m.At(torch.ones_like(m.y))))
        if not self.guard:
            return sums
        signs = torch.where(step.draws.normal("covariance", step.index, m.y) < 0, -1.0, 1.0).to(m.y)
        pulled = m.At(signs)
        mean = dot(pulled, pulled) / measured_count(m.physics, m.y).to(pulled)
        return sums.clamp_min(per_sample(FLOOR * isotropic_variance(step) * mean, sums))
