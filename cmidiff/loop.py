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
from cmidiff.step import Carry, Group, Problem, Seen, Step

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
        guidance: norm of the move by the measurement, in units of ``x_s`` (see `Solver.unguided`; with Heun's rule,
            its own correction included).
        cmi: norm of the move by CMI that was applied, in units of ``x_s`` (with Heun's rule, of its first half).
        residual: largest relative residual of the step's linear solves; 0 without one.
        alive: False for rows that have diverged; their state is set to zero and their ``x_hat`` is the last finite one.
        own: numbers that the solver reports of itself, by name.
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
    own: dict[str, Tensor]


def sample(
    problem: Problem | Sequence[Problem], solver: Solver, times: Sequence[float], cmi: CMI | None = None
) -> Iterator[Trace]:
    """Run a solver and yield a `Trace` after each step; the last ``x_s`` is the restoration.

    Args:
        problem: prior, measurement, sampler and draws, or several of them, whose rows are the parts of one run. Each
            step is taken by one part after the other, and then by all rows together where the solver asks for it.
        solver: how ``y`` is used.
        times: without the schedule's end; a time that is noisier than the one before it renews the noise.
        cmi: the information correction, or None.

    Raises:
        ValueError: CMI moves the denoised image and the solver does not use it.
    """
    several = [_linearising(each, solver) for each in ([problem] if isinstance(problem, Problem) else problem)]
    steps = pairs(times, several[0].prior.schedule.end)
    parts = [_Part.first(each, solver, times[0]) for each in several]
    for index, (t, s) in enumerate(steps):
        last = index == len(steps) - 1
        parts = [part.step(solver, cmi, t, s, index, len(steps)) for part in parts]
        if solver.together:
            parts = _exchanged(parts, solver, Group(tuple(several), index, last))
        parts = [part.checked(solver, last) for part in parts]
        yield _trace(parts, solver, index, len(steps))


@dataclass(frozen=True)
class _Part:
    """Rows that are computed at once, between two steps: their state, and what the last step did."""

    problem: Problem
    x: Tensor
    carry: Carry
    alive: Tensor
    x_hat: Tensor
    misfit: Tensor
    limit: Tensor
    t: float
    guidance: Tensor
    cmi: Tensor
    residual: Tensor
    past: tuple[Seen, ...] = ()

    @classmethod
    def first(cls, problem: Problem, solver: Solver, t: float) -> _Part:
        x, carry = solver.start(_beginning(problem), t)
        zero = x.new_zeros(len(x))
        alive = torch.ones(len(x), dtype=torch.bool, device=x.device)
        return cls(problem, x, carry, alive, x, zero + torch.nan, _limit(problem, x), t, zero, zero, zero)

    def step(self, solver: Solver, cmi: CMI | None, t: float, s: float, index: int, steps: int) -> _Part:
        problem, zero = self.problem, torch.zeros_like(self.guidance)
        step = Step.at(problem, self.x, t, s, graph=False, index=index, steps=steps)
        step = replace(step, past=self.past, keep_graph=False)
        if upward(step):
            return replace(self, x=renew(step), t=t, guidance=zero, cmi=zero, residual=zero)
        step = problem.sampler.prepare(step)
        step = step.moved(step.x_t, step.t, graph=_needs_graph(step, solver, cmi))
        step = step if cmi is None else cmi(step)
        x_s, carry = solver.step(step, self.carry)
        x_s, moved = x_s.detach(), _moved(step, solver)
        residual = torch.stack([zero, *step.record.residuals]).amax(0)
        part = replace(self, x=x_s, carry=carry, t=step.t, guidance=zero, cmi=moved, residual=residual)
        if not step.denoised.done:
            return part
        x_hat = step.clipped(step.x_hat.detach())
        alive = self.alive & (x_hat.flatten(1).abs().amax(1) < self.limit)
        last = torch.where(per_sample(alive, self.x_hat), x_hat, self.x_hat)
        misfit = problem.measurement.misfit(x_hat)
        past = _remembered(self.past, step, alive, max(solver.memory, 0 if cmi is None else cmi.memory))
        guidance = _norm(x_s - solver.unguided(step))
        return replace(part, guidance=guidance, x_hat=last, misfit=misfit, alive=alive, past=past)

    def checked(self, solver: Solver, last: bool) -> _Part:
        """With the rows that have diverged at zero; the restoration in the place of the last state."""
        x = solver.finish(self.problem, self.x, self.carry) if last else self.x
        alive = (self.alive | solver.together) & (x.flatten(1).abs().amax(1) < self.limit)
        return replace(self, alive=alive, x=torch.where(per_sample(alive, x), x, 0.0))


def _exchanged(parts: list[_Part], solver: Solver, group: Group) -> list[_Part]:
    """The parts after their rows have interacted."""
    sizes = [len(part.x) for part in parts]
    carry = type(parts[0].carry)(*map(torch.cat, zip(*(part.carry for part in parts), strict=True)))
    x, carry = solver.exchange(group, torch.cat([part.x for part in parts]), carry)
    carries = zip(*(field.split(sizes) for field in carry), strict=True)
    split = zip(parts, x.split(sizes), carries, strict=True)
    return [replace(part, x=own, carry=type(carry)(*fields)) for part, own, fields in split]


def _trace(parts: list[_Part], solver: Solver, index: int, steps: int) -> Trace:
    def joined(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    own = [solver.report(part.carry) for part in parts]
    return Trace(
        index,
        steps,
        parts[0].t,
        joined("x"),
        joined("x_hat"),
        joined("misfit"),
        joined("guidance"),
        joined("cmi"),
        joined("residual"),
        joined("alive"),
        {name: torch.cat([each[name] for each in own]) for name in own[0]},
    )


def _remembered(past: tuple[Seen, ...], step: Step, alive: Tensor, memory: int) -> tuple[Seen, ...]:
    """The last ``memory`` calls of the denoiser; zeros for rows that have diverged."""
    if memory == 0:
        return ()
    x_t, t, x_hat = step.seen
    mask = per_sample(alive, x_t)
    return (*past, Seen(torch.where(mask, x_t, 0.0), t, torch.where(mask, x_hat, 0.0)))[-memory:]


def _linearising(problem: Problem, solver: Solver) -> Problem:
    """The problem, linearised at every step where the solver needs a linear measurement and the prior has a decoder."""
    through = solver.needs_linear and not solver.decodes and problem.measurement.decoder is not None
    return replace(problem, linearise=True) if through else problem


def _beginning(problem: Problem) -> Problem:
    """What a solver starts from: where the run linearises, the measurement linearised at the least-squares state."""
    if not problem.linearise:
        return problem
    linear = problem.measurement.linearised(problem.least_squares())
    return replace(problem, measurement=linear, linearise=False)


def upward(step: Step) -> bool:
    """Whether ``s`` is noisier than ``t``: the step travels back in time."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = step.level_t, step.level_s
    return sigma_s * alpha_t > sigma_t * alpha_s


def renew(step: Step) -> Tensor:
    """``x_s`` of the forward process from ``x_t``, for ``s`` noisier than ``t``."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = step.level_t, step.level_s
    kept = alpha_s / alpha_t
    std = math.sqrt(max(sigma_s**2 - (kept * sigma_t) ** 2, 0.0))
    return kept * step.x_t.detach() + std * step.normal("travel")


def _moved(step: Step, solver: Solver) -> Tensor:
    """Norm of the move by CMI, in units of ``x_s``."""
    if step.correction is None:
        return step.x_t.new_zeros(len(step.x_t))
    if step.record.moves:
        return _norm(step.record.moves[0])
    if not step.record.corrections:
        raise ValueError(
            f"{type(solver).__name__} does not use the correction of CMI: take step.corrected(x_hat) or step.advance() "
            "in its step, or state the reason in its `refuses_cmi`"
        )
    return abs(step.coefficients[1]) * _norm(step.record.corrections[0])


def _needs_graph(step: Step, solver: Solver, cmi: CMI | None) -> bool:
    """Whether the denoiser is differentiated in this step: at ``t``, or at ``s``, where Heun's rule evaluates it."""
    alpha_s, sigma_s = step.level_s
    ahead = sigma_s / alpha_s / step.problem.half_range
    at = solver.needs_graph_at(step.relative_ratio) or solver.needs_graph_at(ahead)
    return at or (cmi is not None and cmi.needs_graph_at(step.relative_ratio))


def _limit(problem: Problem, x: Tensor) -> Tensor:
    """Largest absolute value of a state that has not diverged, shape (B,). It is relative to the range of the images,
    or to the first state and the variance of the prior where no range is known."""
    if problem.clip is not None:
        return torch.full_like(x.flatten(1)[:, 0], LIMIT * max(map(abs, problem.clip)))
    return LIMIT * x.flatten(1).abs().amax(1).clamp_min(math.sqrt(problem.prior.variance))


def _norm(x: Tensor) -> Tensor:
    return dot(x, x).sqrt()
