"""Monte Carlo guided diffusion: particles that are conditioned on the measurement where it is more precise than they
are.

In the singular basis of ``A`` a measured component ``u / w`` has noise ``sigma_y / w``, so that it is a noisy state of
the level ``r_tau = sigma_y / w``. At a level ``t`` above it, that component of ``x_t`` is likely around ``M_t = alpha_t
u / w`` with the variance ``V_t = alpha_t^2 (r_t^2 - r_tau^2 + kappa (1 + r_tau^2))``, ``r_t = sigma_t / alpha_t``.
Particles move to

    K M_s + (1 - K) mean + sqrt(V_s K) z,    K = std^2 / (std^2 + V_s)

along the components with ``r_s >= r_tau``, and with the sampler along the others. Their weights are the likelihood of
``M_s`` before the move, over that of ``M_t`` at the state. Below all ``r_tau`` the particles are those of the sampler,
and are weighed by the likelihood at the end.

The normalising constants are the same for all particles and left out, so that there is no estimate of the evidence.
The official code subtracts the potential of the first state, which was never added; here it does not enter.

Cardoso, Janati El Idrissi, Le Corff, Moulines, "Monte Carlo Guided Diffusion for Bayesian Linear Inverse Problems",
2023, https://arxiv.org/abs/2308.07983
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cmidiff.config import Fraction, Positive
from cmidiff.krylov import dot
from cmidiff.samplers import DDIM
from cmidiff.solvers.particles import Cloud, Particles, kernel_std, log_likelihood
from cmidiff.step import Sampler, Step


@dataclass(frozen=True)
class MCGDiff(Particles):
    """Monte Carlo guided diffusion, for linear physics and samplers with noise.

    Args:
        threshold: see `Particles`; the paper resamples at every step (1).
        kappa: relative variance of the measured components at their own level.
    """

    threshold: Fraction = 1.0
    kappa: Positive = 1e-4

    needs_noise: ClassVar[bool] = True
    evidence: ClassVar[bool] = False
    refuses_decoder: ClassVar[str] = (
        "its levels belong to one singular basis, and that of a decoder changes with the state"
    )
    default_steps: ClassVar[int] = 100

    @property
    def sampler(self) -> Sampler:
        return DDIM(1.0)

    def own_level(self, step: Step, w2: Tensor) -> Tensor:
        """``r_tau`` of components with the squared singular values ``w2 > 0``."""
        return step.measurement.noise_std / w2.sqrt()

    def variance(self, step: Step, w2: Tensor, level: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """``V`` at a level, and the components that are measured there."""
        alpha, sigma = level
        own = torch.where(w2 > 0, self.own_level(step, torch.where(w2 > 0, w2, 1.0)), torch.inf)
        seen = own <= (sigma / alpha) * (1 + 1e-12)
        own = torch.where(seen, own, 0.0)
        return alpha**2 * ((sigma / alpha) ** 2 - own**2 + self.kappa * (1 + own**2)).clamp_min(0.0), seen

    def distance(self, step: Step, x: Tensor, level: tuple[float, float], extra: float) -> Tensor:
        """``-sum (x - M)^2 / (V + extra) / 2`` over the components that are measured at a level, shape (B,)."""
        m, alpha = step.measurement, level[0]

        def root(w2: Tensor) -> Tensor:
            v, seen = self.variance(step, w2, level)
            return torch.where(seen, (v + extra).rsqrt(), 0.0)

        def target(w2: Tensor) -> Tensor:
            return root(w2) / torch.where(w2 > 0, w2, 1.0)

        gap = m.filter(x, root) - alpha * m.filter(m.At(m.y), target)
        return -0.5 * dot(gap, gap)

    def left(self, step: Step) -> Tensor | float:
        """What the state has been weighed by already: nothing at the start."""
        return self.distance(step, step.x_t.detach(), step.level_t, 0.0) if step.index > 0 else 0.0

    def step(self, step: Step, carry: Cloud) -> tuple[Tensor, Cloud]:
        m, mean, std = step.measurement, step.mean(step.x_hat.detach()), kernel_std(step)
        left = self.left(step)
        if step.last:
            x_0 = mean if m.noise_std > 0 else mean + m.solve(m.residual(mean), 1.0)
            return x_0, carry._replace(gain=log_likelihood(step, mean) - left, noise=torch.zeros_like(mean))
        alpha_s = step.level_s[0]

        def pull(w2: Tensor) -> Tensor:
            v, seen = self.variance(step, w2, step.level_s)
            return torch.where(seen, std**2 / (std**2 + v), 0.0)

        def target(w2: Tensor) -> Tensor:
            return pull(w2) / torch.where(w2 > 0, w2, 1.0)

        def spread(w2: Tensor) -> Tensor:
            v, seen = self.variance(step, w2, step.level_s)
            return torch.where(seen, (v * pull(w2)).sqrt(), std)

        gain = self.distance(step, mean, step.level_s, std**2) - left
        pulled = alpha_s * m.filter(m.At(m.y), target)
        moved = step.through(lambda x: x - m.filter(x, pull) + pulled, mean)
        return moved, carry._replace(gain=gain, noise=m.filter(step.z, spread))
