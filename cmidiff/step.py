"""One step of the reverse process, as a guidance sees it: from ``x_t`` at time ``t`` to ``x_s`` at ``s``, the next and
cleaner one.

Every reverse kernel of this library is linear in the state and the denoised image,

    x_s = a x_t + b x_hat + shift + std z,    z ~ N(0, I),

with ``(a, b, std)`` from the kernel and the levels at ``t`` and ``s``; ``shift`` is what CMI has added to the mean.
Since ``x_hat = (x_t + sigma_t^2 score) / alpha_t``, the weight ``b sigma_t^2 / alpha_t`` turns the gradient of any
log-density into a move of ``x_s``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from cmidiff.draws import Draws
from cmidiff.measurement import Measurement
from cmidiff.prior.base import Denoiser

Estimate = Callable[["Step"], Tensor]


class Kernel(Protocol):
    """A reverse kernel: how ``x_s`` follows from ``x_t`` and ``x_hat``."""

    def prepare(self, step: Step) -> Step:
        """The step to take instead, before the denoiser is evaluated (churn); most kernels return it unchanged."""
        ...

    def coefficients(self, step: Step) -> tuple[float, float]:
        """``(a, b)`` of the mean ``a x_t + b x_hat``."""
        ...

    def std(self, step: Step) -> float | Tensor:
        """Standard deviation of the noise, a number or (B, ...)."""
        ...

    def advance(self, step: Step, estimate: Estimate) -> Tensor:
        """``x_s``, with ``estimate(step)`` in place of the denoised image wherever the kernel evaluates it."""
        ...


@dataclass(frozen=True)
class Step:
    """The state of a run between two times. Functions of a step return a new one; nothing is stored between steps.

    Attributes:
        x_t: current state, shape (B, ...); it requires grad when ``x_hat`` carries a graph.
        t, s: times of this and of the next state.
        index, steps: number of this step, 0 first, and how many there are.
        x_hat: ``E[x_0 | x_t]``, not clipped, with the graph from ``x_t``.
        variance_fraction: of a learned-variance head (see `Prediction`), or None.
        prior, measurement, kernel, draws: what the run is made of.
        clip: range to which the denoised image is clipped inside the kernel, or None.
        shift: added to the kernel's mean (the CMI correction), or None.
        keep_graph: whether the graph outlives the guidance's last product. The loop frees it, which saves memory; a
            guidance that lets several others pull on one step gives them ``replace(step, keep_graph=True)``.
    """

    x_t: Tensor
    t: float
    s: float
    index: int
    steps: int
    x_hat: Tensor
    variance_fraction: Tensor | None
    prior: Denoiser
    measurement: Measurement
    kernel: Kernel
    draws: Draws
    clip: tuple[float, float] | None = None
    shift: Tensor | None = None
    keep_graph: bool = True

    @classmethod
    def at(cls, x_t: Tensor, t: float, s: float, *, like: Step, graph: bool) -> Step:
        """A step of the same run from another state, its ``x_hat`` with a graph if asked."""
        return evaluate(dataclasses.replace(like, x_t=x_t, t=t, s=s, shift=None), graph)

    @cached_property
    def level_t(self) -> tuple[float, float]:
        """``(alpha_t, sigma_t)``."""
        return self.prior.schedule(self.t)

    @cached_property
    def level_s(self) -> tuple[float, float]:
        """``(alpha_s, sigma_s)``; ``(1, 0)`` on the last step."""
        return self.prior.schedule(self.s)

    @property
    def last(self) -> bool:
        return self.level_s[1] == 0.0

    @property
    def ratio(self) -> float:
        """``sigma_t / alpha_t``, the noise level that all schedules share."""
        alpha_t, sigma_t = self.level_t
        return sigma_t / alpha_t

    @property
    def covariance_gain(self) -> float:
        """``sigma_t^2 / alpha_t``: ``Cov(x_0 | x_t)`` over the denoiser's Jacobian."""
        alpha_t, sigma_t = self.level_t
        return sigma_t**2 / alpha_t

    @property
    def transition(self) -> tuple[float, float]:
        """``(alpha_t|s, sigma_t|s)`` of the forward kernel from ``s`` to ``t``; ``sigma_t|s^2`` is DDPM's
        ``beta_t``."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.level_t, self.level_s
        alpha_ts = alpha_t / alpha_s
        return alpha_ts, math.sqrt(max(sigma_t**2 - (alpha_ts * sigma_s) ** 2, 0.0))

    @cached_property
    def coefficients(self) -> tuple[float, float]:
        return self.kernel.coefficients(self)

    @cached_property
    def std(self) -> float | Tensor:
        return self.kernel.std(self)

    @cached_property
    def z(self) -> Tensor:
        """The kernel's noise, shape of ``x_t``."""
        return self.draws.normal("kernel", self.index, self.x_t.detach())

    @property
    def score_weight(self) -> float:
        """``b sigma_t^2 / alpha_t``: what multiplies the gradient of a log-density in ``x_s`` (DDPM: ``beta_t / sqrt(1
        - beta_t)``)."""
        return self.coefficients[1] * self.covariance_gain

    def clipped(self, x_hat: Tensor) -> Tensor:
        """``x_hat`` in the clip range; a graph is kept, with zero gradient where it clips."""
        if self.clip is None:
            return x_hat
        with torch.enable_grad():
            return x_hat.clamp(*self.clip)

    def mean(self, x_hat: Tensor) -> Tensor:
        """The kernel's mean for a given denoised image, which is clipped; CMI's shift is included."""
        a, b = self.coefficients
        mean = a * self.x_t.detach() + b * self.clipped(x_hat.detach())
        return mean if self.shift is None else mean + self.shift

    def advance(self, estimate: Estimate | None = None) -> Tensor:
        """``x_s`` of the kernel alone, or with ``estimate(step)`` as the denoised image."""
        return self.kernel.advance(self, own_estimate if estimate is None else estimate)

    def moved(self, shift: Tensor) -> Step:
        """This step with ``shift`` added to the kernel's mean."""
        return dataclasses.replace(self, shift=shift if self.shift is None else self.shift + shift)

    def vjp(self, v: Tensor, of: Tensor | None = None, *, last: bool = False) -> Tensor:
        """``J^T v`` with the Jacobian of ``x_hat`` (or of ``of``, computed from it) at ``x_t``: one backward pass.

        Args:
            v: shape of ``x_hat``.
            of: what to differentiate instead of ``x_hat``.
            last: no other product of this step follows: its graph is freed on the way, unless ``keep_graph``.
        """
        target = self.x_hat if of is None else of
        return torch.autograd.grad(target, self.x_t, v, retain_graph=self.keep_graph or not last)[0]

    def denoise(self, x: Tensor, t: float | None = None) -> Tensor:
        """``x_hat`` at another state or time, shape of ``x`` (any batch size); with a graph if ``x`` requires grad."""
        return self.prior(x, self.t if t is None else t).mean


def own_estimate(step: Step) -> Tensor:
    """The denoised image as it is: what a kernel takes where no guidance corrects it."""
    return step.x_hat


class _Unevaluated(Step):
    """A step that has set ``x_hat`` and ``variance_fraction`` only when one of them was asked for: what CMI evaluates
    near ``x_t`` has then come and gone before the graph takes its memory."""

    def __getattr__(self, name: str) -> Tensor | None:
        if name not in ("x_hat", "variance_fraction"):
            raise AttributeError(f"a step has no {name!r}")
        with torch.set_grad_enabled(self.x_t.requires_grad):
            prediction = self.prior(self.x_t, self.t)
        fraction = prediction.variance_fraction
        vars(self).update(x_hat=prediction.mean, variance_fraction=None if fraction is None else fraction.detach())
        return vars(self)[name]


def evaluate(step: Step, graph: bool) -> Step:
    """``step`` with the denoiser evaluated at its ``x_t`` as soon as the result is needed, keeping the graph if
    asked."""
    values: dict[str, Any] = {field.name: getattr(step, field.name) for field in dataclasses.fields(step)}
    values["x_t"] = step.x_t.detach().requires_grad_(graph)
    later = _Unevaluated(**values)
    del vars(later)["x_hat"], vars(later)["variance_fraction"]
    return later
