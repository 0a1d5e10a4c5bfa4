"""How long a restoration takes on this machine: measured once per solver on a small image, then learnt from runs."""

from __future__ import annotations

import math
import threading
import time
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from cmidiff.app.errors import say
from cmidiff.app.problem import JPEG, Problem, build_physics
from cmidiff.app.run import restore_part
from cmidiff.app.settings import ESTIMATE, Settings
from cmidiff.physics import Task
from cmidiff.physics.jpeg import LEVELS
from cmidiff.prior.base import Denoiser
from cmidiff.prior.tiles import Tiled, fitted, starts

OWN_STEPS = {JPEG: len(LEVELS), "denoise": 1}  # evaluations for an estimate, by task
SIDE, STEPS = 64, 4  # of the measurement
LONG = 20.0  # seconds from which the time is announced
WORTH = 40 * 96**2  # pixels of all results from which a measurement is worth its time


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

    def seconds(self, settings: Settings, shape: tuple[int, ...], *, task: str | None = None) -> float:
        """Return the time in seconds of a run on an image of ``shape`` (C, H, W). The estimate of a ``task`` may
        have a number of steps of its own."""
        own = (
            replace(settings, steps=OWN_STEPS.get(task or "", settings.steps)) if settings.solver is None else settings
        )
        return sum(self._time_part(own if k == ESTIMATE else settings, shape, k) for k in settings.parts)

    def learn(self, settings: Settings, problem: Problem, index: int, seconds: float) -> None:
        """Replace the rate of a solver by that of one result of a run: the estimate or a sample."""
        if index == ESTIMATE and problem.name in OWN_STEPS:  # it does other things
            return
        with self._lock:
            self._rates[_name(settings, index)] = seconds / self._cost(settings, problem.shape, index)

    def _time_part(self, settings: Settings, shape: tuple[int, ...], index: int) -> float:
        name = _name(settings, index)
        with self._lock:
            if name not in self._rates:
                self._rates[name] = self._measure(settings, index)
        return self._rates[name] * self._cost(settings, shape, index)

    def _cost(self, settings: Settings, shape: tuple[int, ...], index: int) -> float:
        """Pixels that the network sees, times the steps."""
        _, solver = settings.drawer if index != ESTIMATE or settings.estimator is None else settings.estimator
        return count_pixels(self._prior, shape, settings.tile) * (settings.steps or solver.default_steps)

    def _measure(self, settings: Settings, index: int) -> float:
        shape, short = (3, SIDE, SIDE), replace(settings, steps=STEPS)
        mask = torch.ones(1, 1, SIDE, SIDE)
        task = Task("mask", {"noise_std": 0.1}, {"mask": mask})  # no task of its own: an estimate takes all its steps
        problem = Problem(torch.full((1, *shape), 0.5), build_physics(task, shape), task, shape)
        best = float("inf")
        for _ in range(2):  # the first run also allocates
            start = time.monotonic()
            with suppress(ValueError):  # the run itself says why
                restore_part(problem, short, self._prior, range(index, index + 1), self._go_on)
            best = min(best, time.monotonic() - start)
        return best / (count_pixels(self._prior, shape, settings.tile) * STEPS)

    def _go_on(self, fraction: float, doing: str, misfit: float, x_hat: Tensor | None) -> None:
        if self._closed.is_set():
            raise ValueError("the measurement was ended")


def _name(settings: Settings, index: int) -> str:
    """What computes a result."""
    return settings.drawer[0] if index != ESTIMATE or settings.estimator is None else settings.estimator[0]


def predict_seconds(problem: Problem, settings: Settings, prior: Denoiser) -> float:
    """Return the time of a run in seconds; 0 where it is short for sure."""
    if count_pixels(prior, problem.shape, settings.tile) * len(settings.parts) < WORTH:
        return 0.0
    return Speed(prior).seconds(settings, problem.shape, task=problem.name)


def say_prediction(problem: Problem, settings: Settings, prior: Denoiser) -> None:
    """Say how long a run will take, if that is long."""
    if (seconds := predict_seconds(problem, settings, prior)) > LONG:
        height, width = problem.shape[1:]
        say(f"{width}x{height} pixels: {say_duration(seconds)} on this machine, as a small image tells")


def count_pixels(prior: Denoiser, shape: tuple[int, ...], tile: int | str | None) -> int:
    """Return the number of pixels that the network sees in one evaluation: those of all tiles, which overlap."""
    shape = shape if prior.decoder is None else prior.decoder.latent_shape(shape)
    network = fitted(prior, shape, tile)  # pyright: ignore[reportArgumentType]
    if not isinstance(network, Tiled):
        return math.prod(shape[1:])
    size, overlap, multiple = network.tile, network.overlap, network.multiple
    return math.prod(len(starts(side, size, overlap, multiple)) * min(side, size) for side in shape[1:])


def say_duration(seconds: float) -> str:
    """Return a duration as a person says it."""
    if seconds < 90:
        return f"about {max(10, 10 * round(seconds / 10))} seconds"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} minutes"
    return f"about {seconds / 3600:.1f} hours"
