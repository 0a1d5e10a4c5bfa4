"""Two priors as one: the first at low noise, the second above.

For every schedule ``x_t / alpha_t = x_0 + r z`` with ``r = sigma_t / alpha_t``, and a denoiser is a function of these
two alone. The composite runs on the schedule and in the units of the second prior. It evaluates the first at the same
image and level, in its own units and at its own time:

    x_hat(x_t) = high(x_t, t)                              r > at
    x_hat(x_t) = (low(alpha_u u, u_t) - o) / g,            r <= at,   u = g x_t / alpha_t + o,   r_u = g r

with ``g, o`` of the affine map between the two ranges.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Self

import torch
from torch import Tensor

from cmidiff.moments import SecondMoments
from cmidiff.prior.base import Denoiser, Evaluation, Prediction, Prior, Range, digest
from cmidiff.schedule import Limited, Schedule, level, within

TOLERANCE = 1e-9  # of ``at``: what a time and back may round


class Composite(Prior):
    """One prior at noise levels up to ``at``, another above.

    Args:
        low: the prior for ``sigma_t / alpha_t <= at``.
        high: the prior above. The composite has its schedule and its range; where the noise range of ``high`` is
            limited, runs start at its end.
        at: the level of the seam, in units of ``high``.
        name: by default both names.
        card: by default both cards, and ``at``.

    A learned variance is known above the seam only, and only if ``high`` has it. Below it, ``variance_fraction`` is
    None unless ``low`` has it.

    Raises:
        ValueError: priors on different kinds of signals, or a level that one of them does not denoise.
    """

    def __init__(
        self, low: Denoiser, high: Denoiser, at: float, *, name: str | None = None, card: dict[str, Any] | None = None
    ) -> None:
        if latent := [prior.name for prior in (low, high) if prior.decoder is not None]:
            raise ValueError(
                f"a composite joins priors of images, received the latent prior {latent[0]}: join the priors of its "
                "latents, and pass the composite to cmidiff.prior.LatentPrior"
            )
        self.gain, self.offset = _map(high, low)
        if not (
            high.min_ratio <= at * (1 + TOLERANCE) and at * self.gain <= low.max_ratio * (1 + TOLERANCE) and at > 0
        ):
            raise ValueError(
                f"at must be a level sigma/alpha that both priors denoise, from {high.min_ratio:.4g} (the least of "
                f"{high.name}) to {low.max_ratio / self.gain:.4g} (the most of {low.name}), received {at}"
            )
        if not at < high.max_ratio:
            raise ValueError(f"{high.name} denoises up to {high.max_ratio:.4g} only, received at={at}: leave it out")
        self.low, self.high, self.at = low, high, at
        self.value_range = high.value_range
        self.channels = _channels(low, high)
        self.multiple = math.lcm(low.multiple, high.multiple)
        self.size = low.size if high.size is None else high.size
        self.smooth = low.smooth and high.smooth
        self.min_ratio, self.max_ratio = low.min_ratio / self.gain, high.max_ratio
        self.schedule: Schedule = _schedule(low, high, at, self.gain)
        self._name = f"{low.name} below {at:.4g}, {high.name} above" if name is None else name
        self._card = {"low": low.card, "high": high.card, "at": at} if card is None else card

    @property
    def clip(self) -> Range | None:
        return self.high.clip

    @property
    def second_moments(self) -> SecondMoments | None:
        return self.high.second_moments

    @property
    def dtype(self) -> torch.dtype | None:
        """The coarser of the two precisions."""
        known = [dtype for dtype in (self.low.dtype, self.high.dtype) if dtype is not None]
        return max(known, key=lambda dtype: torch.finfo(dtype).eps, default=None)

    @property
    def device(self) -> torch.device | None:
        return self.low.device if self.high.device is None else self.high.device

    @property
    def name(self) -> str:
        return self._name

    @property
    def card(self) -> dict[str, Any]:
        return self._card

    @property
    def fingerprint(self) -> str:
        return digest(self.low.fingerprint, self.high.fingerprint, self.at)

    def is_low(self, ratio: float) -> bool:
        """Whether ``low`` denoises this level ``sigma_t / alpha_t``."""
        return ratio <= self.at * (1 + TOLERANCE)

    def smooth_at(self, ratio: float) -> bool:
        return self.low.smooth_at(self.gain * ratio) if self.is_low(ratio) else self.high.smooth_at(ratio)

    def evaluations(self, shape: tuple[int, ...], batch: int) -> list[Evaluation]:
        return [*self.low.evaluations(shape, batch), *self.high.evaluations(shape, batch)]

    def to(self, device: torch.device | str) -> Self:
        other = copy.copy(self)
        other.low, other.high = self.low.to(device), self.high.to(device)
        return other

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        """``E[x_0 | x_t]``; ``x_t`` has shape (B, ...)."""
        alpha_t, sigma_t = self.schedule(t)
        if sigma_t > self.at * (1 + TOLERANCE) * alpha_t:
            return self.high(x_t, t)
        u_t = self.low.schedule.time(self.gain * sigma_t / alpha_t)
        alpha_u, _ = self.low.schedule(u_t)
        u_hat, fraction = self.low(alpha_u * (self.gain / alpha_t * x_t + self.offset), u_t)
        return Prediction((u_hat - self.offset) / self.gain, fraction)


def _map(high: Denoiser, low: Denoiser) -> tuple[float, float]:
    """``(gain, offset)`` of the affine map from the range of ``high`` to that of ``low``."""
    if high.value_range is None and low.value_range is None:
        return 1.0, 0.0
    if high.value_range is None or low.value_range is None:
        raise ValueError(
            f"both priors must have a value_range or neither, received {low.value_range} ({low.name}) and "
            f"{high.value_range} ({high.name})"
        )
    gain = (low.value_range[1] - low.value_range[0]) / (high.value_range[1] - high.value_range[0])
    return gain, low.value_range[0] - gain * high.value_range[0]


def _channels(low: Denoiser, high: Denoiser) -> int | None:
    if None not in (low.channels, high.channels) and low.channels != high.channels:
        raise ValueError(
            f"both priors must have the same channels, received {low.channels} ({low.name}) and {high.channels} "
            f"({high.name})"
        )
    return low.channels if high.channels is None else high.channels


def _schedule(low: Denoiser, high: Denoiser, at: float, gain: float) -> Schedule:
    """The schedule of ``high``, from the noisiest level that ``high`` denoises to a level that ``low`` denoises. That
    is the end of its own grid, or of that of ``low`` where the noise range of ``high`` ends before."""
    first, last = (level(high.schedule, t) for t in high.schedule.grid(2))
    if high.min_ratio == 0 and last < at:
        return within(high.schedule, low.min_ratio / gain, high.max_ratio)
    return Limited(high.schedule, level(low.schedule, low.schedule.grid(2)[-1]) / gain, min(first, high.max_ratio))
