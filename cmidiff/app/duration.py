"""How long a restoration will take, measured on a small piece before it begins."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from cmidiff.app.compressed import repair
from cmidiff.app.errors import BadInput, say
from cmidiff.app.problem import Problem, built
from cmidiff.app.run import ESTIMATE, Settings, estimate, load_sample, posterior
from cmidiff.physics import Task, measure
from cmidiff.prior.base import Denoiser
from cmidiff.prior.tiles import Tiled, fitted, starts

SIDE = 96  # of the piece, pixels
SAMPLE_STEPS = 4  # of the piece of a sample, which are spread over all noise levels
WORTH = 40 * SIDE**2  # pixels of all results from which a measurement is worth its time
LONG = 20.0  # seconds from which the time is announced


def announce(problem: Problem, settings: Settings, prior: Denoiser, folder: Path) -> None:
    """Say how long the run will take, if that is long."""
    seconds = expected_seconds(problem, settings, prior, folder)
    if seconds > LONG:
        height, width = problem.shape[1:]
        say(f"{width}x{height} pixels: {in_words(seconds)} on this machine, as a small piece of the image tells")


def expected_seconds(problem: Problem, settings: Settings, prior: Denoiser, folder: Path) -> float:
    """Return the time that the results which the folder lacks will take, in seconds; 0 where it is short for sure."""
    first = ESTIMATE if settings.estimator is not None else 0
    missing = [k for k in range(first, settings.samples) if load_sample(folder, k) is None]
    samples, estimates = sum(k != ESTIMATE for k in missing), int(ESTIMATE in missing)
    pixels = pixels_seen(prior, problem.shape, settings.tile)
    if pixels * (samples + estimates) < WORTH:
        return 0.0
    piece = _piece(problem)
    scale, seconds = pixels / math.prod(piece.shape[1:]), 0.0
    with suppress(BadInput):  # the run itself says why
        if estimates:
            start = time.monotonic()
            _estimate(piece, settings, prior)
            seconds += scale * (time.monotonic() - start)
        if samples:
            start = time.monotonic()
            posterior(piece, replace(settings, steps=SAMPLE_STEPS), prior, range(1), lambda _: None)
            steps = settings.steps or settings.drawer[1].default_steps
            seconds += scale * samples * steps / SAMPLE_STEPS * (time.monotonic() - start)
    return seconds


def pixels_seen(prior: Denoiser, shape: tuple[int, ...], tile: int | str | None) -> int:
    """Return the number of pixels that the network sees in one evaluation: those of all tiles, which overlap."""
    network = fitted(prior, shape, tile)  # pyright: ignore[reportArgumentType]
    if not isinstance(network, Tiled):
        return math.prod(shape[1:])
    size, overlap, multiple = network.tile, network.overlap, network.multiple
    return math.prod(len(starts(side, size, overlap, multiple)) * min(side, size) for side in shape[1:])


def in_words(seconds: float) -> str:
    """Return a duration as a person says it."""
    if seconds < 90:
        return f"about {max(10, 10 * round(seconds / 10))} seconds"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} minutes"
    return f"about {seconds / 3600:.1f} hours"


def _piece(problem: Problem) -> Problem:
    """A grey piece as large as the measurement takes, of the same physics where that goes with any size, with noise as
    strong."""
    channels, height, width = problem.shape
    noise, name = max(problem.noise_std, 1 / 255), problem.task.name
    factor = int(problem.task.parameters.get("factor", 1)) if name == "super-resolution" else 1
    shape = (channels, *(min(side, SIDE) // factor * factor for side in (height, width)))
    task = Task("mask", {"noise_std": noise}, {"mask": torch.ones(1, 1, *shape[1:])})
    if name in ("denoise", "super-resolution"):
        task = Task(name, dict(problem.task.parameters) | {"noise_std": noise})
    elif name == "kernel" and all(n <= SIDE // 2 for n in problem.task.tensors["kernel"].shape[-2:]):
        task = Task(name, dict(problem.task.parameters) | {"noise_std": noise}, problem.task.tensors)
    physics = built(task, shape)
    y = measure(torch.full((1, *shape), 0.5), physics, seed=0)
    return Problem(y, physics, task, shape, tables=problem.tables)


def _estimate(piece: Problem, settings: Settings, prior: Denoiser) -> None:
    if piece.tables is not None:
        repair(piece, prior, settings.device, settings.tile, lambda *_: None)
    else:
        estimate(piece, settings, prior, lambda *_: None)
