"""The loop: the only one in this library. It runs a solver through its times."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cmidiff.information import CMI
from cmidiff.krylov import dot, per_sample
from cmidiff.schedule import pairs
from cmidiff.solvers.base import Solver
from cmidiff.step import Problem, Seen, Step

LIMIT = 1e4  # times the range of the images: a state that is larger has diverged


@dataclass(frozen=True)
class Trace:
    """What one step did, for each row of the batch; shapes (B,) unless stated.

    Attributes:
        index, steps: number of the step, 0 first.
        t: its time.
        x_s: the new state, shape (B, ...).
        x_hat: the denoised image of the step, shape (B, ...), clipped as in the sampler.
        misfit: ``|y - A x_hat| / (sigma_y sqrt m)``.
        guidance: norm of the move by the measurement, in units of ``x_s`` (with Heun's rule, its own correction
            included).
        cmi: norm of the move by CMI that was applied, in units of ``x_s`` (with Heun's rule, of its first half).
        residual: largest relative residual of the step's linear solves; 0 without one.
        alive: False for rows that have diverged; their state is set to zero and their ``x_hat`` is the last finite one.
    """

    index: int
    steps: int
    t: float
    x_s: Tensor
    x_hat: Tensor
    misfit: Tensor
    guidance: Tensor
    cmi: Tensor
    residual: Tensor
    alive: Tensor


def sample(problem: Problem, solver: Solver, times: Sequence[float], cmi: CMI | None = None) -> Iterator[Trace]:
    """Run a solver and yield a `Trace` after each step; the last ``x_s`` is the restoration.

    Args:
        problem: prior, measurement, sampler and draws.
        solver: how ``y`` is used.
        times: without the schedule's end; a time that is noisier than the one before it renews the noise.
        cmi: the information correction, or None.

    Raises:
        ValueError: CMI moves the denoised image and the solver does not use it.
    """
    steps = pairs(times, problem.prior.schedule.end)
    x, carry = solver.start(problem, times[0])
    alive, last = torch.ones(len(x), dtype=torch.bool, device=x.device), x
    misfit = torch.full((len(x),), torch.nan, dtype=x.dtype, device=x.device)
    zero, limit = torch.zeros_like(misfit), _limit(problem, x)
    memory, past = max(solver.memory, 0 if cmi is None else cmi.memory), ()
    for index, (t, s) in enumerate(steps):
        step = replace(
            Step.at(problem, x, t, s, graph=False, index=index, steps=len(steps)), past=past, keep_graph=False
        )
        moved = guidance = residual = zero
        if upward(step):
            x_s = renew(step)
        else:
            step = problem.sampler.prepare(step)
            step = step.moved(step.x_t, step.t, graph=_needs_graph(step, solver, cmi))
            step = step if cmi is None else cmi(step)
            x_s, carry = solver.step(step, carry)
            x_s = x_s.detach()
            if index == len(steps) - 1:
                x_s = solver.finish(problem, x_s, carry)
            moved = _moved(step, solver)
            residual = torch.stack([zero, *step.record.residuals]).amax(0)
        if step.denoised.done:
            x_hat = step.clipped(step.x_hat.detach())
            guidance = zero if upward(step) else _norm(x_s - _plain(step))
            misfit = problem.measurement.misfit(x_hat)
            alive = alive & (x_hat.flatten(1).abs().amax(1) < limit)
            last = torch.where(per_sample(alive, last), x_hat, last)
            past = _remembered(past, step, alive, memory)
        alive = alive & (x_s.flatten(1).abs().amax(1) < limit)
        x = torch.where(per_sample(alive, x_s), x_s, 0.0)
        yield Trace(index, len(steps), step.t, x, last, misfit, guidance, moved, residual, alive)


def _remembered(past: tuple[Seen, ...], step: Step, alive: Tensor, memory: int) -> tuple[Seen, ...]:
    """The last ``memory`` calls of the denoiser; zeros for rows that have diverged."""
    if memory == 0:
        return ()
    x_t, t, x_hat = step.seen
    kept = Seen(*(torch.where(per_sample(alive, x), x, 0.0) if isinstance(x, Tensor) else x for x in (x_t, t, x_hat)))
    return (*past, kept)[-memory:]


def upward(step: Step) -> bool:
    """Whether ``s`` is noisier than ``t``: the step travels back in time."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = step.level_t, step.level_s
    return sigma_s * alpha_t > sigma_t * alpha_s


def renew(step: Step) -> Tensor:
    """``x_s`` of the forward process from ``x_t``, for ``s`` noisier than ``t``."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = step.level_t, step.level_s
    kept = alpha_s / alpha_t
    std = math.sqrt(max(sigma_s**2 - (kept * sigma_t) ** 2, 0.0))
    return kept * step.x_t.detach() + std * step.draws.normal("travel", step.index, step.x_t.detach())


def _moved(step: Step, solver: Solver) -> Tensor:
    """Norm of the move by CMI, in units of ``x_s``."""
    if step.correction is None:
        return step.x_t.new_zeros(len(step.x_t))
    if not step.record.corrections:
        raise ValueError(
            f"{type(solver).__name__} does not use the correction of CMI: take step.corrected(x_hat) or step.advance() "
            "in its step, or state the reason in its `refuses_cmi`"
        )
    return abs(step.coefficients[1]) * _norm(step.record.corrections[0])


def _plain(step: Step) -> Tensor:
    """``x_s`` without the measurement."""
    a, b = step.coefficients
    x_hat = step.clipped(step.x_hat.detach())
    mean = a * step.x_t.detach() + b * (x_hat if step.correction is None else step.clipped(x_hat + step.correction))
    std = step.std
    return mean if isinstance(std, float) and std == 0.0 else mean + std * step.z


def _needs_graph(step: Step, solver: Solver, cmi: CMI | None) -> bool:
    """Whether the denoiser is differentiated in this step: at ``t``, or at ``s``, where Heun's rule evaluates it."""
    alpha_s, sigma_s = step.level_s
    at = solver.needs_graph_at(step.ratio) or solver.needs_graph_at(sigma_s / alpha_s)
    return at or (cmi is not None and cmi.needs_graph_at(step.ratio))


def _limit(problem: Problem, x: Tensor) -> Tensor:
    """Largest absolute value of a state that has not diverged, shape (B,): relative to the range of the images, or to
    the first state and the variance of the prior where no range is known."""
    if problem.clip is not None:
        return torch.full_like(x.flatten(1)[:, 0], LIMIT * max(map(abs, problem.clip)))
    return LIMIT * x.flatten(1).abs().amax(1).clamp_min(math.sqrt(problem.prior.variance))


def _norm(x: Tensor) -> Tensor:
    return dot(x, x).sqrt()
