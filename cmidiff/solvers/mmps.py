"""Moment matching posterior sampling: the Gaussian likelihood with the covariance of Tweedie's formula.

    x_hat' = x_hat + g J^T A^T u,    (sigma_y^2 I + g A J^T A^T) u = y - A x_hat,    g = sigma_t^2 / alpha_t

The system is solved by a few iterations of GMRES, each a vector-Jacobian product. The Jacobian of a network is not
symmetric, and GMRES reduces the residual of any system. With the exact Jacobian of a Gaussian prior and enough
iterations this is the exact posterior mean. `cmidiff.solvers.CADPS` with ``covariance="exact"`` is the same formula
with preconditioned conjugate gradients that stop at the first direction of negative curvature.

Rozet, Andry, Lanusse, Louppe, "Learning Diffusion Priors from Observations by Expectation Maximization", 2024,
https://arxiv.org/abs/2405.13712
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from cmidiff.config import Iterations, NotNegative
from cmidiff.covariance.base import NOISE_FLOOR
from cmidiff.krylov import conjugate_gradient, gmres
from cmidiff.solvers.base import PosteriorMean, fitted
from cmidiff.step import Step

Method = Literal["gmres", "cg"]


@dataclass(frozen=True)
class MMPS(PosteriorMean):
    """Moment matching posterior sampling, for linear physics.

    Args:
        iterations: of the linear system, each a product with the Jacobian.
        method: ``gmres``, or ``cg`` for a Jacobian that is known to be symmetric and positive.
        scale: factor on the guidance; 1 is the formula, 0 the unconditional sampler.
        guard: shorten a move that overshoots, as in `CADPS`. The paper has no guard.
    """

    iterations: Iterations = 3
    method: Method = "gmres"
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
        m, gain = step.measurement, step.covariance_gain
        residual, noise = m.residual(x_hat), m.noise_std or NOISE_FLOOR

        def system(u: Tensor) -> Tensor:
            return noise**2 * u + m.A(gain * step.vjp(m.At(u)))

        if self.method == "gmres":
            found = gmres(system, residual, iterations=self.iterations)
        else:
            found = conjugate_gradient(system, residual, iterations=self.iterations, tolerance=0.0)
        step.record.residuals.append(found.residual)
        w = m.At(found.x)
        move = gain * step.vjp(w, last=True)
        return x_hat + self.scale * (fitted(step, move, w, residual) if self.guard else move)
