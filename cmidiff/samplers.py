"""Reverse samplers: how ``x_s`` follows from ``x_t`` and a denoised image.

With ``alpha_t|s = alpha_t / alpha_s`` and ``sigma_t|s^2 = sigma_t^2 - alpha_t|s^2 sigma_s^2`` of the forward process
from ``s`` to ``t``, ``lambda = log(alpha / sigma)`` and ``h = lambda_s - lambda_t``, for any schedule:

    Ancestral         the exact p(x_s | x_t, x_0 = x_hat):  a = alpha_t|s sigma_s^2 / sigma_t^2,
                      b = alpha_s sigma_t|s^2 / sigma_t^2,  std^2 = sigma_t|s^2 sigma_s^2 / sigma_t^2
    DDIM              std = eta x that,  x_s = alpha_s x_hat + sqrt(sigma_s^2 - std^2) eps + std z,
                      eps = (x_t - alpha_t x_hat) / sigma_t
    ProbabilityFlow   d x~ / d r = (x~ - x_hat) / r  in  x~ = x / alpha,  r = sigma / alpha, by Euler or Heun
    DPMSolver         the same flow, or the reverse SDE, in lambda, with x_hat extrapolated from two steps
    Renoise           x_s = alpha_s x_hat + sigma_s (sqrt(1 - zeta) eps + sqrt(zeta) z): with zeta = 1 nothing is kept
                      of the noise in x_t
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from cmidiff.config import Checked, Fraction
from cmidiff.step import Carry, Estimate, Step, own_estimate

Variance = Literal["auto", "small", "large", "learned"]


class _Memoryless(Checked):
    """A sampler that starts from the state as it is and remembers nothing."""

    @property
    def silent(self) -> bool:
        return False

    def prepare(self, step: Step) -> Step:
        return step

    def advance(self, step: Step, estimate: Estimate, carry: Carry) -> tuple[Tensor, Carry]:
        return _draw(step, step.mean(estimate(step))), carry


@dataclass(frozen=True)
class Ancestral(_Memoryless):
    """The reverse process of DDPM.

    Args:
        variance: ``small`` (that of ``p(x_s | x_t, x_0)``), ``large`` (``beta_t``), ``learned`` (between them in the
            logarithm, by the network's head). ``auto``: learned if the network has a head, else small.

    Sources: Ho, Jain, Abbeel 2020, https://arxiv.org/abs/2006.11239; Nichol, Dhariwal 2021,
        https://arxiv.org/abs/2102.09672 (learned)
    """

    variance: Variance = "auto"

    def coefficients(self, step: Step) -> tuple[float, float]:
        (_, sigma_t), (alpha_s, sigma_s) = step.level_t, step.level_s
        alpha_ts, sigma_ts = step.transition
        return alpha_ts * sigma_s**2 / sigma_t**2, alpha_s * sigma_ts**2 / sigma_t**2

    def std(self, step: Step) -> float | Tensor:
        if step.last:
            return 0.0
        large = step.transition[1]
        small = large * step.level_s[1] / step.level_t[1]
        if self.variance in ("small", "large"):
            return small if self.variance == "small" else large
        fraction = step.variance_fraction
        if fraction is not None:
            return (fraction * math.log(large) + (1 - fraction) * math.log(small)).exp()
        if self.variance == "learned":
            raise ValueError(
                f"Ancestral: variance='learned' needs a prior with a learned-variance head, received "
                f"{step.prior.name}: use 'small' or 'large'"
            )
        return small


@dataclass(frozen=True)
class DDIM(_Memoryless):
    """Denoising diffusion implicit models: ``eta = 0`` is deterministic, ``eta = 1`` has the noise of `Ancestral`.

    Source: Song, Meng, Ermon, 2021, https://arxiv.org/abs/2010.02502
    """

    eta: Fraction = 0.0

    @property
    def silent(self) -> bool:
        return self.eta == 0

    def std(self, step: Step) -> float:
        return self.eta * step.transition[1] * step.level_s[1] / step.level_t[1]

    def coefficients(self, step: Step) -> tuple[float, float]:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = step.level_t, step.level_s
        a = math.sqrt(max(sigma_s**2 - self.std(step) ** 2, 0.0)) / sigma_t
        return a, alpha_s - a * alpha_t


@dataclass(frozen=True)
class Renoise(_Memoryless):
    """Every step puts ``x_s`` around the denoised image with all the noise of its level, as DAPS and PnP methods do.

    Args:
        zeta: the fresh part of the noise, in variance. 1 draws all of it anew; less keeps a part of the noise in
            ``x_t``, as DiffPIR does; 0 is `DDIM`.

    Sources: Zhang, Chu, Berner, Meng, Anandkumar, Song, 2024, https://arxiv.org/abs/2407.01521; Zhu et al., 2023,
        https://arxiv.org/abs/2305.08995 (``zeta``)
    """

    zeta: Fraction = 1.0

    @property
    def silent(self) -> bool:
        return self.zeta == 0

    def coefficients(self, step: Step) -> tuple[float, float]:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = step.level_t, step.level_s
        a = math.sqrt(1 - self.zeta) * sigma_s / sigma_t
        return a, alpha_s - a * alpha_t

    def std(self, step: Step) -> float:
        return math.sqrt(self.zeta) * step.level_s[1]


@dataclass(frozen=True)
class DPMSolver(_Memoryless):
    """DPM-Solver++ on the denoised image, with the first step and the last of first order.

    Args:
        order: 2 (``2M``, extrapolates from two steps) or 1.
        sde: the reverse SDE (``SDE-DPM-Solver++``) instead of the flow.

    Source: Lu, Zhou, Bao, Chen, Li, Zhu, 2022, https://arxiv.org/abs/2211.01095
    """

    order: Literal[1, 2] = 2
    sde: bool = False

    @property
    def silent(self) -> bool:
        return not self.sde

    def coefficients(self, step: Step) -> tuple[float, float]:
        return (Ancestral("small") if self.sde else DDIM()).coefficients(step)

    def std(self, step: Step) -> float | Tensor:
        return Ancestral("small").std(step) if self.sde else 0.0

    def advance(self, step: Step, estimate: Estimate, carry: Carry) -> tuple[Tensor, Carry]:
        """Step. ``carry`` is the last denoised image, its ``lambda``, and the time that it led to. After a step back in
        time, which the sampler does not take, the state is another one, and nothing is extrapolated."""
        now, lambda_t = step.clipped(estimate(step).detach()), -math.log(step.ratio)
        x_hat = now
        if self.order == 2 and carry is not None and not step.last:
            before, lambda_before, end = carry
            if end == step.t and lambda_t > lambda_before:
                h = math.log(step.level_s[0] / step.level_s[1]) - lambda_t
                x_hat = now + (h / (lambda_t - lambda_before) / 2) * (now - before)
        return _draw(step, step.mean(x_hat)), (now, lambda_t, step.s)


@dataclass(frozen=True)
class ProbabilityFlow(Checked):
    """The sampler of EDM: the probability-flow ODE by Heun's rule (``order=2``, an Euler step on the last) or Euler's,
    with optional churn.

    The guided denoiser is what is integrated: ``estimate`` is called at both ends of a Heun step. It runs on any
    schedule through ``x / alpha_t``.

    Args:
        order: 1 or 2.
        churn: noise added before each step with its level in ``churn_range``, as a fraction ``churn / steps`` (at most
            ``sqrt 2 - 1``) of the level.
        churn_range: the levels ``sigma / alpha`` that are churned.
        churn_noise: standard deviation of that noise, relative (EDM takes 1.003).

    Raises:
        ValueError: ``order`` is neither 1 nor 2, or a negative number.

    Source: Karras, Aittala, Aila, Laine, 2022, https://arxiv.org/abs/2206.00364 (Algorithms 1 and 2)
    """

    order: Literal[1, 2] = 2
    churn: float = 0.0
    churn_range: tuple[float, float] = (0.05, 50.0)
    churn_noise: float = 1.0

    def __post_init__(self) -> None:
        if not (self.churn >= 0 and self.churn_noise >= 0 and 0 <= self.churn_range[0] <= self.churn_range[1]):
            raise ValueError(
                "ProbabilityFlow: need churn >= 0, churn_noise >= 0 and 0 <= churn_range[0] <= churn_range[1], "
                f"received {self.churn}, {self.churn_noise} and {self.churn_range}"
            )

    @property
    def silent(self) -> bool:
        return True  # churn comes before the step: the step itself adds none

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
        return step.moved(alpha_up * (step.x_t.detach() / alpha + extra * step.z), t)

    def advance(self, step: Step, estimate: Estimate, carry: Carry) -> tuple[Tensor, Carry]:
        x_s = step.mean(estimate(step))
        if self.order == 1 or step.last:
            return x_s, carry
        (alpha_t, sigma_t), (alpha_s, sigma_s) = step.level_t, step.level_s
        r_t, r_s, x_t = sigma_t / alpha_t, sigma_s / alpha_s, step.x_t.detach() / alpha_t
        ahead = step.moved(x_s, step.s, graph=step.x_t.requires_grad and estimate is not own_estimate)
        slope_t = (x_s / alpha_s - x_t) / (r_s - r_t)
        slope_s = (x_s / alpha_s - ahead.corrected(estimate(ahead))) / r_s
        return alpha_s * (x_t + (r_s - r_t) * 0.5 * (slope_t + slope_s)), carry


def _draw(step: Step, mean: Tensor) -> Tensor:
    std = step.std
    return mean if isinstance(std, float) and std == 0.0 else mean + std * step.z
