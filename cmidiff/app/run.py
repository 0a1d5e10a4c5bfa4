"""The computation of a restoration. The command line and the page both run `compute`.

Each result is written into the folder as soon as it is finished; the same run into the same folder goes on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from cmidiff.app.compressed import restore_compressed
from cmidiff.app.folder import Sample, load_samples, save_sample
from cmidiff.app.problem import Problem
from cmidiff.app.settings import ESTIMATE, Settings
from cmidiff.app.summary import find_misfit
from cmidiff.prior.base import Denoiser
from cmidiff.restoration import restore
from cmidiff.result import Progress, Restoration, RestorationWarning, Status

Watch = Callable[[float, str, float, Tensor | None], None]
"""Receives which fraction is done, what is being done, the misfit, and the estimate so far (C, H, W) or None."""


def compute(problem: Problem, settings: Settings, prior: Denoiser, folder: Path, watch: Watch) -> Iterator[Sample]:
    """Compute what a folder lacks, the estimate first, and yield each result once it is written."""
    done = {sample.index for sample in load_samples(folder, settings)}
    if settings.drawer[1].together and any(k not in done for k in range(settings.samples)):
        done -= set(range(settings.samples))
    missing = [k for k in settings.parts if k not in done]
    for indices in split(missing, settings.batch):
        before = missing.index(indices.start)

        def show(fraction: float, doing: str, misfit: float, x_hat: Tensor | None, n: int = before) -> None:
            watch((n + len(indices) * fraction) / len(missing), doing, misfit, x_hat)  # noqa: B023 - called at once

        for one in restore_part(problem, settings, prior, indices, show):
            save_sample(folder, one, problem)
            yield one


def split(missing: list[int], batch: int) -> Iterator[range]:
    """Split indices into runs of consecutive ones, of at most ``batch`` each; the estimate is alone."""
    start = 0
    for end in range(1, len(missing) + 1):
        alone = missing[end - 1] == ESTIMATE
        if alone or end == len(missing) or missing[end] != missing[end - 1] + 1 or end - start == batch:
            yield range(missing[start], missing[end - 1] + 1)
            start = end


def restore_part(problem: Problem, settings: Settings, prior: Denoiser, indices: range, watch: Watch) -> list[Sample]:
    """Compute the estimate, or the samples ``indices``."""
    if indices.start != ESTIMATE:
        return _draw(problem, settings, prior, indices, watch)
    if problem.tables is not None:
        values, misfit = restore_compressed(problem, prior, settings, watch)
        return [Sample(ESTIMATE, values, misfit, Status(True, misfit=float(misfit[-1])))]

    def show(now: Progress) -> None:
        doing = f"estimate, step {now.step}/{now.steps}"
        watch(now.step / now.steps, doing, float(now.misfit.median()), now.x_hat[0])

    found = _restore(problem, settings, prior, show, solver=settings.solver)
    misfit = found.stats["misfit"].flatten().cpu()
    return [_finish_sample(problem, ESTIMATE, found.estimate[0], misfit, found.estimate_status[0])]


def _draw(problem: Problem, settings: Settings, prior: Denoiser, indices: range, watch: Watch) -> list[Sample]:
    label = "-".join(str(k + 1) for k in dict.fromkeys((indices.start, indices.stop - 1)))

    def show(now: Progress) -> None:
        doing = f"sample {label} of {settings.samples}, step {now.step}/{now.steps}"
        watch(now.step / now.steps, doing, float(now.misfit.median()), now.x_hat[0])

    options = {"solver": settings.drawer[1], "cmi": settings.cmi, "sampler": settings.sampler}
    options |= {"samples": len(indices), "first_sample": indices.start}
    found = _restore(problem, settings, prior, show, **options)
    samples, misfit, status = found.samples[0], found.stats["misfit"][:, 0].cpu(), found.status[0]
    return [_finish_sample(problem, k, samples[n], misfit[:, n], status[n]) for n, k in enumerate(indices)]


def _restore(
    problem: Problem, settings: Settings, prior: Denoiser, show: Callable[[Progress], None], **options: Any
) -> Restoration:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RestorationWarning)  # it is in the status, which the summary shows
        try:
            return restore(
                problem.y.to(settings.device),
                problem.physics.to(settings.device),
                prior,
                noise_std=None if problem.photons else problem.noise_std,
                tile=settings.tile,
                steps=settings.steps,
                seed=settings.seed,
                callback=show,
                **options,
            )
        except TypeError as error:  # a solver that needs another physics
            raise ValueError(str(error)) from error


def _finish_sample(problem: Problem, index: int, values: Tensor, misfit: Tensor, status: Status) -> Sample:
    """A result with the pixels that belong to the user. Without noise its misfit is in units of a [0, 1] image, as all
    else is."""
    values = values.cpu()
    if problem.noise_std == 0 and status.ok:
        status = replace(status, misfit=find_misfit(problem, values))
    return Sample(index, problem.finish(values), misfit, status)
