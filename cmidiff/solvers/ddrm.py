"""Denoising diffusion restoration models: each singular component of the state moves by a rule of its own.

With ``A = U diag(w) V^T``, ``q = sigma_s / alpha_s`` and bars for components in ``V``, ``x_s = alpha_s V(...)`` of

    w = 0:            x_hat + q sqrt(1 - eta^2) eps + q eta z
    w q < sigma_y:    x_hat + q sqrt(1 - eta^2) (u - w x_hat) / sigma_y + q eta z,            u = U^T y
    w q > sigma_y:    (1 - eta_b) x_hat + eta_b u / w + sqrt(q^2 - eta_b^2 sigma_y^2 / w^2) z

Every part of a case is a function of ``A^T A`` (`Measurement.filter`): the declared decomposition serves, and no basis
enters the result.

The official code treats singular values that are zero inside of the rank as measured, which puts measurement noise on
an arbitrary direction. It also drops the last projection where there is no noise, and starts at ``1 / sigma_T`` instead
of ``alpha_T`` times the noisy image. None of these is copied.

Kawar, Elad, Ermon, Song, "Denoising Diffusion Restoration Models", 2022, https://arxiv.org/abs/2201.11793
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cmidiff.config import Fraction
from cmidiff.samplers import Renoise
from cmidiff.solvers.base import Solver
from cmidiff.step import Carry, Problem, Sampler, Step


@dataclass(frozen=True)
class DDRM(Solver):
    """Denoising diffusion restoration models, for linear physics.

    Args:
        eta: fresh part of the noise where the measurement has no information, or less than the state.
        eta_b: weight of the measurement where it is more precise than the state.
    """

    eta: Fraction = 0.85
    eta_b: Fraction = 1.0

    needs_linear: ClassVar[bool] = True
    refuses_decoder: ClassVar[str] = (
        "its updates belong to one singular basis, and that of a decoder changes with the state"
    )
    default_steps: ClassVar[int] = 20

    @property
    def sampler(self) -> Sampler:
        return Renoise(self.eta**2)

    def start(self, problem: Problem, t: float) -> tuple[Tensor, Carry]:
        """The measured components at the noise level of ``t``, pure noise elsewhere."""
        m, (alpha, sigma) = problem.measurement, problem.prior.schedule(t)
        r, z = sigma / alpha, problem.draws.normal("start", 0, problem.like())

        def measured(w2: Tensor) -> Tensor:
            return torch.where(w2 * r**2 > m.noise_std**2, 1 / w2, 0.0)

        def spread(w2: Tensor) -> Tensor:
            rest = (r**2 - m.noise_std**2 / w2).clamp_min(0.0).sqrt()
            return torch.where(w2 * r**2 > m.noise_std**2, rest, r)

        return alpha * (m.filter(m.At(m.y), measured) + m.filter(z, spread)), None

    def step(self, step: Step, carry: Carry) -> tuple[Tensor, Carry]:
        m, x_hat, z = step.measurement, step.x_hat.detach(), step.z
        (alpha_t, sigma_t), (alpha_s, sigma_s) = step.level_t, step.level_s
        q, noise = sigma_s / alpha_s, m.noise_std
        kept, eps = q * math.sqrt(1 - self.eta**2), (step.x_t.detach() - alpha_t * x_hat) / sigma_t
        x_hat = step.clipped(x_hat)
        pulled = m.At(m.residual(x_hat))

        def strong(w2: Tensor) -> Tensor:
            return (w2 > 0) & ((w2 * q**2 > noise**2) | (noise == 0))

        def weak(w2: Tensor) -> Tensor:
            return (w2 > 0) & (w2 * q**2 < noise**2)

        def fresh(w2: Tensor) -> Tensor:
            spread = (q**2 - (self.eta_b * noise) ** 2 / w2).clamp_min(0.0).sqrt()
            return torch.where(strong(w2), spread, q * self.eta)

        estimate = x_hat + m.filter(pulled, lambda w2: torch.where(strong(w2), self.eta_b / w2, 0.0))
        rest = m.filter(z, fresh) + m.filter(kept * eps, lambda w2: (~(strong(w2) | weak(w2))).to(w2))
        if kept > 0 and noise > 0:
            rest = rest + m.filter(pulled, lambda w2: torch.where(weak(w2), kept / (noise * w2.sqrt()), 0.0))
        return step.update(lambda x: alpha_s * (x + rest), estimate), carry
