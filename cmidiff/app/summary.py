"""The summary of a restoration: its mean and spread, its figures, and what to try."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from cmidiff import files
from cmidiff.app.figures import Tile, side_by_side, std_map, std_tile
from cmidiff.app.folder import COMMAND, Row, Sample, write_result
from cmidiff.app.problem import Problem
from cmidiff.app.settings import ESTIMATE, Settings
from cmidiff.images import encode, to_pil
from cmidiff.metrics import data_misfit, psnr, ssim
from cmidiff.result import MISFIT_BOUND, Status

SSIM_WINDOW = 11  # pixels: smaller images have no SSIM
MOST_SHOWN = 4  # samples in the comparison


def find_misfit(problem: Problem, values: Tensor) -> float:
    """Return the misfit in units of the noise; without noise, the root mean square of the residual."""
    physics = problem.physics.to("cpu")
    return float(data_misfit(values[None], problem.y, physics, noise_std=problem.noise_std or 1.0))


def make_row(name: str, values: Tensor, status: Status, truth: Tensor | None) -> Row:
    """Return the line of an image (C, H, W): how it ended, and its quality where the truth is known."""
    if not status.ok:
        return Row(name, status.message)
    words = "ok" if status.explains else status.message
    if truth is None:
        return Row(name, words, status.misfit)
    shown, truth = values.clamp(0, 1)[None], truth[None]
    similarity = float(ssim(shown, truth)) if min(values.shape[1:]) >= SSIM_WINDOW else None
    return Row(name, words, status.misfit, float(psnr(shown, truth)), similarity)


def finish(folder: Path, problem: Problem, done: list[Sample], truth: Tensor | None) -> list[Row]:
    """Write what is made of the finished results, and return the summary, the restored image first."""
    rows = [make_row(s.name, s.values, s.status, truth) for s in done]
    samples = [s for s in done if s.index != ESTIMATE]
    good = [s for s in samples if s.ok]
    if not good:
        return rows
    stack = torch.stack([s.values for s in good])
    moments = {"mean": stack.mean(0)}
    status = find_status_of_mean(problem, good, moments["mean"])
    if len(samples) == len(done):
        write_result(folder / "restored.png", moments["mean"], problem)
        rows.insert(0, make_row("restored", moments["mean"], status, truth))
    write_result(folder / "mean.png", moments["mean"], problem)
    if len(good) > 1:
        moments["std"] = stack.std(0)
        files.write(folder / "std.png", encode(std_map(moments["std"])), COMMAND)
        rows.append(make_row("mean", moments["mean"], status, truth))
    files.write(folder / "moments.safetensors", save(moments), COMMAND)
    files.write(folder / "comparison.png", encode(_compare(problem, done, moments, truth, rows)), COMMAND)
    return rows


def find_status_of_mean(problem: Problem, good: list[Sample], mean: Tensor) -> Status:
    """Return how the mean of samples stands: as the worst one if its own misfit is above the bound, too."""
    worst = max((s.status for s in good), key=lambda status: status.misfit)
    if problem.keeps or problem.framed:  # its own misfit knows nothing of what `Problem.finish` changed
        return worst
    misfit = find_misfit(problem, mean)
    doubtful = not worst.explains and misfit > MISFIT_BOUND
    return replace(worst, misfit=misfit) if doubtful else Status(True, misfit=misfit)


def _compare(
    problem: Problem, done: list[Sample], moments: Mapping[str, Tensor], truth: Tensor | None, rows: list[Row]
) -> Image.Image:
    notes = {row.name: row.note for row in rows}
    good = [s for s in done if s.ok]
    samples = [s for s in good if s.index != ESTIMATE]
    shown = [s for s in good if s.index == ESTIMATE] + samples[:MOST_SHOWN]
    tiles = [Tile(to_pil(problem.view()), "measurement", f"{problem.name}, noise {problem.noise_std:g}")]
    tiles += [Tile(to_pil(s.values), s.name, notes[s.name]) for s in shown]
    if "std" in moments:
        tiles += [Tile(to_pil(moments["mean"]), f"mean of {len(samples)}", notes["mean"]), std_tile(moments["std"])]
    if truth is not None:
        tiles.append(Tile(to_pil(truth), "truth"))
    return side_by_side(tiles)


def count_done(done: list[Sample], settings: Settings) -> str:
    """Return in words what of a run is finished, with the verb."""
    estimate = any(s.index == ESTIMATE for s in done)
    samples = f"{len(done) - estimate} of {settings.samples} samples are"
    if settings.samples:
        return f"the estimate and {samples}" if estimate else samples
    return "the estimate is" if estimate else "nothing is"


def advise(done: list[Sample], problem: Problem, settings: Settings) -> str:
    """Return what to try where a result does not explain the measurement, in one line; "" where all do."""
    doubtful = [s for s in done if s.ok and not s.status.explains]
    if not doubtful:
        return ""
    worst = max(s.status.misfit for s in doubtful)
    which = doubtful[0].name if len(doubtful) == 1 else f"{len(doubtful)} results"
    if problem.noise_std and worst <= MISFIT_BOUND:
        return (
            f"cmidiff: {which} {'leaves' if len(doubtful) == 1 else 'leave'} the range of images: the measurement "
            f"holds more noise than --noise-std {problem.noise_std:g}, which inverting it amplifies. State more"
        )
    found = (
        f"misfit {worst:.3g}, at most {MISFIT_BOUND:g} is expected" if problem.noise_std else f"residual {worst:.3g}"
    )
    option = {"mask": "the mask", "kernel": "the kernel"}.get(problem.task.name, f"--task {problem.task.name}")
    more = f"--steps {4 * (settings.steps or settings.drawer[1].default_steps)}"
    return (
        f"cmidiff: {which} does not explain the measurement ({found}): check {option} and its options, state "
        f"--noise-std above {problem.noise_std:g} if the image is noisier, or try {more}"
    )
