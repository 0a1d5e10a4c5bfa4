"""The contract of a solver: how the measurement is used, from the first state to the last.

A solver chooses its ``times``, its ``start``, and takes each ``step`` from ``x_t`` to ``x_s``; what it remembers goes
through the loop as ``carry``. Nothing is stored on the solver. `PosteriorMean` is the common kind: it replaces the
denoised image by an estimate of ``E[x_0 | x_t, y]`` and leaves the rest to the reverse sampler.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, final

import torch
from torch import Tensor

from cmidiff.config import Checked
from cmidiff.information import Contraction
from cmidiff.krylov import dot, per_sample
from cmidiff.measurement import Measurement
from cmidiff.physics import measured_count
from cmidiff.samplers import Ancestral
from cmidiff.step import Carry, Group, Problem, Sampler, Step

BEYOND = 10.0  # times sqrt(m): excess of a squared misfit over m that chance does not explain (7 standard deviations)
LONGEST = 10.0  # most that a move is lengthened
DISCREPANCY, CLOSE = 100, 1e-4  # iterations to the noise, and by how much its square may be missed


class Solver(Checked, ABC):
    """How ``y`` is used.

    Attributes:
        kind: in the words of `cmidiff.registry.KINDS`, by which lists and menus are grouped.
        needs_graph: whether it differentiates the denoiser (then ``step.x_hat`` carries the graph from ``step.x_t``).
        needs_linear: whether the physics must be linear.
        needs_noise: whether it uses the noise of the sampler, so that a silent sampler is refused.
        point: whether it returns one best estimate instead of a sample of the posterior.
        decodes: whether it evaluates the decoder of a latent prior itself. Otherwise a solver that needs a linear
            physics sees the measurement linearised at the step's ``x_hat``.
        refuses_decoder: why it cannot work with a latent prior; empty if it can.
        together: whether the samples of an image interact: after each step, `exchange` sees all of them.
        refuses_cmi: why CMI cannot act on it; empty if it can.
        contractions: ways to differentiate a Jacobian that it uses (see `cmidiff.information.contract`).
        uses_measurement: whether it uses ``y``, so that a restoration that does not explain ``y`` is a warning.
        default_steps: how many steps a run takes where nothing is said.
        sampler: the reverse process that a run takes where nothing is said: `Ancestral`, or that of the paper.
        memory: how many earlier calls of the denoiser each step holds (see `Step.past`).
        default_samples: how many samples of an image are drawn where nothing is said.
    """

    kind: ClassVar[str] = "move of the state"
    needs_linear: ClassVar[bool] = False
    needs_noise: ClassVar[bool] = False
    point: ClassVar[bool] = False
    decodes: ClassVar[bool] = False
    refuses_decoder: ClassVar[str] = ""
    together: ClassVar[bool] = False
    refuses_cmi: ClassVar[str] = ""
    uses_measurement: ClassVar[bool] = True
    default_steps: ClassVar[int] = 25
    default_samples: ClassVar[int] = 1

    @property
    def contractions(self) -> tuple[Contraction, ...]:
        return ()

    @property
    def sampler(self) -> Sampler:
        return Ancestral()

    @property
    def memory(self) -> int:
        return 0

    @property
    def needs_graph(self) -> bool:
        return False

    def needs_graph_at(self, ratio: float) -> bool:
        """Return whether it differentiates the denoiser at the noise level ``ratio`` (`Step.relative_ratio`)."""
        return self.needs_graph

    def check(self, problem: Problem) -> None:
        """Raise ``ValueError`` or ``TypeError`` where it cannot work with this problem; called before the run."""
        return None

    def times(self, problem: Problem, steps: int) -> Sequence[float]:
        """Return the times of the run, without the schedule's end; by default the grid of the prior's schedule."""
        return problem.prior.schedule.grid(steps)

    def start(self, problem: Problem, t: float) -> tuple[Tensor, Carry]:
        """Return the first state, shape (B, ...), and what the first step needs to know; by default pure noise."""
        return noise(problem, t), None

    @abstractmethod
    def step(self, step: Step, carry: Carry) -> tuple[Tensor, Carry]:
        """Return ``x_s``, shape of ``step.x_t``, and what the next step needs to know."""

    def exchange(self, group: Group, x: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """Return states and carry after the samples of each image have interacted; for solvers with ``together``.

        Args:
            group: which rows belong to which image.
            x: all states, shape (rows, ...).
            carry: a named tuple of tensors whose first dimension is that of the rows.
        """
        return x, carry

    def finish(self, problem: Problem, x: Tensor, carry: Carry) -> Tensor:
        """Return the restoration from the last state; by default that state."""
        return x

    def unguided(self, step: Step) -> Tensor:
        """Return what ``x_s`` would be without the measurement, for the statistics; by default that of the sampler."""
        return step.unguided

    def report(self, carry: Carry) -> dict[str, Tensor]:
        """Return numbers of the step for the statistics of the run, by name, each of shape (B,)."""
        return {}


class PosteriorMean(Solver):
    """A solver that estimates ``E[x_0 | x_t, y]``, or draws from ``p(x_0 | x_t, y)``; any reverse sampler then steps
    with that."""

    kind: ClassVar[str] = "posterior mean"

    @abstractmethod
    def estimate(self, step: Step) -> Tensor:
        """Return ``x_hat'``, shape of ``step.x_t``."""

    @final
    def step(self, step: Step, carry: Carry) -> tuple[Tensor, Carry]:
        return step.advance(carry, self.estimate)


def travel(times: Sequence[float], length: int, repeat: int) -> list[float]:
    """Times that go back: each stretch of ``length`` steps is made ``repeat`` times, counted from the end of the grid.

    Args:
        times: of the grid, noisiest first.
        length: steps of a jump back.
        repeat: how often each stretch is made; 1 for none twice.

    Source: Lugmayr et al., "RePaint", 2022, https://arxiv.org/abs/2201.09865 (Algorithm 1, Figure 10)
    """
    left = dict.fromkeys(range(0, len(times) - length, length), repeat - 1)
    found, k = [], len(times)
    while k >= 1:
        k -= 1
        found.append(times[len(times) - 1 - k])
        if left.get(k, 0) > 0:
            left[k] -= 1
            k += length
            found.extend(times[len(times) - 1 - j] for j in range(k - length + 1, k + 1))
    return found


def noise(problem: Problem, t: float) -> Tensor:
    """``x_T ~ N(0, (alpha_T^2 + sigma_T^2) I)`` for variance-preserving priors, ``N(0, sigma_T^2 I)`` for others."""
    alpha, sigma = problem.prior.schedule(t)
    scale = 1.0 if abs(alpha**2 + sigma**2 - 1.0) < 1e-6 else sigma
    return scale * problem.draws.normal("start", 0, problem.like())


def misfit_gradient(step: Step, *, through_clip: bool = False) -> Tensor:
    """``grad |y - A x_hat(x_t)|``, the norm of each image alone, shape of ``x_t``; zero where the residual is zero. It
    is the step's last product (see `Step.vjp`).

    Args:
        through_clip: evaluate and differentiate the clipped ``x_hat``, whose clipped pixels pass no gradient (the
            official codes), instead of the mean.
    """
    return _norm_and_gradient(step, through_clip)[1]


def descend(step: Step, scale: float, *, guard: bool, through_clip: bool = False) -> Tensor:
    """A step of length ``scale`` down the gradient of the residual's norm, shape of ``x_t``.

    The gradient of a norm does not shrink with the norm. ``guard`` shortens the step to `reach`; in the last step,
    which moves the image itself, to `length_to_noise`. If a residual is left there that the noise excludes, it goes on
    along ``A^T r``. The first direction has no effect where the denoiser's Jacobian is small.

    Args:
        step: the state.
        scale: length, in units of ``x_t``.
        guard: whether the length is bounded.
        through_clip: as in `misfit_gradient`.
    """
    gradient, most = reach(step, through_clip=through_clip)
    if not guard:
        return scale * gradient
    if not step.last:
        return per_sample(most.clamp_max(scale), gradient) * gradient
    x = step.clipped(step.x_hat.detach())
    linear, residual = step.measurement.linearised(x), step.measurement.residual(x)
    length = length_to_noise(linear, -linear.A(gradient), residual).clamp(0.0, scale)
    move = per_sample(length, gradient) * gradient
    return move - along_residual(linear, residual + linear.A(move))


def reach(step: Step, *, through_clip: bool = False) -> tuple[Tensor, Tensor]:
    """The gradient ``g`` of the residual's norm, shape of ``x_t``, and the multiple of it, (B,), that leads to the
    noise. The multiple is ``(|r| - sigma_y sqrt(m)) / |g|^2``, or 0 where that is negative (Polyak's step). More would
    fit the noise.

    Args:
        step: the state.
        through_clip: as in `misfit_gradient`.
    """
    norm, gradient = _norm_and_gradient(step, through_clip)
    curvature = dot(gradient, gradient)
    m = measured_count(step.measurement.physics, step.measurement.y).to(norm)
    excess = (norm - step.measurement.noise_std * m.sqrt()).clamp_min(0.0)
    return gradient, excess / curvature.where(curvature > 0, 1.0)


def _norm_and_gradient(step: Step, through_clip: bool) -> tuple[Tensor, Tensor]:
    x_hat = step.clipped(step.x_hat) if through_clip else step.x_hat
    residual = step.measurement.residual(x_hat.detach())
    norm = dot(residual, residual).sqrt()
    pulled = step.measurement.pull(x_hat.detach(), residual)
    return norm, -step.vjp(pulled / per_sample(norm.where(norm > 0, 1.0), pulled), of=x_hat, last=True)


def fitted(step: Step, move: Tensor, w: Tensor, residual: Tensor) -> Tensor:
    """``l move``, with the length ``l`` of each image by the data. No move overshoots, and none leaves a residual that
    its own covariance excludes (see `CADPS`). In the last step, `along_residual` follows.

    Args:
        step: the measurement.
        move: ``m``, shape of ``x_t``.
        w: ``A^T S^-1 r``, shape of ``x_t``.
        residual: ``r``, shape of ``y``.
    """
    measurement = step.measurement
    measured, s2 = measurement.A(move), measurement.noise_std**2
    pulled, square = dot(measured, residual), dot(measured, measured)
    curvature = square + s2 * dot(move, w).clamp_min(0.0)
    length = (pulled / curvature.where(curvature > 0, 1.0)).clamp(0.0, 1.0)
    longer = length_to_noise(measurement, measured, residual).clamp_max(LONGEST).maximum(length)
    left = residual - per_sample(length, measured) * measured
    length = longer.where(excluded(measurement, left), length)
    if step.last:
        rest = along_residual(measurement, residual - per_sample(length, measured) * measured)
        return per_sample(length, move) * move + rest
    return per_sample(length, move) * move


def along_residual(measurement: Measurement, residual: Tensor) -> Tensor:
    """The move along ``A^T r`` to the noise, shape of ``x_t``; zero for rows whose residual the noise does not exclude.

    Conjugate gradients on ``|r - A m|`` end where it is ``sigma_y sqrt(m)`` (the discrepancy principle): a steepest
    descent does not reach it where ``A`` is ill-conditioned. Where no move reaches it, the first step is the move: the
    least-squares solution would fit the noise. Without noise, ``m = A^+ r``. For a non-linear physics it is one step,
    because the linearisation holds near ``x_hat`` alone.

    Source: Hanke, "Conjugate Gradient Type Methods for Ill-Posed Problems", 1995.
    """
    if measurement.noise_std == 0 and not measurement.local:
        return measurement.solve(residual, 1.0)
    aim = measurement.noise_std**2 * measured_count(measurement.physics, measurement.y).to(residual.real)
    active, pulled = excluded(measurement, residual), measurement.At(residual)
    move, p, size = torch.zeros_like(pulled), pulled, dot(pulled, pulled)
    first = move
    for k in range(1 if measurement.local else measurement.iterations or DISCREPANCY):
        if not bool(active.any()):
            break
        measured = measurement.A(p)
        length = length_to_noise(measurement, measured, residual).clamp_min(0.0).where(active, 0.0)
        move, residual = move + per_sample(length, p) * p, residual - per_sample(length, measured) * measured
        pulled, before = measurement.At(residual), size
        size = dot(pulled, pulled)
        p = pulled + per_sample(size / before.where(before > 0, 1.0), p) * p
        first = first if k else move
        active = active & (dot(residual, residual) > (1 + CLOSE) * aim) & (size > 0)
    beyond = dot(residual, residual) > (1 + CLOSE) * aim
    return torch.where(per_sample(beyond, move) > 0, first, move)


def excluded(measurement: Measurement, residual: Tensor) -> Tensor:
    """Whether the noise excludes a residual of the shape of ``y``, (B,): see `BEYOND`."""
    m = measured_count(measurement.physics, measurement.y).to(residual.real)
    return dot(residual, residual) > measurement.noise_std**2 * (m + BEYOND * m.sqrt())


def length_to_noise(measurement: Measurement, measured: Tensor, residual: Tensor) -> Tensor:
    """The least ``l`` with ``|r - l a| = sigma_y sqrt(m)``, or that of the least ``|r - l a|``, shape (B,).

    Args:
        measurement: its noise.
        measured: ``a``, what a move does to the measurement, shape of ``y``.
        residual: ``r``, shape of ``y``.
    """
    square = dot(measured, measured)
    square = square.where(square > 0, 1.0)
    m = measured_count(measurement.physics, measurement.y).to(square)
    least = dot(measured, residual) / square
    excess = (dot(residual, residual) - measurement.noise_std**2 * m) / square
    return least - (least**2 - excess).clamp_min(0.0).sqrt()
