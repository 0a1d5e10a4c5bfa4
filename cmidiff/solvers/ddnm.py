"""The denoising null-space model: the measured part of the denoised image is replaced by the measurement.

    x_0 = x_hat + A^+ (y - A x_hat),    x_s = alpha_s x_0 + c eps + std z,    eps = (x_t - alpha_t x_hat) / sigma_t

where ``c = sqrt(sigma_s^2 - std^2)`` and ``std`` are those of the sampler, and ``eps`` is the network's own noise, not
recomputed from ``x_0``. Without noise the result satisfies ``A x = y`` exactly.

With noise (DDNM+) the replaced part carries noise of its own, ``alpha_s sigma_y / w`` along a direction with the
singular value ``w``. What the sampler adds there is reduced by it, so that ``x_s`` has noise of the level ``sigma_s``
in every direction:

    alpha_s sigma_y < w sigma_s:  the whole correction, fresh noise of variance sigma_s^2 - (alpha_s sigma_y / w)^2
    otherwise:                    the correction times w c / (alpha_s sigma_y), fresh noise std
    w = 0:                        no correction, c eps + std z

These are functions of ``A^T A``: products in the singular basis where the physics declares it, the Lanczos method
otherwise (`Measurement.filter`). No basis of ``A`` enters the result.

Wang, Yu, Zhang, "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model", 2022,
https://arxiv.org/abs/2212.00490
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cmidiff.config import Count, Fraction, NotNegative
from cmidiff.samplers import Renoise
from cmidiff.solvers.base import Solver, travel
from cmidiff.step import Carry, Problem, Sampler, Step


@dataclass(frozen=True)
class DDNM(Solver):
    """The denoising null-space model, for linear physics; DDNM+ where the measurement has noise.

    Args:
        eta: of the sampler that a run takes where it names none: ``std = eta sigma_s``.
        length, repeat: time travel, see `cmidiff.solvers.base.travel`: each stretch of ``length`` steps is made
            ``repeat`` times. The run then takes about ``repeat`` times as many steps.
        scale: factor on the correction; 1 is the formula, 0 the unconditional sampler.
    """

    eta: Fraction = 0.85
    length: Count = 1
    repeat: Count = 1
    scale: NotNegative = 1.0

    kind: ClassVar[str] = "posterior mean"
    needs_linear: ClassVar[bool] = True
    default_steps: ClassVar[int] = 100

    @property
    def sampler(self) -> Sampler:
        return Renoise(self.eta**2)

    def times(self, problem: Problem, steps: int) -> Sequence[float]:
        return travel(super().times(problem, steps), self.length, self.repeat)

    def step(self, step: Step, carry: Carry) -> tuple[Tensor, Carry]:
        x_s, carry = step.advance(carry)
        return (x_s if self.scale == 0 else x_s + self.scale * self._move(step)), carry

    def _move(self, step: Step) -> Tensor:
        """What the measurement adds to ``x_s``."""
        m, (alpha_s, sigma_s) = step.measurement, step.level_s
        x_hat = step.clipped(step.x_hat.detach())
        residual = m.residual(x_hat)
        if m.noise_std == 0:
            return alpha_s * m.solve(residual, 1.0, step.record.residuals)
        if step.last:
            return torch.zeros_like(x_hat)
        own, std = abs(step.coefficients[0]) * step.level_t[1], step.std  # of eps and z in the sampler's x_s
        eps = (step.x_t.detach() - step.level_t[0] * x_hat) / step.level_t[1]
        z = step.draws.normal("guidance", step.index, x_hat) if step.sampler.silent else step.z

        def strong(w2: Tensor) -> Tensor:
            """Directions in which the noise of the measurement is below that of ``x_s``."""
            return w2 * sigma_s**2 > (alpha_s * m.noise_std) ** 2

        def correction(w2: Tensor) -> Tensor:
            weak = torch.where(w2 > 0, own / (alpha_s * m.noise_std * w2.sqrt()), 0.0)
            return torch.where(strong(w2), 1 / w2, weak)

        def fresh(w2: Tensor) -> Tensor:
            spread = (sigma_s**2 - (alpha_s * m.noise_std) ** 2 / w2).clamp_min(0.0).sqrt()
            return torch.where(strong(w2), spread - (std if isinstance(std, float) else 0.0), 0.0)

        move = alpha_s * m.filter(m.At(residual), correction) + m.filter(z, fresh)
        move = move - m.filter(own * eps, lambda w2: (w2 > 0).to(w2))
        return move if isinstance(std, float) else move - m.filter(std * z, lambda w2: strong(w2).to(w2))
