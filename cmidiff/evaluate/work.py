"""One piece of work: some images, restored by one solver for one task. It is all that an engine runs.

What is random depends on (image, task, seed) alone: mask or kernel, measurement noise and the sampler's numbers. So
every solver, with and without CMI and at any number of steps, receives the same problem and the same numbers.
Differences between them are paired. A unit does not depend on the order, the engine or the worker; several images in
one batch change it by rounding only.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import torch
from deepinv.physics import Physics
from torch import Tensor

from cmidiff.evaluate.records import Cell, ImageFile, Outcome, Unit
from cmidiff.evaluate.scores import score_samples
from cmidiff.evaluate.setup import Setup
from cmidiff.images import encode_image
from cmidiff.physics import measure
from cmidiff.physics.measure import view_measurement
from cmidiff.prior.base import Denoiser, Prediction
from cmidiff.prior.wrapped import WrappedPrior
from cmidiff.restoration import restore
from cmidiff.tuning.problem import draw_physics


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
        lpips: network of LPIPS, or None where its weights are not available.
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


@dataclass(frozen=True)
class Done:
    """Outcomes, and files (path in the run's folder: bytes) to write before they are recorded.

    Attributes:
        measured: image, task, seed and path of the images of the measurements.
        trouble: for the log.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    measured: list[tuple[str, str, int, str]] = field(default_factory=list)
    trouble: str = ""


class Counted(WrappedPrior):
    """A denoiser that counts, image by image: one forward pass of a batch of 4 counts 4.

    Attributes:
        forwards: evaluations of the network.
        backwards: gradients through it.
    """

    def __init__(self, inner: Denoiser) -> None:
        self.inner = inner
        self.forwards = 0
        self.backwards = 0

    def __call__(self, x_t: Tensor, t: float) -> Prediction:
        self.forwards += len(x_t)
        prediction = self.inner(x_t, t)
        if prediction.mean.requires_grad:
            prediction.mean.register_hook(self._count)
        return prediction

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def make_seed(what: str, unit: Unit) -> int:
    """The seed of what is random in a unit: the same for every solver, with and without CMI, at any steps."""
    text = f"{what}|{unit.image}|{unit.task}|{unit.seed}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def compute(job: Job, prior: Denoiser, device: str) -> Done:
    """Restore the images of a job. What goes wrong with one of them is its outcome and costs the others nothing."""
    try:
        return _restore(job, prior, device)
    except Exception as error:
        if len(job.images) == 1:
            return fail(job, f"{type(error).__name__}: {error}", traceback.format_exc())
    parts = [compute(replace(job, images=(image,)), prior, device) for image in job.images]
    return Done(
        [outcome for part in parts for outcome in part.outcomes],
        {path: data for part in parts for path, data in part.files.items()},
        [row for part in parts for row in part.measured],
        "\n".join(part.trouble for part in parts if part.trouble),
    )


def fail(job: Job, reason: str, trouble: str = "") -> Done:
    """All units of a job failed for one reason; ``trouble`` is for the log."""
    outcomes = [Outcome(unit, "failed", reason, **_stamp()) for unit in job.units]
    return Done(outcomes, trouble=trouble or reason)


def _restore(job: Job, prior: Denoiser, device: str) -> Done:
    units, noise_std = job.units, float(job.parameters["noise_std"])
    truth = torch.stack([values for _, values in job.images])

    def draw(some: Sequence[Unit]) -> Physics:
        return draw_physics(job.task, truth.shape[1:], job.parameters, [make_seed("physics", unit) for unit in some])

    own, joint = [draw([unit]) for unit in units], draw(units).to(device)
    y = torch.cat([measure(truth[i : i + 1], own[i], seed=make_seed("noise", unit)) for i, unit in enumerate(units)])
    counted, before = Counted(prior), time.perf_counter()
    restoration = restore(
        y.to(device),
        joint,
        counted,
        solver=job.setup.solver,
        cmi=job.setup.correction,
        sampler=job.setup.sampler,
        noise_std=noise_std,
        steps=job.cell.steps,
        samples=job.samples,
        seed=[make_seed("sampler", unit) for unit in units],
    )
    rows, seconds = len(units) * job.samples, time.perf_counter() - before
    cost = {"evaluations": counted.forwards / rows, "gradients": counted.backwards / rows}
    done = Done()
    for i, unit in enumerate(units):
        status, samples, measured = restoration.status[i], restoration.samples[i].detach().cpu(), y[i : i + 1]
        ok = [k for k, s in enumerate(status) if s.ok]
        images, found = _encode(unit, samples, ok), {}
        if ok:
            found = score_samples(samples[ok], truth[i], measured, own[i], noise_std=noise_std, lpips_net=job.lpips)
        outcome = Outcome(
            unit,
            "ok" if ok else "diverged",
            None if ok else status[0].message,
            **cost,
            seconds=seconds / len(units),
            **_stamp(),
            samples=tuple(status),
            images={kind: ImageFile(path, hashlib.sha256(data).hexdigest()) for kind, (path, data) in images.items()},
            scores=found,
        )
        path = f"measured/{unit.task}/{quote(unit.image)}-seed{unit.seed}.png"
        done.outcomes.append(outcome)
        done.files.update({path: encode_image(view_measurement(measured, own[i]))} | dict(images.values()))
        done.measured.append((unit.image, unit.task, unit.seed, path))
    return done


def _encode(unit: Unit, samples: Tensor, ok: Sequence[int]) -> dict[str, tuple[str, bytes]]:
    """Path and bytes of a unit's images. These are its finished samples of (K, C, H, W), their mean and their std,
    averaged over the channels. They have 16 bits, and 65535 is 1."""
    images = {f"sample-{k}": encode_image(samples[k]) for k in ok}
    if len(ok) > 1:
        images["mean"] = encode_image(samples[list(ok)].mean(0))
        images["std"] = encode_image(samples[list(ok)].std(0).mean(0, keepdim=True), bits=16)
    how = f"{unit.solver}-cmi{unit.eta!r}" if unit.cmi else unit.solver
    folder = f"restored/{unit.task}/{how}-{unit.steps}steps/{quote(unit.image)}-seed{unit.seed}"
    return {kind: (f"{folder}/{kind}.png", data) for kind, data in images.items()}


def _stamp() -> dict[str, Any]:
    """When and where a unit was computed."""
    return {
        "finished": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "worker": f"{platform.node()}:{os.getpid()}",
    }
