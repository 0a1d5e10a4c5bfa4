"""Many images measured by one task, restored together, and how well it went.

Image ``i`` of a source has the seed ``i``: its mask, its noise and its sampler's random numbers are the same in every
setting that is compared and in every batch, so that differences between settings are paired.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from cmidiff.information import CMI
from cmidiff.metrics import crps, lpips, psnr, ssim
from cmidiff.physics import TASKS, Task, from_mask, measure
from cmidiff.prior.base import Denoiser
from cmidiff.restoration import restore
from cmidiff.result import Restoration
from cmidiff.solvers import Solver
from cmidiff.step import Sampler
from cmidiff.tuning.images import Images

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
class Problem:
    """Images, and what was measured of them.

    Attributes:
        images: the truth, with a seed each.
        physics: the forward operator; masks are drawn for each image, kernels and signs once, from seed 0.
        y: measurements, shape (B, ...).
    """

    images: Images
    physics: LinearPhysics
    y: Tensor


def measured(images: Images, task: str, parameters: Mapping[str, Any], device: str = "cpu") -> Problem:
    """The measurements of images under a named task.

    Args:
        images: the truth.
        task: a name of `cmidiff.physics.TASKS`.
        parameters: the task's own, with ``noise_std``.
        device: where the measurements and the physics are put.

    Raises:
        ValueError: an unknown task or parameter, or one that does not go with images of this size.
    """
    channels, height, width = images.truth.shape[1:]
    shape = (channels, height, width)
    seeded = task in TASKS and "seed" in inspect.signature(TASKS[task]).parameters

    def drawn(seed: int) -> Task:
        return Task.draw(task, shape, dict(parameters) | ({"seed": seed} if seeded else {}))

    first = drawn(0)
    if "mask" in first.tensors:
        masks = torch.cat([drawn(seed).tensors["mask"].reshape(1, -1, height, width) for seed in images.index])
        physics = from_mask(masks, shape, noise_std=first.parameters["noise_std"])
    else:
        physics = first.build(shape)
    y = measure(images.truth, physics, seed=images.index)
    return Problem(images, cast(LinearPhysics, physics.to(device)), y.to(device))


def restored(
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


def quality(restoration: Restoration, truth: Tensor, metric: str) -> Tensor:
    """The metric of each image's samples (their mean, of a metric of one sample), shape (B,); a sample that diverged
    counts as an image of mid grey."""
    function, _ = METRICS[metric]
    ok = restoration.ok.cpu()[..., None, None, None]
    samples = torch.where(ok, restoration.samples.cpu(), 0.5)
    if metric in SAMPLES:
        return function(samples, truth)
    return torch.stack([function(sample, truth) for sample in samples.unbind(1)]).mean(0)
