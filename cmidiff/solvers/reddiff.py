"""RED-diff: the posterior by a point, found by an optimiser that goes through the noise levels.

At each level, with ``p = mu + spread n_0`` and ``x_t = alpha_t p + sigma_t n``, one step of Adam on the gradient

    g = grad_weight f(sigma_t / alpha_t) (eps(x_t) - n) + data_weight A^T (A p - y)

for each image: sums over its pixels, so that neither its size nor its neighbours in the batch change the result. (The
official code divides both terms by the number of their entries in the whole batch, so that Adam's ``eps`` is not small.
Its super-resolution weighs the measurement 16 times more. It returns ``mu`` of before the last step.)

The noise of the measurement does not enter: ``data_weight`` stands for it.

Mardani, Song, Kautz, Vahdat, "A Variational Perspective on Solving Inverse Problems with Diffusion Models", 2023,
https://arxiv.org/abs/2305.04391
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from cmidiff.config import NotNegative
from cmidiff.samplers import Renoise
from cmidiff.solvers.base import Solver
from cmidiff.step import Carry, Problem, Sampler, Step

Weight = Literal["linear", "sqrt", "square", "log", "trunc_linear", "power2over3", "const"]
BETAS = (0.9, 0.99)


class Iterate(NamedTuple):
    """The optimiser between two steps: ``mu``, Adam's moments, and ``p`` and ``n`` of the state; shapes (B, ...)."""

    mu: Tensor
    first: Tensor
    second: Tensor
    p: Tensor
    n: Tensor


@dataclass(frozen=True)
class REDDiff(Solver):
    """RED-diff; any differentiable physics.

    Args:
        rate: of Adam, in units of the image.
        weight: ``f``, of ``r = sigma_t / alpha_t``: ``linear`` r, ``sqrt``, ``square``, ``log`` of 1 + r,
            ``trunc_linear`` min(r, 1), ``power2over3``, ``const``.
        grad_weight, data_weight: of the two terms.
        spread: standard deviation of ``p`` around ``mu``.
        eps: of Adam.
    """

    kind: ClassVar[str] = "optimisation"

    rate: NotNegative = 0.1
    weight: Weight = "linear"
    grad_weight: NotNegative = 0.25
    data_weight: NotNegative = 1.0
    spread: NotNegative = 0.0
    eps: NotNegative = 1e-8

    default_steps = 100

    @property
    def sampler(self) -> Sampler:
        return Renoise()

    def start(self, problem: Problem, t: float) -> tuple[Tensor, Carry]:
        """``mu`` is ``A^+ y``, regularised by the noise of the measurement; zero for a physics that is not linear."""
        mu = problem.least_squares() if problem.initial is None else problem.initial
        zero = torch.zeros_like(mu)
        return self.renewed(problem, Iterate(mu, zero, zero, mu, zero), t, 0)

    def renewed(self, problem: Problem, iterate: Iterate, t: float, index: int) -> tuple[Tensor, Iterate]:
        """The state around ``mu`` at ``t``."""
        alpha, sigma = problem.prior.schedule(t)
        n = problem.draws.normal("kernel", index, iterate.mu)
        p = iterate.mu
        if self.spread > 0:
            p = p + self.spread * problem.draws.normal("spread", index, p)
        return alpha * p + sigma * n, iterate._replace(p=p, n=n)

    def step(self, step: Step, carry: Carry) -> tuple[Tensor, Carry]:
        m, residual = step.measurement, step.measurement.residual(carry.p)
        pull = -self.data_weight * m.pull(carry.p, residual)
        found = self.adam(step, carry, step.corrected(step.x_hat), pull)
        if step.correction is not None:
            plain = self.adam(step, carry, step.clipped(step.x_hat.detach()), pull)
            step.record.moves.append(step.level_s[0] * (found.mu - plain.mu))
        return (found.mu, found) if step.last else self.renewed(step.problem, found, step.s, step.index + 1)

    def adam(self, step: Step, iterate: Iterate, x_hat: Tensor, pull: Tensor) -> Iterate:
        """One step, with bias-corrected moments."""
        (alpha, sigma), count = step.level_t, step.index + 1
        eps = (step.x_t.detach() - alpha * x_hat) / sigma
        g = self.grad_weight * self.f(step.ratio) * (eps - iterate.n) + pull
        first = BETAS[0] * iterate.first + (1 - BETAS[0]) * g
        second = BETAS[1] * iterate.second + (1 - BETAS[1]) * g**2
        root = (second / (1 - BETAS[1] ** count)).sqrt() + self.eps
        mu = iterate.mu - self.rate / (1 - BETAS[0] ** count) * first / root
        return iterate._replace(mu=mu, first=first, second=second)

    def f(self, r: float) -> float:
        """The weight of a noise level."""
        match self.weight:
            case "linear":
                return r
            case "sqrt":
                return math.sqrt(r)
            case "square":
                return r**2
            case "log":
                return math.log1p(r)
            case "trunc_linear":
                return min(r, 1.0)
            case "power2over3":
                return r ** (2 / 3)
            case "const":
                return 1.0
