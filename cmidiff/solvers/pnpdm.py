"""Plug-and-play diffusion models: a Gibbs sampler that alternates between the measurement and the prior.

With a second variable ``z`` near ``x``, coupled by ``|x - z|^2 / (2 rho^2)``,

    z   ~ exp( -|y - A z|^2 / (2 sigma_y^2) - |x - z|^2 / (2 rho^2) )     a Gaussian, drawn exactly
    x   ~ p(x_0 | x_0 + rho n = z)                                         the reverse process from the level rho

while ``rho`` falls from level to level. Both are exact up to the steps of the inner reverse process. With many levels
the samples tend to the posterior of the last ``rho``, which tends to the posterior as that ``rho`` falls.

The inner process is the run's sampler. It must have noise to draw from ``p(x_0 | z)``: the official default, the
probability flow, maps ``z`` to one point. The official code also starts it at the first level below ``rho`` without
rescaling; here it starts at ``rho``.

Sources: Wu, Sun, Chen, Zhang, Yue, Bouman, "Principled Probabilistic Imaging using Diffusion Models as Plug-and-Play
Priors", 2024, https://arxiv.org/abs/2405.18782 (PnP-DM); Xu, Chi, "Provably Robust Score-Based Diffusion Posterior
Sampling for Plug-and-Play Image Reconstruction", 2024, https://arxiv.org/abs/2403.17042 (DPnP)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from cmidiff.schedule import karras, pairs
from cmidiff.solvers.base import Solver
from cmidiff.solvers.grid import END, last_level, levels
from cmidiff.step import Carry, Problem, Step

RHO = 7.0  # of Karras' levels


@dataclass(frozen=True)
class PnPDM(Solver):
    """Plug-and-play diffusion models (split Gibbs), for linear physics.

    Args:
        start_level, end_level: first and last ``rho``, for images in [-1, 1]; even in the logarithm between them. None
            for the last one: 0.1, and less where the measurement has less noise (see
            `cmidiff.solvers.grid.last_level`).
        inner_steps: evaluations of the denoiser for each draw of ``x``.
        inner_end: noise level ``sigma / alpha`` of the last of them, for images in [-1, 1]; at most ``rho / 10``.

    Raises:
        ValueError: an option that has no meaning.
    """

    start_level: float = 10.0
    end_level: float | None = None
    inner_steps: int = 20
    inner_end: float = 0.01

    kind: ClassVar[str] = "posterior draw"
    needs_linear: ClassVar[bool] = True
    default_steps: ClassVar[int] = 40
    refuses_cmi: ClassVar[str] = (
        "its denoiser is called inside of a reverse process that draws x_0 given z exactly, and x_s is not a function "
        "of one denoised image"
    )

    def __post_init__(self) -> None:
        end = END if self.end_level is None else self.end_level
        if not (math.inf > self.start_level >= end > self.inner_end > 0 and self.inner_steps >= 1):
            raise ValueError(
                "PnPDM: need start_level >= end_level > inner_end > 0 and inner_steps >= 1, received "
                f"{self.start_level}, {self.end_level}, {self.inner_end} and {self.inner_steps}"
            )

    def times(self, problem: Problem, steps: int) -> Sequence[float]:
        unit = problem.unit
        high = min(self.start_level * unit, problem.noisiest)
        low = last_level(problem, self.end_level, self.inner_end)
        return levels(problem, steps, high, min(low, high))

    def start(self, problem: Problem, t: float) -> tuple[Tensor, Carry]:
        x = problem.like() if problem.initial is None else problem.initial
        return self.coupled(problem, x, t, 0, None), None

    def step(self, step: Step, carry: Carry) -> tuple[Tensor, Carry]:
        x = self.denoised(step)
        return (x if step.last else self.coupled(step.problem, x, step.s, step.index + 1, step.record.residuals)), carry

    def coupled(self, problem: Problem, x: Tensor, t: float, index: int, residuals: list[Tensor] | None) -> Tensor:
        """``alpha_t z`` for a draw of ``z`` given ``x`` at ``rho = sigma_t / alpha_t``."""
        alpha, sigma = problem.prior.schedule(t)
        measurement = problem.measurement
        n = problem.draws.normal("split", index, x)
        e = problem.draws.normal("measured", index, measurement.y)
        return alpha * measurement.draw(x, (sigma / alpha) ** 2, n, e, residuals)

    def inner_times(self, step: Step) -> list[float]:
        """Times of the inner process, the first that of the step."""
        end = min(self.inner_end * step.problem.unit, 0.1 * step.ratio)
        ratios = karras(self.inner_steps, end, step.ratio, RHO)
        return [step.t, *(step.prior.schedule.time(ratio) for ratio in ratios[1:])]

    def denoised(self, step: Step) -> Tensor:
        """A draw of ``x_0`` given the state."""
        x, carry = step.x_t.detach(), None
        for inner, (t, s) in enumerate(pairs(self.inner_times(step), step.prior.schedule.end)):
            at = step if t == step.t else step.moved(x, t)
            at = replace(at, s=s, inner=inner)
            x, carry = at.sampler.prepare(at).advance(carry)
        return x
