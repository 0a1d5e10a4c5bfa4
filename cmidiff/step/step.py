"""One step of the reverse process, as a solver sees it: from ``x_t`` at time ``t`` to ``x_s`` at ``s``.

The sampler is linear in the state and the denoised image (`cmidiff.step.Sampler`). A solver replaces ``x_hat`` by its
estimate of ``E[x_0 | x_t, y]``, and CMI adds its correction to that estimate. Both therefore reach every sampler in the
same way. Since ``x_hat = (x_t + sigma_t^2 score) / alpha_t``, the gradient of any log-density moves ``x_hat`` by
``sigma_t^2 / alpha_t`` times itself (`Step.covariance_gain`).

Usually ``s < t``: ``s`` is less noisy. A step with ``s > t`` travels back in time (RePaint, DDNM).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from cmidiff.draws import Draws
from cmidiff.measurement import Measurement
from cmidiff.prior.base import Denoiser
from cmidiff.step.denoised import Denoised, Seen
from cmidiff.step.problem import Problem
from cmidiff.step.sampler import Carry, Estimate, Sampler


@dataclass(frozen=True)
class Record:
    """What a step did that its result does not show.

    Attributes:
        corrections: parts of CMI's correction that survived the clipping, each of the shape of ``x_t``.
        moves: what CMI changed in ``x_s``, where that is not the sampler's weight times a correction.
        residuals: relative residuals of the linear solves, each of shape (B,).
    """

    corrections: list[Tensor] = field(default_factory=list)
    moves: list[Tensor] = field(default_factory=list)
    residuals: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Step:
    """The state of a run between two times. Functions of a step return a new one; nothing is stored between steps.

    Attributes:
        problem: what the run is made of.
        x_t: current state, shape (B, ...); it requires grad when ``x_hat`` carries a graph.
        t, s: times of this and of the next state.
        index, steps: number of this step, 0 first, and how many there are.
        denoised: the denoiser at ``x_t``.
        correction: what CMI adds to the denoised image, shape of ``x_t``, or None.
        record: what was done on the way, for the statistics of the run.
        past: the last calls of the denoiser before this step, oldest first: as many as the solver asks for
            (``Solver.memory``) and the run has made.
        inner: number of this step within a step of the run, for a solver that runs the sampler inside of its own step.
        keep_graph: whether the graph outlives the solver's last product. The loop frees it, which saves memory; a
            solver that lets several others pull on one step gives them ``replace(step, keep_graph=True)``.
    """

    problem: Problem
    x_t: Tensor
    t: float
    s: float
    index: int
    steps: int
    denoised: Denoised
    correction: Tensor | None = None
    record: Record = field(default_factory=Record)
    past: tuple[Seen, ...] = ()
    inner: int = 0
    keep_graph: bool = True

    @classmethod
    def at(
        cls, problem: Problem, x_t: Tensor, t: float, s: float, *, graph: bool, index: int = 0, steps: int = 1
    ) -> Step:
        """A step from a state; the denoiser keeps its graph if asked."""
        x_t = x_t.detach().requires_grad_(graph)
        return cls(problem, x_t, t, s, index, steps, Denoised(problem.prior, x_t, t))

    def moved(self, x_t: Tensor, t: float, *, graph: bool | None = None) -> Step:
        """This step from another state and time, with its denoiser evaluated there.

        Args:
            x_t: the state.
            t: its time.
            graph: whether the denoiser keeps its graph; None: as this step's.
        """
        x_t = x_t.detach().requires_grad_(self.x_t.requires_grad if graph is None else graph)
        return dataclasses.replace(self, x_t=x_t, t=t, denoised=Denoised(self.prior, x_t, t))

    @property
    def prior(self) -> Denoiser:
        return self.problem.prior

    @property
    def measurement(self) -> Measurement:
        """``y`` and its physics; linear at the step's ``x_hat`` where the run linearises."""
        measurement = self.problem.measurement
        return self.denoised.linearised(measurement) if self.problem.linearise else measurement

    @property
    def sampler(self) -> Sampler:
        return self.problem.sampler

    @property
    def draws(self) -> Draws:
        return self.problem.draws

    @property
    def x_hat(self) -> Tensor:
        """``E[x_0 | x_t]``, not clipped, with the graph from ``x_t`` if the step keeps one."""
        return self.denoised.prediction.mean

    @property
    def variance_fraction(self) -> Tensor | None:
        """Of a learned-variance head (see `Prediction`), or None."""
        fraction = self.denoised.prediction.variance_fraction
        return None if fraction is None else fraction.detach()

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
    def relative_ratio(self) -> float:
        """``sigma_t / alpha_t`` relative to half the range of the images: 1 for images in [-1, 1]."""
        return self.ratio / self.problem.half_range

    @property
    def covariance_gain(self) -> float:
        """``sigma_t^2 / alpha_t``: ``Cov(x_0 | x_t)`` over the denoiser's Jacobian."""
        alpha_t, sigma_t = self.level_t
        return sigma_t**2 / alpha_t

    @property
    def transition(self) -> tuple[float, float]:
        """``(alpha_t|s, sigma_t|s)`` of the forward process from ``s`` to ``t``; ``sigma_t|s^2`` is DDPM's
        ``beta_t``."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.level_t, self.level_s
        alpha_ts = alpha_t / alpha_s
        return alpha_ts, math.sqrt(max(sigma_t**2 - (alpha_ts * sigma_s) ** 2, 0.0))

    @cached_property
    def coefficients(self) -> tuple[float, float]:
        return self.sampler.coefficients(self)

    @cached_property
    def std(self) -> float | Tensor:
        return self.sampler.std(self)

    @cached_property
    def z(self) -> Tensor:
        """The sampler's noise, shape of ``x_t``."""
        return self.normal("kernel", self.inner)

    @property
    def seen(self) -> Seen:
        """This step's own call of the denoiser, without its graph."""
        return Seen(self.x_t.detach(), self.t, self.x_hat.detach())

    @property
    def score_weight(self) -> float:
        """``b sigma_t^2 / alpha_t``: what multiplies the gradient of a log-density in ``x_s`` (DDPM: ``beta_t / sqrt(1
        - beta_t)``)."""
        return self.coefficients[1] * self.covariance_gain

    def clipped(self, x_hat: Tensor) -> Tensor:
        """``x_hat`` in the clip range; the graph remains, with zero gradient where it clips."""
        if self.problem.clip is None:
            return x_hat
        with torch.enable_grad():
            return x_hat.clamp(*self.problem.clip)

    def corrected(self, x_hat: Tensor) -> Tensor:
        """The denoised image as a sampler takes it: ``x_hat`` plus the correction of CMI, clipped, without graph."""
        x_hat = self.clipped(x_hat.detach())
        if self.correction is None:
            return x_hat
        moved = self.clipped(x_hat + self.correction)
        self.record.corrections.append(moved - x_hat)
        return moved

    def through(self, rule: Callable[[Tensor], Tensor], x_s: Tensor) -> Tensor:
        """``rule(x_s)`` of the sampler's state, for a solver that changes it: what CMI changed in it is recorded."""
        if self.record.corrections:
            own = self.coefficients[1] * self.record.corrections[0]
            self.record.moves.append(rule(x_s) - rule(x_s - own))
        return rule(x_s)

    def update(self, rule: Callable[[Tensor], Tensor], x_hat: Tensor) -> Tensor:
        """``x_s = rule(x)`` with the denoised image as a sampler takes it, see `corrected`.

        A solver whose ``x_s`` is not the sampler's uses it, so that the statistics report what CMI changed in ``x_s``.
        """
        x_s = rule(self.corrected(x_hat))
        if self.correction is not None:
            self.record.moves.append(x_s - rule(self.clipped(x_hat.detach())))
        return x_s

    def normal(self, stream: str, inner: int = 0) -> Tensor:
        """Standard normal numbers of the shape of ``x_t``, addressed by stream, step and inner index."""
        return self.draws.normal(stream, self.index, self.x_t.detach(), inner=inner)

    @property
    def unguided(self) -> Tensor:
        """``x_s`` of the sampler without the measurement, with the correction of CMI."""
        a, b = self.coefficients
        mean, std = a * self.x_t.detach() + b * self.unguided_x_hat, self.std
        return mean if isinstance(std, float) and std == 0.0 else mean + std * self.z

    @property
    def unguided_x_hat(self) -> Tensor:
        """The denoised image without the measurement, with the correction of CMI, clipped."""
        x_hat = self.clipped(self.x_hat.detach())
        return x_hat if self.correction is None else self.clipped(x_hat + self.correction)

    def mean(self, x_hat: Tensor) -> Tensor:
        """The sampler's mean for a given denoised image, which is corrected and clipped."""
        a, b = self.coefficients
        return a * self.x_t.detach() + b * self.corrected(x_hat)

    def advance(self, carry: Carry = None, estimate: Estimate | None = None) -> tuple[Tensor, Carry]:
        """``x_s`` of the sampler alone, or with ``estimate(step)`` as the denoised image, and the sampler's carry."""
        return self.sampler.advance(self, own_estimate if estimate is None else estimate, carry)

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
    """The denoised image as it is: what a sampler takes where no solver replaces it."""
    return step.x_hat
