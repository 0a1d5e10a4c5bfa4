"""The base class of all priors that are made of one other prior."""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from torch import Tensor

from cmidiff.moments import SecondMoments
from cmidiff.prior.base import Denoiser, Evaluation, Prediction, Range
from cmidiff.prior.decoder import Decoder
from cmidiff.schedule import Schedule


class WrappedPrior:
    """A prior that declares the facts of the prior inside it, and evaluates it; see `cmidiff.prior.Denoiser`.

    A subclass overrides ``__call__`` and the facts that it changes.

    Attributes:
        inner: the prior inside.
    """

    inner: Denoiser

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        return self.inner(x_t, t)

    @property
    def schedule(self) -> Schedule:
        return self.inner.schedule

    @property
    def value_range(self) -> Range | None:
        return self.inner.value_range

    @property
    def decoder(self) -> Decoder | None:
        return self.inner.decoder

    @property
    def clip(self) -> Range | None:
        return self.inner.clip

    @property
    def channels(self) -> int | None:
        return self.inner.channels

    @property
    def multiple(self) -> int:
        return self.inner.multiple

    @property
    def size(self) -> int | None:
        return self.inner.size

    @property
    def dtype(self) -> torch.dtype | None:
        return self.inner.dtype

    @property
    def device(self) -> torch.device | None:
        return self.inner.device

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def card(self) -> dict[str, Any]:
        return self.inner.card

    @property
    def fingerprint(self) -> str:
        return self.inner.fingerprint

    @property
    def smooth(self) -> bool:
        return self.inner.smooth

    @property
    def second_moments(self) -> SecondMoments | None:
        return self.inner.second_moments

    @property
    def variance(self) -> float:
        return self.inner.variance

    @property
    def min_ratio(self) -> float:
        return self.inner.min_ratio

    @property
    def max_ratio(self) -> float:
        return self.inner.max_ratio

    def smooth_at(self, ratio: float) -> bool:
        return self.inner.smooth_at(ratio)

    def decode(self, x: Tensor) -> Tensor:
        return x if self.decoder is None else self.decoder.decode(x)

    def encode(self, image: Tensor) -> Tensor:
        return image if self.decoder is None else self.decoder.encoded(image)

    def evaluations(self, shape: tuple[int, ...], batch: int) -> list[Evaluation]:
        return self.inner.evaluations(shape, batch)

    def to(self, device: torch.device | str) -> Self:
        other = copy.copy(self)
        object.__setattr__(other, "inner", self.inner.to(device))  # a subclass may be a frozen dataclass
        return other
