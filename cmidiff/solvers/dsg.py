"""Diffusion with spherical Gaussian constraint: the noise is turned towards the data and its length is unchanged.

A Gaussian step ends near the sphere of radius ``r = std sqrt(d)`` around the kernel's mean. On it the point of steepest
descent of the residual is ``d* = -r g / |g|``, and

    x_s = mean + r m / |m|,    m = d + w (d* - d),    d = std z

Yang, Ding, Cai, Yu, Wang, Shi, "Guidance with Spherical Gaussian Constraint for Conditional Diffusion", 2024,
https://arxiv.org/abs/2402.03201

With a learned variance the sphere is an ellipsoid and ``r`` the norm of its standard deviations (the official code
takes one pixel's).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cmidiff.krylov import dot, per_sample
from cmidiff.solvers.base import descend, reach
from cmidiff.solvers.grid import EvenLevels, Grid
from cmidiff.step import Carry, Step

OFFICIAL_STEPS = 100  # of the script whose rate is the default


def unit(v: Tensor) -> Tensor:
    """``v / |v|`` per image."""
    return v / per_sample(dot(v, v).sqrt() + 1e-8, v)


@dataclass(frozen=True)
class DSG(EvenLevels):
    """Spherical Gaussian guidance; any differentiable physics. Needs a sampler with noise (DDIM with ``eta > 0``, or
    ancestral).

    Args:
        rate: ``w`` in [0, 1] of a run of 100 steps: 0 is the unconditional sampler, 1 takes ``d*`` alone. A run of
            ``N`` steps takes ``w sqrt(100 / N)``, at most 1. The radius of a step shrinks as ``1 / sqrt N``, so that
            the sum of the moves is the same. The official script takes 0.2.
        interval: guide the steps whose number, counted from the last one, it divides.
        guard: turn no further than leads to the noise level (see `cmidiff.solvers.base.reach`), and descend to it in
            the last step, which has no sphere. The official code does neither.
        through_clip: as in `DPS`.
        grid: as in `CADPS`; ``schedule`` is the paper's.
    """

    rate: float = 0.2
    interval: int = 1
    guard: bool = True
    through_clip: bool = False
    grid: Grid = "even"

    needs_noise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1 or self.interval < 1:
            raise ValueError(f"DSG: need rate in [0, 1] and interval >= 1, received {self.rate} and {self.interval}")

    @property
    def needs_graph(self) -> bool:
        return self.rate > 0

    def rate_at(self, step: Step) -> float:
        """``w`` of this step."""
        return min(1.0, self.rate * math.sqrt(OFFICIAL_STEPS / step.steps))

    def radius(self, step: Step) -> Tensor | float:
        """``r`` of all images, or of each, broadcastable over ``x_t``."""
        std = step.std
        if not isinstance(std, Tensor):
            return std * math.sqrt(step.x_t[0].numel())
        return per_sample(dot(std, std).sqrt(), step.x_t)

    def step(self, step: Step, carry: Carry) -> tuple[Tensor, Carry]:
        x_s, carry = step.advance(carry)
        if step.last and self.needs_graph and self.guard:
            return x_s - descend(step, math.inf, guard=True, through_clip=self.through_clip), carry
        if self.rate == 0 or (step.steps - 1 - step.index) % self.interval:
            return x_s, carry
        r, rate = self.radius(step), self.rate_at(step)
        mean = step.mean(step.x_hat)
        gradient, most = reach(step, through_clip=self.through_clip)
        if self.guard:
            share = most * dot(gradient, gradient).sqrt() / (r.flatten() if isinstance(r, Tensor) else r)
            rate = per_sample(share.clamp_max(rate), gradient)
        d_star = -r * unit(gradient)
        d = x_s - mean
        return mean + r * unit(d + rate * (d_star - d)), carry
