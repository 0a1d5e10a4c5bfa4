"""The contract of a reverse sampler: how ``x_s`` follows from ``x_t`` and the denoised image.

Every reverse sampler of this library is linear in the state and the denoised image,

    x_s = a x_t + b x_hat' + std z,    z ~ N(0, I),

with ``(a, b, std)`` from the sampler and the levels at ``t`` and ``s``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

if TYPE_CHECKING:
    from cmidiff.step.step import Step

Estimate = Callable[["Step"], Tensor]
Carry = Any


@runtime_checkable
class Sampler(Protocol):
    """The reverse process: how ``x_s`` follows from ``x_t`` and the denoised image."""

    @property
    def silent(self) -> bool:
        """Whether it adds no noise."""
        ...

    def prepare(self, step: Step) -> Step:
        """Return the step to take instead, before the denoiser is evaluated (churn); most samplers return it as is."""
        ...

    def coefficients(self, step: Step) -> tuple[float, float]:
        """Return ``(a, b)`` of the mean ``a x_t + b x_hat``."""
        ...

    def std(self, step: Step) -> float | Tensor:
        """Return the standard deviation of the noise, a number or (B, ...)."""
        ...

    def advance(self, step: Step, estimate: Estimate, carry: Carry) -> tuple[Tensor, Carry]:
        """Return ``x_s``, with ``estimate(step)`` as the denoised image, and what the next step needs of this one."""
        ...
