r"""Noise schedules: ``t -> (alpha_t, sigma_t)``.

Every prior of this library is trained on the perturbation kernel

$$ x_t = \alpha_t x_0 + \sigma_t z, \qquad z \sim N(0, I), $$

and a schedule is the two numbers at a time ``t``. Samplers, guidances and the information estimators are
written in ``alpha_t`` and ``sigma_t`` alone, so that one formula serves variance-preserving (DDPM), variance-exploding
(EDM) and flow priors. The levels are Python floats (float64): a coefficient is rounded once, when it meets a tensor.

``t`` is the time that the network takes; ``ratio = sigma_t / alpha_t`` is the noise level that all schedules share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Schedule(Protocol):
    """A perturbation kernel and the grid of times on which it is sampled.

    ``end`` is the time of the clean image: ``schedule(end) == (1, 0)``.
    """

    @property
    def end(self) -> float: ...

    def __call__(self, t: float) -> tuple[float, float]:
        """``(alpha_t, sigma_t)`` at time ``t``."""
        ...

    def time(self, ratio: float) -> float:
        """The time at which ``sigma_t / alpha_t == ratio`` (held to a finite schedule's range)."""
        ...

    def grid(self, steps: int) -> list[float]:
        """The ``steps`` times of a sampler, noisiest first, without ``end``."""
        ...


def checked_steps(steps: int, most: int | None = None) -> int:
    """Return ``steps`` if it is a possible number of sampling steps; raise ``ValueError`` otherwise."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a positive integer, received {steps!r}")
    if most is not None and steps > most:
        raise ValueError(f"the prior's schedule has {most} levels, received steps={steps}: ask for at most {most}")
    return steps


@dataclass(frozen=True)
class DDPM:
    """The discrete grid of denoising diffusion models, with ``alpha_t = sqrt(abar_t)`` and ``sigma_t = sqrt(1 -
    abar_t)``.

    Integer times are the exact training levels ``0 .. T-1``; between them ``log abar`` is interpolated linearly. ``t =
    -1`` is clean.

    Args:
        alphas_cumprod: ``abar``, shape (T,), decreasing in (0, 1).

    Source: Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", 2020, https://arxiv.org/abs/2006.11239
    """

    alphas_cumprod: np.ndarray
    end: float = field(default=-1.0, init=False)

    def __post_init__(self) -> None:
        abar = np.asarray(self.alphas_cumprod, dtype=np.float64)
        inside = abar.ndim == 1 and abar.size > 0 and np.all(np.isfinite(abar)) and abar.min() > 0 and abar.max() < 1
        if not inside or np.any(np.diff(abar) >= 0):
            raise ValueError(
                "alphas_cumprod must be a strictly decreasing vector inside (0, 1), "
                f"received shape {abar.shape}: pass cumprod(1 - betas)"
            )
        object.__setattr__(self, "alphas_cumprod", abar)

    @classmethod
    def linear(cls, levels: int = 1000, beta_first: float = 1e-4, beta_last: float = 2e-2) -> DDPM:
        """Linear betas, the grid of the papers' networks."""
        return cls(np.cumprod(1.0 - np.linspace(beta_first, beta_last, levels, dtype=np.float64)))

    @classmethod
    def cosine(cls, levels: int = 1000, offset: float = 8e-3, beta_most: float = 0.999) -> DDPM:
        """Squared-cosine abar with capped betas.

        Source: Nichol, Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021,
            https://arxiv.org/abs/2102.09672
        """
        u = np.arange(levels + 1, dtype=np.float64) / levels
        abar = np.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
        return cls(np.cumprod(1.0 - np.minimum(1.0 - abar[1:] / abar[:-1], beta_most)))

    @property
    def levels(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def betas(self) -> np.ndarray:
        return 1.0 - self.alphas_cumprod / np.concatenate([[1.0], self.alphas_cumprod[:-1]])

    def _log_abar(self, t: float) -> float:
        if not -1.0 <= t <= self.levels - 1:
            raise ValueError(f"t must lie in [-1, {self.levels - 1}], received {t}")
        low = math.floor(t)
        at = [0.0 if i < 0 else math.log(self.alphas_cumprod[i]) for i in (low, min(low + 1, self.levels - 1))]
        return at[0] + (t - low) * (at[1] - at[0])

    def __call__(self, t: float) -> tuple[float, float]:
        t = float(t)
        if t.is_integer() and 0 <= t < self.levels:
            abar = float(self.alphas_cumprod[int(t)])
            return math.sqrt(abar), math.sqrt(1.0 - abar)
        log_abar = self._log_abar(t)
        return math.exp(0.5 * log_abar), math.sqrt(-math.expm1(log_abar))

    def time(self, ratio: float) -> float:
        log_abar = np.concatenate([[0.0], np.log(self.alphas_cumprod)])
        return float(np.interp(math.log1p(ratio**2), -log_abar, np.arange(-1.0, self.levels)))

    def grid(self, steps: int) -> list[float]:
        """The guided-diffusion rule: both ends, a constant fractional stride, each time rounded (half to even)."""
        if checked_steps(steps, self.levels) == 1:
            return [self.levels - 1.0]
        stride, at, times = (self.levels - 1) / (steps - 1), 0.0, []
        for _ in range(steps):
            times.append(float(round(at)))
            at += stride
        return times[::-1]

    def ddim_grid(self, steps: int) -> list[float]:
        """A constant integer stride from level 0 upwards (guided-diffusion's ``ddimN``); needs a stride that gives
        exactly ``steps``."""
        checked_steps(steps, self.levels)
        for stride in range(1, self.levels):
            if len(range(0, self.levels, stride)) == steps:
                return [float(t) for t in reversed(range(0, self.levels, stride))]
        raise ValueError(f"no integer stride splits {self.levels} levels into {steps} steps: use grid({steps})")


@dataclass(frozen=True)
class VP:
    """The continuous variance-preserving process, ``t`` in [0, 1], ``log abar_t = -(beta_min t + (beta_max - beta_min)
    t^2 / 2)``.

    Source: Song et al., "Score-Based Generative Modeling through SDEs", 2021, https://arxiv.org/abs/2011.13456
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    end: float = field(default=0.0, init=False)

    def __call__(self, t: float) -> tuple[float, float]:
        log_abar = -(self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2)
        return math.exp(0.5 * log_abar), math.sqrt(-math.expm1(log_abar))

    def time(self, ratio: float) -> float:
        slope, level = self.beta_max - self.beta_min, math.log1p(ratio**2)
        return min(1.0, 2 * level / (self.beta_min + math.sqrt(self.beta_min**2 + 2 * slope * level)))

    def grid(self, steps: int) -> list[float]:
        return np.linspace(1.0, self.t_min, checked_steps(steps)).tolist()


@dataclass(frozen=True)
class VE:
    """The variance-exploding process of EDM: ``alpha_t = 1``, ``sigma_t = t``, sampled on Karras' grid.

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
        https://arxiv.org/abs/2206.00364
    """

    sigma_min: float = 0.01
    sigma_max: float = 80.0
    rho: float = 7.0
    end: float = field(default=0.0, init=False)

    def __call__(self, t: float) -> tuple[float, float]:
        return 1.0, float(t)

    def time(self, ratio: float) -> float:
        return ratio

    def grid(self, steps: int) -> list[float]:
        return karras(checked_steps(steps), self.sigma_min, self.sigma_max, self.rho)


@dataclass(frozen=True)
class RectifiedFlow:
    """The straight path ``x_t = (1 - t) x_0 + t z``, sampled from ``t_max`` (at ``t = 1`` nothing is left of the
    image).

    Source: Liu, Gong, Liu, "Flow Straight and Fast", 2022, https://arxiv.org/abs/2209.03003
    """

    t_max: float = 0.999
    t_min: float = 1e-3
    end: float = field(default=0.0, init=False)

    def __call__(self, t: float) -> tuple[float, float]:
        return 1.0 - t, float(t)

    def time(self, ratio: float) -> float:
        return min(ratio / (1.0 + ratio), self.t_max)

    def grid(self, steps: int) -> list[float]:
        return np.linspace(self.t_max, self.t_min, checked_steps(steps)).tolist()


@dataclass(frozen=True)
class ShiftedFlow(RectifiedFlow):
    """The straight path on a grid that dwells on its noisy end: ``u`` falls evenly from 1, and ``t = shift u / (1 +
    (shift - 1) u)``.

    Args:
        shift: positive; 1 is an even grid.
        least: the last ``u``; None: ``1 / steps``.

    Source: Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", 2024,
        https://arxiv.org/abs/2403.03206 (eq. 23)
    """

    shift: float = 3.0
    least: float | None = None
    t_max: float = 1 - 1e-5

    def grid(self, steps: int) -> list[float]:
        last = 1 / checked_steps(steps) if self.least is None else self.least
        u = np.linspace(1.0, last, steps)
        return np.minimum(self.shift * u / (1 + (self.shift - 1) * u), self.t_max).tolist()


@dataclass(frozen=True)
class Limited:
    """The part of a schedule between two noise levels ``sigma / alpha``, for priors that denoise no others.

    The perturbation kernel and its times are those of ``inner``. The grid is that of ``inner`` with its times mapped
    linearly, so that it runs from ``highest`` to ``lowest``.

    Args:
        inner: the whole schedule.
        lowest, highest: levels, ``0 < lowest < highest``.

    Raises:
        ValueError: levels that are no range.
    """

    inner: Schedule
    lowest: float
    highest: float

    def __post_init__(self) -> None:
        if not 0 < self.lowest < self.highest < math.inf:
            raise ValueError(f"need 0 < lowest < highest < infinity, received {self.lowest} and {self.highest}")

    @property
    def end(self) -> float:
        return self.inner.end

    def __call__(self, t: float) -> tuple[float, float]:
        return self.inner(t)

    def time(self, ratio: float) -> float:
        return self.inner.time(min(ratio, self.highest))

    def grid(self, steps: int) -> list[float]:
        times = self.inner.grid(checked_steps(steps))
        first, last = self.inner.time(self.highest), self.inner.time(self.lowest)
        if steps == 1:
            return [first]
        scale = (first - last) / (times[0] - times[-1])
        return [first, *(last + scale * (t - times[-1]) for t in times[1:])]


def level(schedule: Schedule, t: float) -> float:
    """``sigma_t / alpha_t``; infinity where nothing is left of the image."""
    alpha, sigma = schedule(t)
    return sigma / alpha if alpha > 0 else math.inf


def within(schedule: Schedule, lowest: float, highest: float) -> Schedule:
    """The schedule itself if its grid lies between two levels ``sigma / alpha``, else its part between them."""
    if lowest == 0 and highest == math.inf:
        return schedule
    first, last = (level(schedule, t) for t in schedule.grid(2))
    if lowest <= last * (1 + 1e-9) and first <= highest * (1 + 1e-9):
        return schedule
    return Limited(schedule, max(lowest, last), min(first, highest))


def karras(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> list[float]:
    """Noise levels from ``sigma_max`` down to ``sigma_min``, uniform in ``sigma^(1/rho)`` (Karras et al. 2022, eq.
    5)."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return [(high + i / max(steps - 1, 1) * (low - high)) ** rho for i in range(steps)]


def pairs(times: Sequence[float], end: float) -> list[tuple[float, float]]:
    """The steps ``(t, s)`` of a grid: each time with the next one, the last with ``end``."""
    return list(zip(times, [*times[1:], end], strict=True))
