"""Diffusion posterior sampling: a step of fixed size down the residual's norm.

    x_s = x'_s - zeta grad_{x_t} |y - A x_hat(x_t)|

Chung, Kim, McCann, Klasky, Ye, "Diffusion Posterior Sampling for General Noisy Inverse Problems", 2023,
https://arxiv.org/abs/2209.14687

The gradient is that of the norm, not of its square, as in the official code; the norm is each image's own.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cmidiff.guidance.base import misfit_gradient
from cmidiff.guidance.scale import Scale, checked_scale, is_active, scale_at
from cmidiff.step import Step


@dataclass(frozen=True)
class DPS:
    """Diffusion posterior sampling; any differentiable physics.

    Args:
        scale: zeta >= 0, in units of ``x_t``. What counts is its sum over the steps: the official configurations take
            0.3 to 1.0 at 1000 steps, the default suits 100 steps. Or zeta_t: a `Ramp`, or another function of
            ``sigma_t / alpha_t``.
        through_clip: differentiate the clipped ``x_hat`` as the official code does, instead of the mean.
    """

    scale: Scale = 2.0
    through_clip: bool = False

    def __post_init__(self) -> None:
        checked_scale("DPS", self.scale)

    @property
    def needs_graph(self) -> bool:
        return is_active(self.scale)

    def __call__(self, step: Step) -> Tensor:
        x_s = step.advance()
        if not self.needs_graph:
            return x_s
        return x_s - scale_at(self.scale, step) * misfit_gradient(step, through_clip=self.through_clip)
