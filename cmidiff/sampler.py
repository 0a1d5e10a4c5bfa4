"""Reverse kernels, and the loop: the only one in this library.

With ``alpha_t|s = alpha_t / alpha_s`` and ``sigma_t|s^2 = sigma_t^2 - alpha_t|s^2 sigma_s^2`` of the forward kernel
from ``s`` to ``t``, for any schedule:

    Ancestral   the exact p(x_s | x_t, x_0 = x_hat):  a = alpha_t|s sigma_s^2 / sigma_t^2,  b = alpha_s sigma_t|s^2 /
    sigma_t^2,  std^2 = sigma_t|s^2 sigma_s^2 / sigma_t^2
    DDIM        std = eta x that,  x_s = alpha_s x_hat + sqrt(sigma_s^2 - std^2) eps + std z,  eps = (x_t - alpha_t
    x_hat) / sigma_t
    ProbabilityFlow   d x~ / d r = (x~ - x_hat) / r  in  x~ = x / alpha,  r = sigma / alpha, by Euler or Heun
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from cmidiff.draws import Draws
from cmidiff.guidance.base import Guidance
from cmidiff.information import CMI
from cmidiff.krylov import dot, per_sample
from cmidiff.measurement import Measurement
from cmidiff.prior.base import Denoiser
from cmidiff.schedule import pairs
from cmidiff.step import Estimate, Kernel, Step, evaluate, own_estimate

LIMIT = 1e4  # times the range of the images: what has grown to this has diverged


class _Unprepared:
    """A kernel that starts from the state as it is."""

    def prepare(self, step: Step) -> Step:
        return step


@dataclass(frozen=True)
class Ancestral(_Unprepared):
    """DDPM's reverse kernel.

    Args:
        variance: ``small`` (that of ``p(x_s | x_t, x_0)``), ``large`` (``beta_t``), ``learned`` (between them in the
            logarithm, by the network's head), or ``auto``: learned if the
            network has a head, else small.

    Sources: Ho, Jain, Abbeel 2020, https://arxiv.org/abs/2006.11239; Nichol, Dhariwal 2021,
        https://arxiv.org/abs/2102.09672 (learned)
    """

    variance: Literal["auto", "small", "large", "learned"] = "auto"

    def coefficients(self, step: Step) -> tuple[float, float]:
        (_, sigma_t), (alpha_s, sigma_s) = step.level_t, step.level_s
        alpha_ts, sigma_ts = step.transition
        return alpha_ts * sigma_s**2 / sigma_t**2, alpha_s * sigma_ts**2 / sigma_t**2

    def std(self, step: Step) -> float | Tensor:
        fraction = step.variance_fraction
        if fraction is None and self.variance == "learned":
            raise ValueError("variance='learned' needs a prior with a learned-variance head: use 'small' or 'large'")
        if step.last:
            return 0.0
        large = step.transition[1]
        small = large * step.level_s[1] / step.level_t[1]
        if self.variance == "small" or (self.variance == "auto" and fraction is None):
            return small
        if self.variance == "large" or fraction is None:
            return large
        return (fraction * math.log(large) + (1 - fraction) * math.log(small)).exp()

    def advance(self, step: Step, estimate: Estimate) -> Tensor:
        return _draw(step, step.mean(estimate(step)))


@dataclass(frozen=True)
class DDIM(_Unprepared):
    """Denoising diffusion implicit models: ``eta = 0`` is deterministic, ``eta = 1`` has the ancestral kernel's noise.

    Source: Song, Meng, Ermon, 2021, https://arxiv.org/abs/2010.02502
    """

    eta: float = 0.0

    def std(self, step: Step) -> float:
        return self.eta * step.transition[1] * step.level_s[1] / step.level_t[1]

    def coefficients(self, step: Step) -> tuple[float, float]:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = step.level_t, step.level_s
        a = math.sqrt(max(sigma_s**2 - self.std(step) ** 2, 0.0)) / sigma_t
        return a, alpha_s - a * alpha_t

    def advance(self, step: Step, estimate: Estimate) -> Tensor:
        return _draw(step, step.mean(estimate(step)))


@dataclass(frozen=True)
class ProbabilityFlow:
    """EDM's sampler: the probability-flow ODE by Heun's rule (``order=2``, an Euler step on the last) or Euler's, with
    optional churn.

    The guided denoiser is what is integrated: ``estimate`` is called at both ends of a Heun step. It runs on any
    schedule through ``x / alpha_t``.

    Args:
        order: 1 or 2.
        churn: noise added before each step with its level in ``churn_range``, as a fraction ``churn / steps`` (at most
            ``sqrt 2 - 1``) of the level.
        churn_range: the levels ``sigma / alpha`` that are churned.
        churn_noise: standard deviation of that noise, relative (EDM takes 1.003).

    Source: Karras, Aittala, Aila, Laine, 2022, https://arxiv.org/abs/2206.00364 (Algorithms 1 and 2)
    """

    order: Literal[1, 2] = 2
    churn: float = 0.0
    churn_range: tuple[float, float] = (0.05, 50.0)
    churn_noise: float = 1.0

    def std(self, step: Step) -> float:
        return 0.0

    def coefficients(self, step: Step) -> tuple[float, float]:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = step.level_t, step.level_s
        a = sigma_s / sigma_t
        return a, alpha_s - a * alpha_t

    def prepare(self, step: Step) -> Step:
        """Churn: a noisier state, before the denoiser is evaluated."""
        (alpha, _), r = step.level_t, step.ratio
        gamma = min(self.churn / step.steps, math.sqrt(2) - 1)
        if gamma == 0 or not self.churn_range[0] <= r <= self.churn_range[1]:
            return step
        t = step.prior.schedule.time(r * (1 + gamma))
        alpha_up, sigma_up = step.prior.schedule(t)
        extra = self.churn_noise * math.sqrt(max((sigma_up / alpha_up) ** 2 - r**2, 0.0))
        return replace(step, x_t=alpha_up * (step.x_t / alpha + extra * step.z), t=t)

    def advance(self, step: Step, estimate: Estimate) -> Tensor:
        x_s = step.mean(estimate(step))
        if self.order == 1 or step.last:
            return x_s
        (alpha_t, sigma_t), (alpha_s, sigma_s) = step.level_t, step.level_s
        r_t, r_s, x_t = sigma_t / alpha_t, sigma_s / alpha_s, step.x_t.detach() / alpha_t
        graph = step.x_hat.requires_grad and estimate is not own_estimate
        ahead = Step.at(x_s, step.s, step.prior.schedule.end, like=step, graph=graph)
        slope_s = (x_s / alpha_s - step.clipped(estimate(ahead).detach())) / r_s
        shift = 0.0 if step.shift is None else step.shift  # moves the mean as a whole, it is no slope to average
        slope_t = ((x_s - shift) / alpha_s - x_t) / (r_s - r_t)
        return alpha_s * (x_t + (r_s - r_t) * 0.5 * (slope_t + slope_s)) + shift


def _draw(step: Step, mean: Tensor) -> Tensor:
    std = step.std
    return mean if isinstance(std, float) and std == 0.0 else mean + std * step.z


@dataclass(frozen=True)
class Trace:
    """What one step did, for each row of the batch; shapes (B,) unless stated.

    Attributes:
        index, steps: number of the step, 0 first.
        t: its time.
        x_s: the new state, shape (B, ...).
        x_hat: the denoised image of the step, shape (B, ...), clipped as in the kernel.
        misfit: ``|y - A x_hat| / (sigma_y sqrt m)``.
        guidance: norm of the move by the guidance, in units of ``x_s`` (with Heun's rule, its own correction included).
        cmi: norm of the move by CMI.
        alive: False for rows that have diverged; their state is set to zero and their ``x_hat`` is the last finite one.
    """

    index: int
    steps: int
    t: float
    x_s: Tensor
    x_hat: Tensor
    misfit: Tensor
    guidance: Tensor
    cmi: Tensor
    alive: Tensor


def start(prior: Denoiser, t: float, draws: Draws, like: Tensor) -> Tensor:
    """``x_T ~ N(0, (alpha_T^2 + sigma_T^2) I)`` for variance-preserving priors, ``N(0, sigma_T^2 I)`` for others."""
    alpha, sigma = prior.schedule(t)
    scale = 1.0 if abs(alpha**2 + sigma**2 - 1.0) < 1e-6 else sigma
    return scale * draws.normal("start", 0, like)


def sample(
    prior: Denoiser,
    measurement: Measurement,
    x_T: Tensor,
    times: Sequence[float],
    *,
    guidance: Guidance,
    kernel: Kernel,
    draws: Draws,
    cmi: CMI | None = None,
    clip: tuple[float, float] | None = None,
) -> Iterator[Trace]:
    """Run the reverse process from ``x_T`` and yield a `Trace` after each step; the last ``x_s`` is the restoration.

    Args:
        prior: the denoiser.
        measurement: ``y`` and its physics on the prior's canvas.
        x_T: initial state, shape (B, ...).
        times: noisiest first, without the schedule's end.
        guidance: how ``y`` pulls.
        kernel: `Ancestral`, `DDIM` or `ProbabilityFlow`.
        draws: random numbers.
        cmi: the information correction, or None.
        clip: range of the denoised image inside the kernel, or None.
    """
    steps = pairs(times, prior.schedule.end)
    x, alive, kept = x_T, torch.ones(len(x_T), dtype=torch.bool, device=x_T.device), x_T
    graph = guidance.needs_graph or (cmi is not None and cmi.eta != 0 and cmi.needs_graph)
    for index, (t, s) in enumerate(steps):
        step = Step(x, t, s, index, len(steps), x, None, prior, measurement, kernel, draws, clip, keep_graph=False)
        step = evaluate(kernel.prepare(step), graph=graph)
        if cmi is not None:
            step = cmi(step)
        plain = _draw(step, step.mean(step.x_hat))
        x_s = guidance(step).detach()
        x_hat = step.clipped(step.x_hat.detach())
        alive = alive & _bounded(x_s, clip) & _bounded(x_hat, clip)
        kept = torch.where(per_sample(alive, kept), x_hat, kept)
        x = torch.where(per_sample(alive, x_s), x_s, 0.0)
        misfit = measurement.misfit(x_hat)
        yield Trace(
            index,
            len(steps),
            step.t,
            x,
            kept,
            misfit,
            _norm(x_s - plain),
            torch.zeros_like(misfit) if step.shift is None else _norm(step.shift),
            alive,
        )


def _bounded(x: Tensor, clip: tuple[float, float] | None) -> Tensor:
    limit = torch.inf if clip is None else LIMIT * max(map(abs, clip))
    return x.flatten(1).abs().amax(1) < limit


def _norm(x: Tensor) -> Tensor:
    return dot(x, x).sqrt()
