"""What a restoration costs: how many times the network runs forwards and backwards."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from cmidiff.prior.base import Denoiser, Prediction
from cmidiff.schedule import Schedule


class Counted:
    """A denoiser that counts, image by image: one forward pass of a batch of 4 counts 4.

    Attributes:
        forwards: evaluations of the network.
        backwards: gradients through it.
    """

    def __init__(self, prior: Denoiser) -> None:
        self.prior = prior
        self.forwards = 0
        self.backwards = 0

    @property
    def schedule(self) -> Schedule:
        return self.prior.schedule

    @property
    def value_range(self) -> tuple[float, float] | None:
        return self.prior.value_range

    @property
    def channels(self) -> int | None:
        return self.prior.channels

    @property
    def multiple(self) -> int:
        return self.prior.multiple

    def __getattr__(self, name: str) -> Any:
        return getattr(self.prior, name)

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        self.forwards += len(x_t)
        prediction = self.prior(x_t, t)
        if prediction.mean.requires_grad:
            prediction.mean.register_hook(self._count)
        return prediction

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)
