"""Clean images, measured by one task and restored together, and the quality of the result.

Image ``i`` of a source has the seed ``i``. Its mask or kernel, its noise and its sampler's random numbers are the same
in every setting and in every batch. Differences between settings are therefore paired.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor

from cmidiff.information import CMI
from cmidiff.metrics import crps, lpips, psnr, ssim
from cmidiff.physics import TASKS, Task, measure
from cmidiff.prior.base import Denoiser
from cmidiff.restoration import restore
from cmidiff.result import Restoration
from cmidiff.solvers import Solver
from cmidiff.sources import list_sources, read_source
from cmidiff.step import Sampler

METRICS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {
    "psnr": (psnr, 1.0),
    "ssim": (ssim, 1.0),
    "lpips": (lpips, -1.0),
    "crps": (crps, -1.0),
}
"""Quality of an image by name: the function, and whether more (1) or less (-1) of it is better."""

SAMPLES = {"crps": 2}
"""How many samples of an image a metric needs, where one is not enough."""


@dataclass(frozen=True)
class Images:
    """A batch of clean images.

    Attributes:
        names: of the files, one each.
        index: place of each in the sorted names of its source; it is also the seed of all that is random for it.
        truth: shape (B, 3, H, W), float32 in [0, 1].
    """

    names: tuple[str, ...]
    index: tuple[int, ...]
    truth: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def part(self, first: int, last: int) -> Images:
        """Images ``first`` to ``last - 1``."""
        return Images(self.names[first:last], self.index[first:last], self.truth[first:last])


def read_images(source: Path, *, count: int, offset: int = 0, size: int | None = None) -> Images:
    """Images ``offset`` to ``offset + count - 1`` of a folder or a tar archive, sorted by name.

    Args:
        source: a folder, searched with its sub-folders, or a tar archive.
        count, offset: which ones.
        size: crop the square in the middle and shrink it to this side, in pixels; None: as they are, all of one size.
    """
    if count < 1 or offset < 0:
        raise ValueError(f"need count >= 1 and offset >= 0, received {count} and {offset}")
    chosen = list_sources(source, offset=offset, limit=count)
    tensors = [read_source(one, size) for one in chosen]
    for one, tensor in zip(chosen, tensors, strict=True):
        if tensor.shape != tensors[0].shape:
            (_, height, width), (_, other_height, other_width) = tensors[0].shape, tensor.shape
            raise ValueError(
                f"images are restored together and must have one size: {chosen[0].file} is {width}x{height}, "
                f"{one.file} is {other_width}x{other_height}; give a size to crop and shrink them to"
            )
    return Images(tuple(one.file for one in chosen), tuple(range(offset, offset + count)), torch.stack(tensors))


@dataclass(frozen=True)
class Problem:
    """Images and their measurements.

    Attributes:
        images: the truth, with a seed each.
        physics: the forward operator, with a mask or a kernel of its own for each image; signs are the same for all.
        y: measurements, shape (B, ...).
    """

    images: Images
    physics: LinearPhysics
    y: Tensor


def draw_physics(task: str, shape: Sequence[int], parameters: Mapping[str, Any], seeds: Sequence[int]) -> Physics:
    """The physics of a batch of images of ``shape`` (C, H, W), with a mask or a kernel for each image, drawn from its
    seed."""
    channels, height, width = shape
    image = (channels, height, width)
    seeded = task in TASKS and "seed" in inspect.signature(TASKS[task]).parameters
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of deepinv, about its own defaults
        tasks = [Task.draw(task, image, dict(parameters) | ({"seed": seed} if seeded else {})) for seed in seeds]
        if len(tasks) == 1 or not tasks[0].tensors:
            return tasks[0].build(image)
        ((name, _),) = tasks[0].tensors.items()
        drawn = [one.tensors[name] for one in tasks]
        if name == "mask":
            return replace(tasks[0], tensors={name: torch.cat(drawn)}).build(image)
        if name == "kernel":
            return replace(tasks[0], tensors={name: torch.stack(drawn)[:, None]}).build(image)
    raise ValueError(f"there is no batch of {name}: restore the images one by one")


def measure_images(images: Images, task: str, parameters: Mapping[str, Any], device: str = "cpu") -> Problem:
    """The measurements of images under a named task, and the physics, on a device; see `draw_physics`."""
    channels, height, width = images.truth.shape[1:]
    shape = (channels, height, width)
    once = "signs" in Task.draw(task, shape, parameters).tensors  # there is no batch of them: drawn once, from seed 0
    physics = draw_physics(task, shape, parameters, [0] if once else images.index)
    y = measure(images.truth, physics, seed=images.index)
    return Problem(images, cast(LinearPhysics, physics.to(device)), y.to(device))


def restore_problem(
    problem: Problem,
    prior: Denoiser,
    solver: Solver,
    cmi: CMI | None,
    *,
    steps: int,
    samples: int = 1,
    sampler: Sampler | None = None,
) -> Restoration:
    """Samples for each image, all in one batch."""
    return restore(
        problem.y,
        problem.physics,
        prior,
        solver=solver,
        cmi=cmi,
        sampler=sampler,
        steps=steps,
        samples=samples,
        seed=list(problem.images.index),
    )


def score_images(restoration: Restoration, truth: Tensor, metric: str) -> Tensor:
    """The metric of each image's samples (their mean, of a metric of one sample), shape (B,). A sample that diverged
    counts as an image of mid grey."""
    function, _ = METRICS[metric]
    ok = restoration.ok.cpu()[..., None, None, None]
    samples = torch.where(ok, restoration.samples.cpu(), 0.5)
    if metric in SAMPLES:
        return function(samples, truth)
    return torch.stack([function(sample, truth) for sample in samples.unbind(1)]).mean(0)
