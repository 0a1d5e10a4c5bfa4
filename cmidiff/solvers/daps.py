"""Decoupled annealing posterior sampling: a draw of ``x_0`` given ``x_t`` and ``y``, then noise of the next level.

    x_0|t   the probability flow from x_t to a low level, in a few Euler steps
    u       K moves of a Markov chain, started at x_0|t, with the target
            exp( -|y - A u|^2 / (2 sigma_y^2) - |u - x_0|t|^2 / (2 r_t^2) ),    r_t = sigma_t / alpha_t
    x_s     alpha_s u + sigma_s z

No error of one level is carried to the next by the noise, which is drawn anew. The chain is Langevin's, underdamped
Langevin (``hmc``), or random-walk Metropolis. For a linear physics the target is Gaussian: ``gaussian`` draws from it
exactly, which is what the chains tend to.

The official code samples with a noise of 0.01 / sqrt 2 (a standard deviation of 0.01 and a missing factor 1/2) for all
measurements. Here it is that of the measurement.

Zhang, Chu, Berner, Meng, Anandkumar, Song, "Improving Diffusion Inverse Problem Solving with Decoupled Noise
Annealing", 2024, https://arxiv.org/abs/2407.01521
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from cmidiff.config import NotNegative
from cmidiff.covariance import NOISE_FLOOR
from cmidiff.krylov import dot, per_sample
from cmidiff.samplers import Renoise
from cmidiff.schedule import karras
from cmidiff.solvers.base import PosteriorMean
from cmidiff.solvers.grid import END, last_level
from cmidiff.step import Problem, Sampler, Step
from cmidiff.whitening import largest_eigenvalue

Chain = Literal["langevin", "hmc", "metropolis", "gaussian"]
RHO = 7.0  # of Karras' levels


@dataclass(frozen=True)
class DAPS(PosteriorMean):
    """Decoupled annealing posterior sampling; any differentiable physics, a linear one for ``gaussian``.

    Args:
        chain: how ``u`` is drawn.
        flow_steps: evaluations of the denoiser a level, for the probability flow.
        moves: K of the chain a level.
        rate, last_rate: step size at the first and the last level, relative to the inverse of the largest curvature of
            the target. For ``metropolis``, it is divided by the number of unknowns too. Langevin's chain is unstable
            from 2 on.
        momentum: of ``hmc``, in [0, 1); 0 is Langevin's chain.
        levels: first and last noise level ``sigma / alpha``, and the level at which the flow ends, for images in
            [-1, 1]. None for the last one: 0.1, and less where the measurement has less noise (see
            `cmidiff.solvers.grid.last_level`).
        scale: 1 is the method, 0 the unconditional sampler; a factor on the log-likelihood.

    Raises:
        ValueError: an option that has no meaning.
    """

    kind: ClassVar[str] = "posterior draw"

    chain: Chain = "langevin"
    flow_steps: int = 5
    moves: int = 100
    rate: NotNegative = 1.0
    last_rate: NotNegative = 0.01
    momentum: NotNegative = 0.5
    levels: tuple[float, float | None, float] = (100.0, None, 0.01)
    scale: NotNegative = 1.0

    def __post_init__(self) -> None:
        high, low, end = self.levels
        if not (
            math.inf > high > (END if low is None else low) > end > 0
            and self.momentum < 1
            and min(self.flow_steps, self.moves) >= 1
        ):
            raise ValueError(
                "DAPS: need levels[0] > levels[1] > levels[2] > 0, momentum < 1, flow_steps >= 1 and moves >= 1, "
                f"received {self.levels}, {self.momentum}, {self.flow_steps} and {self.moves}"
            )

    @property
    def sampler(self) -> Sampler:
        return Renoise()

    @property
    def needs_linear(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.chain == "gaussian" and self.scale > 0

    def times(self, problem: Problem, steps: int) -> Sequence[float]:
        """Karras' levels; the next to the last of ``steps + 1`` is the last one before the clean image."""
        if self.scale == 0:
            return super().times(problem, steps)
        unit = problem.unit
        high = min(self.levels[0] * unit, problem.noisiest)
        low = last_level(problem, self.levels[1], self.levels[2])
        ratios = karras(steps + 1, min(low, high / 2), high, RHO)[:steps]
        return [problem.prior.schedule.time(ratio) for ratio in ratios]

    def estimate(self, step: Step) -> Tensor:
        """A draw of ``x_0``."""
        if self.scale == 0:
            return step.x_hat.detach()
        x_0 = self.flow(step)
        return self.moved(step, x_0)

    def flow(self, step: Step) -> Tensor:
        """``x_0|t``: Euler's rule for ``du/dr = (u - x_hat) / r`` in ``u = x / alpha``."""
        u, x_hat = step.x_t.detach() / step.level_t[0], step.x_hat.detach()
        ratios = self.flow_levels(step)
        if step.ratio <= ratios[-1]:
            return x_hat
        for k, (r, s) in enumerate(itertools.pairwise(ratios)):
            if k > 0:
                t = step.prior.schedule.time(r)
                x_hat = step.denoise(step.prior.schedule(t)[0] * u, t)
            u = u + (s - r) / r * (u - x_hat)
        return u

    def flow_levels(self, step: Step) -> list[float]:
        """Noise levels of the flow, the first that of the step."""
        return karras(self.flow_steps + 1, self.levels[2] * step.problem.unit, step.ratio, RHO)

    def variance(self, step: Step) -> float:
        """That of the measurement in the target."""
        return (step.measurement.noise_std or NOISE_FLOOR) ** 2 / self.scale

    def step_size(self, step: Step, x_0: Tensor) -> Tensor:
        """Of the chain, shape (B,)."""
        m = step.measurement.linearised(x_0)
        unit = torch.nn.functional.normalize(step.normal("power").flatten(1), dim=1).reshape(x_0.shape)
        curvature = largest_eigenvalue(lambda v: m.At(m.A(v)), unit) / self.variance(step) + 1 / step.ratio**2
        progress = step.index / max(step.steps - 1, 1)
        rate = self.rate + progress * (self.last_rate - self.rate)
        return rate / curvature / (x_0[0].numel() if self.chain == "metropolis" else 1)

    def moved(self, step: Step, x_0: Tensor) -> Tensor:
        """``u`` from ``x_0|t``."""
        m, r2, u = step.measurement, step.ratio**2, x_0
        if self.chain == "gaussian":
            e = step.draws.normal("measured", step.index, m.y)
            m = replace(m, noise_std=math.sqrt(self.variance(step)))
            return m.draw(x_0, r2, step.normal("chain"), e, step.record.residuals)
        size = per_sample(self.step_size(step, x_0), u)
        v = step.normal("momentum") if self.chain == "hmc" else None
        for k in range(self.moves):
            z = step.normal("chain", k)
            if self.chain == "metropolis":
                new = u + size.sqrt() * z
                rise = self.energy(step, x_0, new) - self.energy(step, x_0, u)
                accepted = step.problem.uniform("accept", step.index, k).log() < -rise
                u = torch.where(per_sample(accepted, u), new, u)
                continue
            gradient = m.pull(u, m.residual(u)) / self.variance(step) + self.prior_gradient(step, x_0, u)
            if v is None:
                u = u + size * gradient + (2 * size).sqrt() * z
            else:
                v = self.momentum * v + size.sqrt() * gradient + math.sqrt(2 * (1 - self.momentum)) * z
                u = u + size.sqrt() * v
        return u

    def prior_gradient(self, step: Step, x_0: Tensor, u: Tensor) -> Tensor:
        """The gradient of the logarithm of the target's prior part."""
        return (x_0 - u) / step.ratio**2

    def energy(self, step: Step, x_0: Tensor, u: Tensor) -> Tensor:
        """The negative logarithm of the target, shape (B,)."""
        residual, moved = step.measurement.residual(u), u - x_0
        return dot(residual, residual) / (2 * self.variance(step)) + dot(moved, moved) / (2 * step.ratio**2)
