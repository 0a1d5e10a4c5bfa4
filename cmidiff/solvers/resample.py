"""ReSample: hard data consistency every few steps, put back at the noise level of the state.

Every step is the sampler's, less ``(1/2) alpha_t^2 grad |y - A D(x_hat)|``. Every tenth step of the last two thirds of
a run then

1. looks ahead: a few deterministic steps from ``x_s`` give a better ``x_hat``;
2. optimises: ``q = E(argmin_x |y - A x|^2)`` from ``D(x_hat)`` while there is much noise, ``q = argmin_z
   |y - A D(z)|^2`` from ``x_hat`` later. Stopping early, at the noise, keeps ``q`` near its start;
3. draws ``x_s`` again, from the product of ``N(alpha_s q, sigma_s^2 I)`` and ``N(x_s, r^2 I)``,
   ``r^2 = strength sigma_t|s^2 sigma_s^2 / sigma_t^2``.

The restoration is optimised in the same way. Without a decoder ``D`` and ``E`` are the identity.

Song, Kwon, Zhang, Hu, Qu, Shen, "Solving Inverse Problems with Latent Diffusion Models via Hard Data Consistency",
2023, https://arxiv.org/abs/2307.08123

The official code takes ``(x_t - sigma_t^2 eps) / alpha_t`` for ``x_hat``, and decays what it optimises to zero (AdamW's
default). It evaluates the network at the wrong level while it looks ahead, and stops at a fixed small loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cmidiff.config import Count, Positive
from cmidiff.krylov import per_sample
from cmidiff.measurement import Measurement
from cmidiff.physics import measured_count
from cmidiff.solvers.base import Solver, misfit_gradient
from cmidiff.step import Carry, Problem, Step

LEAST = 1e-6  # mean squared residual at which an optimisation ends in any case
BETAS, EPSILON, PATIENCE = (0.9, 0.999), 1e-8, 200  # of Adam; steps after which the loss must be lower
SPLITS = 3  # of a run: sampling alone, optimisation of pixels, optimisation of latents


@dataclass(frozen=True)
class ReSample(Solver):
    """Hard data consistency; any differentiable physics.

    Args:
        every: consistency is enforced on the steps whose number, counted from the last one, it divides.
        strength: of the new draw, see ``r^2``.
        ahead: steps to look ahead.
        pixel_steps, latent_steps: at most so many steps of Adam.
        rate: of Adam, in units of the image; on latents half of it, in their units.
    """

    every: Count = 10
    strength: Positive = 40.0
    ahead: Count = 5
    pixel_steps: Count = 2000
    latent_steps: Count = 500
    rate: Positive = 0.01

    kind: ClassVar[str] = "latent priors"
    default_steps: ClassVar[int] = 100
    weight_decay: ClassVar[float] = 0.0

    @property
    def needs_graph(self) -> bool:
        return True

    def check(self, problem: Problem) -> None:
        decoder = problem.prior.decoder
        if decoder is not None and decoder.encode is None:
            raise ValueError(f"ReSample encodes images, and {problem.prior.name} has no encoder: take dps or psld")

    def step(self, step: Step, carry: Carry) -> tuple[Tensor, Carry]:
        x_s, carry = step.advance(carry)
        x_s = x_s - 0.5 * step.level_t[0] ** 2 * self.gradient(step)
        left = step.steps - 1 - step.index
        if not 0 < left <= step.steps - step.steps // SPLITS or left % self.every:
            return x_s, carry
        start = self.look_ahead(step, x_s, min(self.ahead, left))
        if left >= step.steps // SPLITS:
            measurement = step.measurement.of_image
            image = self.optimise(measurement, step.prior.decode(start), self.rate, self.pixel_steps)
            q = step.prior.encode(image)
        else:
            q = self.optimise(step.measurement, start, self.rate / 2, self.latent_steps, PATIENCE)
        return self._draw(step, x_s, q), carry

    def finish(self, problem: Problem, x: Tensor, carry: Carry) -> Tensor:
        return self.optimise(problem.measurement, x, self.rate / 2, self.latent_steps, PATIENCE)

    def gradient(self, step: Step) -> Tensor:
        """``grad |y - A D(x_hat)|``, shape of ``x_t``."""
        return misfit_gradient(step)

    def look_ahead(self, step: Step, x: Tensor, count: int) -> Tensor:
        """``x_hat`` after ``count`` evaluations from ``x`` at ``s`` on, with deterministic steps between them."""
        times = self.times(step.problem, step.steps)[step.index + 1 : step.index + 1 + count]
        x_hat = x
        for t, s in zip(times, [*times[1:], None], strict=True):
            x_hat = step.denoise(x, t)
            if s is not None:
                (alpha_t, sigma_t), (alpha_s, sigma_s) = step.prior.schedule(t), step.prior.schedule(s)
                x = alpha_s * x_hat + sigma_s / sigma_t * (x - alpha_t * x_hat)
        return x_hat

    def stop_at(self, measurement: Measurement) -> float:
        """Mean squared residual at which an optimisation ends: that of the noise."""
        return max(LEAST, measurement.noise_std**2)

    def optimise(
        self, measurement: Measurement, x: Tensor, rate: float, steps: int, patience: int | None = None
    ) -> Tensor:
        """``argmin |y - A x|^2`` from ``x`` by Adam, each row until it is at the noise.

        Args:
            measurement: whose residual is minimised.
            x: the start, on its canvas.
            rate: of Adam.
            steps: at most.
            patience: a row also ends where its loss is above that of so many steps before.
        """
        x, alive = x.detach(), torch.ones(len(x), dtype=torch.bool, device=x.device)
        entries = measurement.y[0].numel() / measured_count(measurement.physics, measurement.y).to(x)
        first, second, losses = torch.zeros_like(x), torch.zeros_like(x), list[Tensor]()
        for k in range(1, steps + 1):
            loss, gradient = _value_and_gradient(lambda v: measurement.residual(v).abs().square().flatten(1).mean(1), x)
            first = BETAS[0] * first + (1 - BETAS[0]) * gradient
            second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
            move = first / (1 - BETAS[0] ** k) / ((second / (1 - BETAS[1] ** k)).sqrt() + EPSILON)
            x = torch.where(per_sample(alive, x), x - rate * (self.weight_decay * x + move), x)
            losses.append(loss)
            alive = alive & (loss * entries >= self.stop_at(measurement))
            if patience is not None and k > patience:
                alive = alive & (loss <= losses[-1 - patience])
            if not bool(alive.any()):
                break
        return x

    def _draw(self, step: Step, x_s: Tensor, q: Tensor) -> Tensor:
        """The third line above."""
        alpha_s, sigma_s = step.level_s
        r2 = self.strength * (step.transition[1] * sigma_s / step.level_t[1]) ** 2
        mean = (r2 * alpha_s * q + sigma_s**2 * x_s) / (r2 + sigma_s**2)
        return mean + step.normal("resample") / math.sqrt(1 / r2 + 1 / sigma_s**2)


def _value_and_gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """``f(x)``, shape (B,), and its gradient, row by row."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = f(x)
        return value.detach(), torch.autograd.grad(value.sum(), x)[0]
