"""How long a restoration takes on this machine: measured once per solver on a small image, then learnt from runs."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import replace

import torch

from cmidiff.app.duration import pixels_seen
from cmidiff.app.errors import BadInput
from cmidiff.app.problem import Problem, built
from cmidiff.app.run import ESTIMATE, Settings, estimate, posterior
from cmidiff.physics import Task
from cmidiff.prior.base import Denoiser
from cmidiff.result import Progress
from cmidiff.solvers import Solver

SIDE, STEPS = 64, 4  # of the measurement


class Speed:
    """Seconds that a solver takes for a pixel and a step.

    Args:
        prior: what is measured.
    """

    def __init__(self, prior: Denoiser) -> None:
        self._prior, self._rates, self._lock = prior, dict[str, float](), threading.Lock()
        self._closed = threading.Event()

    def close(self) -> None:
        """End a measurement that is under way."""
        self._closed.set()

    def seconds(self, settings: Settings, shape: tuple[int, ...]) -> float:
        """Return the time that a run on an image of ``shape``, (C, H, W), will take, in seconds."""
        total = settings.samples * self._once(settings, shape, 0) if settings.samples else 0.0
        return total if settings.estimator is None else total + self._once(settings, shape, ESTIMATE)

    def learn(self, settings: Settings, problem: Problem, index: int, seconds: float) -> None:
        """Replace the rate of a solver by that of one result of a run: the estimate or a sample."""
        if index == ESTIMATE and (problem.tables is not None or problem.task.name == "denoise"):
            return  # it takes fewer steps, or other ones
        with self._lock:
            self._rates[_solver(settings, index)[0]] = seconds / self._cost(settings, problem.shape, index)

    def _once(self, settings: Settings, shape: tuple[int, ...], index: int) -> float:
        name = _solver(settings, index)[0]
        with self._lock:
            rate = self._rates.get(name)
            if rate is None:
                rate = self._rates[name] = self._measure(settings, index)
        return rate * self._cost(settings, shape, index)

    def _cost(self, settings: Settings, shape: tuple[int, ...], index: int) -> float:
        """Pixels that the network sees, times the steps."""
        steps = settings.steps or _solver(settings, index)[1].default_steps
        return pixels_seen(self._prior, shape, settings.tile) * steps

    def _measure(self, settings: Settings, index: int) -> float:
        shape, short = (3, SIDE, SIDE), replace(settings, steps=STEPS)
        mask = torch.ones(1, 1, SIDE, SIDE)
        task = Task("mask", {"noise_std": 0.1}, {"mask": mask})  # no task of its own: an estimate takes all its steps
        problem = Problem(torch.full((1, *shape), 0.5), built(task, shape), task, shape)
        best = float("inf")
        for _ in range(2):  # the first run also allocates
            start = time.monotonic()
            with suppress(BadInput):  # the run itself says why
                if index == ESTIMATE:
                    estimate(problem, short, self._prior, lambda *_: None, self._go_on)
                else:
                    posterior(problem, short, self._prior, range(1), self._go_on)
            best = min(best, time.monotonic() - start)
        return best / self._cost(short, shape, index)

    def _go_on(self, _: Progress) -> None:
        if self._closed.is_set():
            raise BadInput("the measurement was ended")


def _solver(settings: Settings, index: int) -> tuple[str, Solver]:
    """What computes a result."""
    if index != ESTIMATE:
        return settings.drawer
    assert settings.estimator is not None, "a sampler gives no estimate"
    return settings.estimator
