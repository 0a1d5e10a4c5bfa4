"""The base class of all priors that are made of one other prior."""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from torch import Tensor

from cmidiff.prior.base import FACTS, Denoiser, Prediction, Prior


class WrappedPrior(Prior):
    """A prior that declares the facts of the prior inside it, and evaluates it; see `cmidiff.prior.Denoiser`.

    A subclass overrides ``__call__`` and the facts that it changes.

    Attributes:
        inner: the prior inside.
    """

    inner: Denoiser

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        return self.inner(x_t, t)

    def to(self, device: torch.device | str) -> Self:
        other = copy.copy(self)
        object.__setattr__(other, "inner", self.inner.to(device))  # a subclass may be a frozen dataclass
        return other


class _Forwarded:
    """A fact of the prior inside, unless the wrapper has one of its own."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, wrapper: WrappedPrior | None, owner: type) -> Any:
        return self if wrapper is None else getattr(wrapper.inner, self.name)


for _name in (*FACTS, "smooth_at", "evaluations"):
    setattr(WrappedPrior, _name, _Forwarded(_name))
