"""One piece of work: some images, restored by one solver for one task. It is all that an engine runs.

What is random depends on (image, task, seed) alone: mask or kernel, measurement noise and the sampler's numbers. So
every solver, with and without CMI and at any number of steps, is given the same problem and the same numbers, and
differences between them are paired. It follows that a unit is the same whatever the order, the engine or the worker;
several images in one batch change it by rounding only.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor

from cmidiff.evaluate.config import Setup
from cmidiff.evaluate.counted import Counted
from cmidiff.evaluate.database import Cell, Outcome, PictureFile, SampleOutcome, Unit
from cmidiff.evaluate.scores import scores
from cmidiff.images import encode_image
from cmidiff.physics import TASKS, Task, measure
from cmidiff.prior.base import Denoiser
from cmidiff.restoration import restore
from cmidiff.result import Status


@dataclass(frozen=True)
class Job:
    """What a worker needs to know, apart from the prior.

    Attributes:
        cell: task, solver, CMI, eta, steps.
        seed: of the units.
        images: name and values (3, H, W) in [0, 1] of each image, all of one size.
        task, parameters: the task's name in `cmidiff.physics.TASKS`, and all its parameters but the seed.
        setup: solver, CMI and sampler of the cell.
        samples: K.
        lpips: network of LPIPS, or None where its weights are not at hand.
    """

    cell: Cell
    seed: int
    images: tuple[tuple[str, Tensor], ...]
    task: str
    parameters: dict[str, Any]
    setup: Setup
    samples: int
    lpips: str | None

    @property
    def units(self) -> list[Unit]:
        return [Unit(name, *self.cell, self.seed) for name, _ in self.images]

    def only(self, index: int) -> Job:
        """The same for one of the images."""
        return replace(self, images=self.images[index : index + 1])


@dataclass(frozen=True)
class Done:
    """What comes back: outcomes, and files (path in the run's folder: bytes) to write before they are recorded."""

    outcomes: list[Outcome]
    files: dict[str, bytes] = field(default_factory=dict)
    measured: list[tuple[str, str, int, str]] = field(default_factory=list)
    trouble: str = ""


def seed_of(what: str, unit: Unit) -> int:
    """The seed of what is random in a unit: the same for every solver, with and without CMI, at any steps."""
    text = f"{what}|{unit.image}|{unit.task}|{unit.seed}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def compute(job: Job, prior: Denoiser, device: str) -> Done:
    """Restore the images of a job. What goes wrong with one of them is its outcome and costs the others nothing."""
    try:
        return _computed(job, prior, device)
    except Exception as error:
        if len(job.images) > 1:
            return _joined([compute(job.only(i), prior, device) for i in range(len(job.images))])
        reason = f"{type(error).__name__}: {error}"
        return failed(job, reason, traceback.format_exc())


def failed(job: Job, reason: str, trouble: str = "") -> Done:
    """All units of a job failed for one reason; ``trouble`` is for the log."""
    outcomes = [Outcome(unit, "failed", reason, finished=_now(), worker=_worker()) for unit in job.units]
    return Done(outcomes, trouble=trouble or reason)


def _joined(parts: Sequence[Done]) -> Done:
    return Done(
        [outcome for part in parts for outcome in part.outcomes],
        {path: data for part in parts for path, data in part.files.items()},
        [row for part in parts for row in part.measured],
        "\n".join(filter(None, (part.trouble for part in parts))),
    )


def _computed(job: Job, prior: Denoiser, device: str) -> Done:
    units = job.units
    truth = torch.stack([values for _, values in job.images])
    own = [_physics(job, [unit], truth.shape[1:]) for unit in units]
    y = torch.cat([measure(truth[i : i + 1], own[i], seed=seed_of("noise", unit)) for i, unit in enumerate(units)])
    counted = Counted(prior)
    before = time.perf_counter()
    restoration = restore(
        y.to(device),
        _physics(job, units, truth.shape[1:]).to(device),
        counted,
        solver=job.setup.solver,
        cmi=job.setup.correction,
        sampler=job.setup.sampler,
        noise_std=float(job.parameters["noise_std"]),
        steps=job.cell.steps,
        samples=job.samples,
        seed=[seed_of("sampler", unit) for unit in units],
    )
    seconds = (time.perf_counter() - before) / len(units)
    rows = len(units) * job.samples
    cost = {"evaluations": counted.forwards / rows, "gradients": counted.backwards / rows, "seconds": seconds}
    done = Done([])
    for i, unit in enumerate(units):
        samples = restoration.samples[i].detach().cpu()
        outcome, files = _outcome(job, unit, restoration.status[i], samples, truth[i], y[i : i + 1], own[i])
        done.outcomes.append(replace(outcome, **cost))
        path = measured_path(unit)
        done.files.update(files | {path: encode_image(view(y[i : i + 1], own[i]))})
        done.measured.append((unit.image, unit.task, unit.seed, path))
    return done


def _physics(job: Job, units: Sequence[Unit], shape: Sequence[int]) -> Physics:
    """The physics of a batch: with a mask or a kernel of its own for each image."""
    channels, height, width = shape
    image = (channels, height, width)
    drawn = "seed" in inspect.signature(TASKS[job.task]).parameters
    seeds = [{"seed": seed_of("physics", unit)} if drawn else {} for unit in units]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of deepinv, about its own defaults
        tasks = [Task.draw(job.task, image, job.parameters | seed) for seed in seeds]
        if len(tasks) == 1 or not tasks[0].tensors:
            return tasks[0].build(image)
        tensors = {name: _stack(name, [task.tensors[name] for task in tasks]) for name in tasks[0].tensors}
        return replace(tasks[0], tensors=tensors).build(image)


def _stack(name: str, tensors: list[Tensor]) -> Tensor:
    """Masks (1, 1, H, W) and kernels (k, l), one for each image."""
    match name:
        case "mask":
            return torch.cat(tensors)
        case "kernel":
            return torch.stack(tensors)[:, None]
    raise ValueError(f"there is no batch of {name}: the images run one by one")


def _std_png(std: Tensor) -> bytes:
    """A map of standard deviations (C, H, W): the mean over the channels, 16 bits, 65535 being 1."""
    return encode_image(std.mean(0, keepdim=True), bits=16)


def _outcome(
    job: Job, unit: Unit, status: list[Status], samples: Tensor, truth: Tensor, y: Tensor, physics: Physics
) -> tuple[Outcome, dict[str, bytes]]:
    """Status, scores and pictures of a unit from its samples (K, C, H, W)."""
    ok = [k for k, s in enumerate(status) if s.ok]
    outcome = Outcome(
        unit,
        "ok" if ok else "diverged",
        None if ok else status[0].message,
        finished=_now(),
        worker=_worker(),
        samples=tuple(SampleOutcome(s.ok, s.step, s.message) for s in status),
    )
    if not ok:
        return outcome, {}
    good = samples[ok]
    pictures = {f"sample-{k}": encode_image(samples[k]) for k in ok}
    if len(ok) > 1:
        pictures |= {"mean": encode_image(good.mean(0)), "std": _std_png(good.std(0))}
    named = {kind: (restored_path(unit, kind), data) for kind, data in pictures.items()}
    files = {kind: PictureFile(path, hashlib.sha256(data).hexdigest()) for kind, (path, data) in named.items()}
    measured = scores(good, truth, y, physics, noise_std=float(job.parameters["noise_std"]), lpips_net=job.lpips)
    return replace(outcome, pictures=files, scores=measured), dict(named.values())


def view(y: Tensor, physics: Physics) -> Tensor:
    """A measurement (1, ...) as a picture (1 | 3, h, w): itself, or its back-projection stretched to [0, 1]."""
    if y.ndim == 4 and y.shape[1] in (1, 3) and not y.is_complex():
        return y[0]
    back = physics.A_adjoint(y)[0] if isinstance(physics, LinearPhysics) else y.abs().reshape(1, 1, -1)
    low, high = back.min(), back.max()
    return (back - low) / (high - low).clamp_min(1e-12)


def measured_path(unit: Unit) -> str:
    return f"measured/{unit.task}/{quote(unit.image)}-seed{unit.seed}.png"


def restored_path(unit: Unit, kind: str) -> str:
    how = f"{unit.solver}-cmi{unit.eta!r}" if unit.cmi else unit.solver
    return f"restored/{unit.task}/{how}-{unit.steps}steps/{quote(unit.image)}-seed{unit.seed}/{kind}.png"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _worker() -> str:
    return f"{platform.node()}:{os.getpid()}"
