"""What a restoration costs: how many times the network runs forwards and backwards."""

from __future__ import annotations

from torch import Tensor

from cmidiff.prior.base import Denoiser, Prediction
from cmidiff.prior.wrapped import WrappedPrior


class Counted(WrappedPrior):
    """A denoiser that counts, image by image: one forward pass of a batch of 4 counts 4.

    Attributes:
        forwards: evaluations of the network.
        backwards: gradients through it.
    """

    def __init__(self, inner: Denoiser) -> None:
        self.inner = inner
        self.forwards = 0
        self.backwards = 0

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        self.forwards += len(x_t)
        prediction = self.inner(x_t, t)
        if prediction.mean.requires_grad:
            prediction.mean.register_hook(self._count)
        return prediction

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)
