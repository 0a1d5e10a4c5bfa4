"""Filtering posterior sampling: a noisy measurement for every level, and a particle filter through the levels.

The measurement goes through the reverse process with the noise of an image, ``y_s = alpha_s y + a (y_t - alpha_t y) +
std A z`` with ``(a, std)`` of the sampler, from ``y_T = sigma_T A z``. Given ``x_t`` and ``y_s``, with the sampler's
mean ``m_s``, the next state and the likelihood of ``y_s`` are Gaussian:

    x_s ~ N(m_s, std^2 I) given y_s = A x_s + alpha_s sigma_y n,      log w += log N(y_s; A m_s, alpha_s^2 sigma_y^2 I
                                                                                    + std^2 A A^T)

The path of ``y`` is the same for all particles of an image. The official code weighs with ``sigma_y = 0.05`` for every
noise, multiplies the log-weights of inpainting by the number of particles, and takes ``y_t`` for ``y_s``.

Dou, Song, "Diffusion Posterior Sampling for Linear Inverse Problem Solving: A Filtering Perspective", 2024,
https://openreview.net/forum?id=tplXNcHZs1
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from cmidiff.config import Fraction, Share
from cmidiff.covariance import NOISE_FLOOR
from cmidiff.krylov import dot
from cmidiff.measurement import Measurement
from cmidiff.samplers import Renoise
from cmidiff.solvers.particles import Cloud, Particles, kernel_std, log_likelihood
from cmidiff.step import Carry, Problem, Sampler, Step


@dataclass(frozen=True)
class FPS(Particles):
    """Filtering posterior sampling with particles (FPS-SMC), for linear physics and samplers with noise.

    Args:
        threshold: see `Particles`; the paper resamples at every step (1).
        renewal: of the noise at each step, in variance: the sampler that a run takes where it names none.
    """

    threshold: Fraction = 1.0
    renewal: Share = 0.95

    needs_noise: ClassVar[bool] = True
    evidence: ClassVar[bool] = False
    refuses_decoder: ClassVar[str] = (
        "it follows one linear operator through all levels, and that of a decoder changes with the state"
    )
    default_steps: ClassVar[int] = 100

    @property
    def sampler(self) -> Sampler:
        return Renoise(self.renewal)

    def start(self, problem: Problem, t: float) -> tuple[Tensor, Carry]:
        x, cloud = super().start(problem, t)
        m, (alpha, sigma) = problem.measurement, problem.prior.schedule(t)
        return x, cloud._replace(path=alpha * m.y + sigma * m.A(problem.shared("path", 0, x)))

    def level(self, step: Step, path: Tensor) -> tuple[Measurement, Tensor]:
        """The measurement of ``x_s``, with ``y_s``; and the path as the next step takes it."""
        m, (alpha_t, _), alpha_s = step.measurement, step.level_t, step.level_s[0]
        z = step.problem.shared("path", step.index + 1, step.x_t.detach())
        y_s = alpha_s * m.y + step.coefficients[0] * (path - alpha_t * m.y) + kernel_std(step) * m.A(z)
        return replace(m, y=y_s, noise_std=alpha_s * (m.noise_std or NOISE_FLOOR)), y_s

    def step(self, step: Step, carry: Cloud) -> tuple[Tensor, Cloud]:
        mean, std = step.mean(step.x_hat.detach()), kernel_std(step)
        if step.last:
            return mean, carry._replace(gain=log_likelihood(step, mean))
        at, path = self.level(step, carry.path)
        residual = at.residual(mean)
        solved = at.solve(residual, std**2, step.record.residuals)
        fit = (dot(residual, residual) - std**2 * dot(residual, at.A(solved))) / at.noise_std**2
        e = step.draws.normal("measured", step.index, at.y)
        x_s = step.through(lambda x: at.draw(x, std**2, step.z, e), mean)
        return x_s, carry._replace(gain=-0.5 * fit.clamp_min(0.0), path=path)
