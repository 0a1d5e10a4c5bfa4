"""How long a restoration takes on this machine: measured once per solver on a small image, then learnt from runs."""

from __future__ import annotations

import math
import threading
import time
from contextlib import suppress
from dataclasses import replace

import torch

from cmidiff.app.errors import BadInput
from cmidiff.app.problem import Problem, built
from cmidiff.app.run import Settings, posterior
from cmidiff.physics import Task
from cmidiff.prior.base import Denoiser
from cmidiff.prior.tiles import Tiled, fitted, starts
from cmidiff.restoration import Progress

SIDE, STEPS = 64, 3  # of the measurement


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
        """Return the time that a run on an image of ``shape`` will take, in seconds."""
        with self._lock:
            rate = self._rates.get(settings.solver_name)
            if rate is None:
                rate = self._rates[settings.solver_name] = self._measure(settings)
        return rate * self._cost(settings, shape)

    def learn(self, settings: Settings, shape: tuple[int, ...], seconds: float) -> None:
        """Replace the rate of a solver by that of a run."""
        with self._lock:
            self._rates[settings.solver_name] = seconds / self._cost(settings, shape)

    def _cost(self, settings: Settings, shape: tuple[int, ...]) -> float:
        """Pixels that the network sees, times the steps of all samples."""
        network, pixels = fitted(self._prior, shape, settings.tile), math.prod(shape[1:])
        if isinstance(network, Tiled):
            tile, overlap, multiple = network.tile, network.overlap, network.multiple
            pixels = math.prod(len(starts(side, tile, overlap, multiple)) * min(side, tile) for side in shape[1:])
        return pixels * settings.steps * settings.samples

    def _measure(self, settings: Settings) -> float:
        shape, short = (3, SIDE, SIDE), replace(settings, steps=STEPS, samples=1)
        task = Task("denoise", {"noise_std": 0.1}, {})
        problem = Problem(torch.full((1, *shape), 0.5), built(task, shape), task, shape)
        best = float("inf")
        for _ in range(2):  # the first run also allocates
            start = time.monotonic()
            with suppress(BadInput):  # the run itself says why
                posterior(problem, short, self._prior, range(1), self._go_on)
            best = min(best, time.monotonic() - start)
        return best / self._cost(short, shape)

    def _go_on(self, _: Progress) -> None:
        if self._closed.is_set():
            raise BadInput("the measurement was ended")
