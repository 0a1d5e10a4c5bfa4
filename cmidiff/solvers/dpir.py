"""Plug-and-play half-quadratic splitting: one best estimate, in a few evaluations of the denoiser and no gradient.

It minimises ``|y - A x|^2 / (2 sigma_y^2) - log p(x)`` with a second variable ``z`` that takes the place of ``x``
in the prior. At noise levels ``sigma_k`` (here ``sigma / alpha``), from coarse to fine,

    x <- argmin |y - A x|^2 / sigma_y^2 + lambda |x - z|^2 / sigma_k^2
    z <- D(x, sigma_k)

The first line is in closed form where the physics declares its SVD, and solved by conjugate gradients otherwise. The
start is the Wiener estimate of the prior's second moments. It is DiffPIR with ``zeta = 0``: no noise is put back. The
last ``z`` is the result. Where the noise is less than `LEAST_NOISE` it is moved until its residual is the noise.

The estimate approximates the mean of the posterior, so it has a higher PSNR than a sample of it, and less texture.

Sources: Zhang, Li, Zuo, Zhang, Van Gool, Timofte, "Plug-and-Play Image Restoration with Deep Denoiser Prior", 2021,
https://arxiv.org/abs/2008.13751 (DPIR); Zhu et al., "Denoising Diffusion Models for Plug-and-Play Image Restoration",
2023, https://arxiv.org/abs/2305.08995 (DiffPIR).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from cmidiff.config import Positive
from cmidiff.covariance import wiener_estimate
from cmidiff.solvers.base import Solver, along_residual
from cmidiff.solvers.grid import levels
from cmidiff.step import Carry, Problem, Step

TIGHT, LOOSE = 0.1, 0.15  # strengths, see `DPIR`
LEAST_NOISE = 1 / 255  # of the range: measurement noise below this is treated as this


@dataclass(frozen=True)
class DPIR(Solver):
    """Plug-and-play half-quadratic splitting, for linear physics.

    Args:
        strength: ``lambda > 0``; None: 0.1 where ``A A^T`` is declared to be a multiple of the identity (masks,
            denoising), otherwise 0.15. The first line amplifies a component of the measurement noise to at most
            ``sigma_k / (2 sqrt(lambda))``. With 0.15 the factor is 1.3, which the denoiser still removes. With 0.1 it
            is 1.6, which the denoiser takes for structure at high noise.
        start_level: noise level ``sigma / alpha`` of the first step, relative to half the range of the images. Higher
            levels gain nothing on blurs and lose up to 1 dB where many pixels are hidden.
    """

    strength: Positive | None = None
    start_level: Positive = 0.4

    kind: ClassVar[str] = "point estimate"
    needs_linear: ClassVar[bool] = True
    point: ClassVar[bool] = True
    default_steps: ClassVar[int] = 20

    def times(self, problem: Problem, steps: int) -> Sequence[float]:
        """Noise levels even in the logarithm, from the start down to the noise of the measurement. That level alone
        where the measurement is the image with white noise, whose best estimate is one evaluation of the denoiser."""
        unit = problem.half_range
        high = unit * self.start_level
        if self._denoises(problem):
            return levels(problem, 1, problem.measurement.noise_std, problem.measurement.noise_std)
        low = min(max(problem.measurement.noise_std, 2 * unit * LEAST_NOISE, problem.prior.min_ratio), high / 2)
        return levels(problem, steps, high, low)

    def start(self, problem: Problem, t: float) -> tuple[Tensor, Carry]:
        alpha_t, sigma_t = problem.prior.schedule(t)
        if self._denoises(problem):
            return alpha_t * problem.measurement.y, None
        x = wiener_estimate(problem.prior, problem.measurement) if problem.initial is None else problem.initial
        return alpha_t * self._fit(problem, x, sigma_t / alpha_t), None

    def step(self, step: Step, carry: Carry) -> tuple[Tensor, Carry]:
        alpha_s, sigma_s = step.level_s

        def fitted(z: Tensor) -> Tensor:
            if not step.last:
                return alpha_s * self._fit(step.problem, z, sigma_s / alpha_s, step.record.residuals)
            measurement, least = step.measurement, 2 * step.problem.half_range * LEAST_NOISE
            return z if measurement.noise_std >= least else z + along_residual(measurement, measurement.residual(z))

        return step.update(fitted, step.x_hat), carry

    def unguided(self, step: Step) -> Tensor:
        """The denoised image at the level of ``s``, without the first line."""
        return step.level_s[0] * step.unguided_x_hat

    @staticmethod
    def _denoises(problem: Problem) -> bool:
        least = max(2 * problem.half_range * LEAST_NOISE, problem.prior.min_ratio)
        high = problem.prior.schedule.grid(1)[0]
        alpha, sigma = problem.prior.schedule(high)
        return problem.measurement.identity and least <= problem.measurement.noise_std <= sigma / alpha

    def _fit(self, problem: Problem, z: Tensor, ratio: float, residuals: list[Tensor] | None = None) -> Tensor:
        """The first line above."""
        noise = max(problem.measurement.noise_std, 2 * problem.half_range * LEAST_NOISE)
        tight = TIGHT if problem.measurement.tight else LOOSE
        strength = tight if self.strength is None else self.strength
        return replace(problem.measurement, noise_std=noise).prox(z, ratio**2 / strength, residuals)
