"""DiffPIR: the denoised image is fitted to the measurement at every noise level, and noise is put back.

    x_hat' = argmin_x |y - A x|^2 / sigma_y^2 + lambda |x - x_hat|^2 / (sigma_t / alpha_t)^2

and ``x_s = alpha_s x_hat' + sigma_s (sqrt(1 - zeta) eps' + sqrt(zeta) z)`` with ``eps' = (x_t - alpha_t x_hat') /
sigma_t``: the sampler `Renoise`, which a run takes unless it names another. With ``lambda = 1`` the first line is the
posterior mean for ``p(x_0 | x_t) = N(x_hat, (sigma_t / alpha_t)^2 I)``. It needs no gradient of the network. It has a
closed form where the physics declares its singular values (masks, circular blurs by the FFT, dense matrices). Otherwise
conjugate gradients solve it.

With ``zeta = 0``, levels that end at the noise of the measurement, and a start from the Wiener estimate it is the point
estimate of `cmidiff.solvers.dpir`.

Zhu, Zhang, Liang, Cao, Wen, Timofte, Van Gool, "Denoising Diffusion Models for Plug-and-Play Image Restoration", 2023,
https://arxiv.org/abs/2305.08995
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cmidiff.config import Fraction, NotNegative, Positive
from cmidiff.samplers import Renoise
from cmidiff.solvers.base import PosteriorMean
from cmidiff.solvers.grid import even_levels
from cmidiff.step import Problem, Sampler, Step


@dataclass(frozen=True)
class DiffPIR(PosteriorMean):
    """Plug-and-play restoration with a diffusion prior, for linear physics.

    Args:
        strength: ``lambda > 0``. The official codes state ``sigma_y`` in [0, 1] and noise levels in [-1, 1], so that
            their ``lambda`` is 4 times this one.
        zeta: the fresh part of the noise, of the sampler that a run takes where it names none. Less than 1 keeps noise
            that a jump of ``x_hat'`` has made: with few steps it costs several dB.
        scale: factor on the move of the denoised image; 1 is the formula, 0 the unconditional sampler.
    """

    strength: Positive = 1.0
    zeta: Fraction = 1.0
    scale: NotNegative = 1.0

    needs_linear: ClassVar[bool] = True

    @property
    def sampler(self) -> Sampler:
        return Renoise(self.zeta)

    def times(self, problem: Problem, steps: int) -> Sequence[float]:
        """Noise levels even in the logarithm."""
        return super().times(problem, steps) if self.scale == 0 else even_levels(problem, steps)

    def estimate(self, step: Step) -> Tensor:
        """``x_hat'``."""
        x_hat = step.clipped(step.x_hat.detach())
        if self.scale == 0:
            return x_hat
        return x_hat + self.scale * (self.fit(step, x_hat) - x_hat)

    def fit(self, step: Step, x_hat: Tensor) -> Tensor:
        """The first line above, shape of ``x_t``."""
        return step.measurement.prox(x_hat, step.ratio**2 / self.strength, step.record.residuals)
