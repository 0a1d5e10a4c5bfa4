"""Calls of the denoiser in a run: the one of a step, made when it is first needed, and earlier ones."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from cmidiff.measurement import Measurement
from cmidiff.prior.base import Denoiser, Prediction


class Seen(NamedTuple):
    """An earlier call of the denoiser in the same run.

    Attributes:
        x_t: the state, shape (B, ...).
        t: its time.
        x_hat: the denoised image, not clipped.
    """

    x_t: Tensor
    t: float
    x_hat: Tensor


class Denoised:
    """The denoiser at one state, evaluated when it is first needed and at most once.

    What CMI evaluates near ``x_t`` has then come and gone before the graph takes its memory.
    """

    def __init__(self, prior: Denoiser, x_t: Tensor, t: float) -> None:
        self.prior, self.x_t, self.t = prior, x_t, t
        self.done = False
        self._linear: tuple[Measurement, Measurement] | None = None

    @cached_property
    def prediction(self) -> Prediction:
        self.done = True
        with torch.set_grad_enabled(self.x_t.requires_grad):
            return self.prior(self.x_t, self.t)

    def linearised(self, measurement: Measurement) -> Measurement:
        """The measurement linearised at ``x_hat``, once for all uses."""
        if self._linear is None or self._linear[0] is not measurement:
            self._linear = measurement, measurement.linearised(self.prediction.mean.detach())
        return self._linear[1]
