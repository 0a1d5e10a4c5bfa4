"""Diffusion posterior sampling: a step of fixed size down the residual's norm.

    x_s = x'_s - zeta grad_{x_t} |y - A x_hat(x_t)|

Chung, Kim, McCann, Klasky, Ye, "Diffusion Posterior Sampling for General Noisy Inverse Problems", 2023,
https://arxiv.org/abs/2209.14687

The gradient is that of the norm, not of its square, as in the official code; the norm is each image's own.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cmidiff.solvers.base import descend
from cmidiff.solvers.grid import EvenLevels, Grid
from cmidiff.solvers.scale import Scale, is_active, scale_at
from cmidiff.step import Carry, Step


@dataclass(frozen=True)
class DPS(EvenLevels):
    """Diffusion posterior sampling; any differentiable physics.

    Args:
        scale: zeta >= 0 of a run of 1000 steps, in units of ``x_t``; a run of ``N`` steps takes ``1000 / N`` times as
            much at each step. The official configurations take 0.3 to 1.0. Or zeta_t: a `Ramp`, or another function of
            ``sigma_t / alpha_t``.
        guard: shorten a step that would overshoot (see `cmidiff.solvers.base.descend`); the official codes do not.
        through_clip: differentiate the clipped ``x_hat`` as the official code does, instead of the mean.
        grid: as in `CADPS`; ``schedule`` is the paper's.
    """

    scale: Scale = 0.3
    guard: bool = True
    through_clip: bool = False
    grid: Grid = "even"

    @property
    def needs_graph(self) -> bool:
        return is_active(self.scale)

    def step(self, step: Step, carry: Carry) -> tuple[Tensor, Carry]:
        x_s, carry = step.advance(carry)
        if not self.needs_graph:
            return x_s, carry
        return x_s - descend(step, scale_at(self.scale, step), guard=self.guard, through_clip=self.through_clip), carry
