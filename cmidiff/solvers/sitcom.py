"""SITCOM: the input of the denoiser is optimised until its output explains the measurement.

At every level, from ``v = x_t``, a few steps of Adam on

    |y - A x_hat(v, t)|^2 + penalty |v - x_t|^2,

with the gradient through the network; then ``x_hat' = x_hat(v, t)``, and a run re-noises it (`Renoise`) unless it
names another sampler. The output of the denoiser stays consistent with the network (backward consistency), and the few
steps keep ``v`` near ``x_t``. An image stops at the level where its residual is that of the noise, ``|y - A x_hat|^2 <=
m sigma_y^2``, so that the noise is not fitted.

Alkhouri, Liang, Huang, Dai, Qu, Ravishankar, Wang, "SITCOM: Step-wise Triple-Consistent Diffusion Sampling for Inverse
Problems", 2024, https://arxiv.org/abs/2410.04479; Kingma, Ba, "Adam", 2014, https://arxiv.org/abs/1412.6980
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cmidiff.config import Count, NotNegative
from cmidiff.krylov import per_sample
from cmidiff.samplers import Renoise
from cmidiff.solvers.base import PosteriorMean
from cmidiff.step import Sampler, Step

BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam


@dataclass(frozen=True)
class SITCOM(PosteriorMean):
    """Step-wise triple-consistent sampling, for any differentiable physics.

    Args:
        rate: learning rate of Adam, in units of ``x_t``; 0 is the unconditional sampler.
        iterations: most steps of Adam at a level, each one forward and one backward pass of the network.
        penalty: weight of the distance of ``v`` to ``x_t``; the codes take 0.
        through_clip: optimise and return the clipped ``x_hat``, whose clipped pixels pass no gradient (the official
            code).
    """

    rate: NotNegative = 0.02
    iterations: Count = 20
    penalty: NotNegative = 0.0
    through_clip: bool = False

    default_steps: ClassVar[int] = 20

    @property
    def sampler(self) -> Sampler:
        return Renoise()

    @property
    def needs_graph(self) -> bool:
        return self.rate > 0

    def estimate(self, step: Step) -> Tensor:
        """``x_hat'``: the last output that was evaluated, as in the official code."""
        if self.rate == 0:
            return step.x_hat.detach()
        first = second = torch.zeros_like(step.x_t)
        at, v = step, step.x_t.detach()
        x_hat, active = self.output(at), torch.ones(len(v), dtype=torch.bool, device=v.device)
        found = x_hat.detach()
        for k in range(1, self.iterations + 1):
            found = torch.where(per_sample(active, found), x_hat.detach(), found)
            active = active & ~self.explained(step, found)
            if k == self.iterations or not bool(active.any()):
                break
            gradient = self.gradient(at, x_hat) + 2 * self.penalty * (v - step.x_t.detach())
            first = BETAS[0] * first + (1 - BETAS[0]) * gradient
            second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
            root = (second / (1 - BETAS[1] ** k)).sqrt() + EPSILON
            v = v - self.rate * per_sample(active.to(v), v) * (first / (1 - BETAS[0] ** k)) / root
            at = step.moved(v, step.t, graph=True)
            x_hat = self.output(at)
        return found

    def output(self, step: Step) -> Tensor:
        """``x_hat(v, t)`` with its graph."""
        return step.clipped(step.x_hat) if self.through_clip else step.x_hat

    def gradient(self, step: Step, x_hat: Tensor) -> Tensor:
        """``grad_v |y - A x_hat|^2`` of each image, shape of ``v``."""
        given = x_hat.detach()
        return step.vjp(-2 * step.measurement.pull(given, step.measurement.residual(given)), of=x_hat, last=True)

    def explained(self, step: Step, x_hat: Tensor) -> Tensor:
        """Whether the residual is that of the noise, shape (B,)."""
        misfit = step.measurement.misfit(x_hat)
        return misfit <= (1.0 if step.measurement.noise_std > 0 else 0.0)
