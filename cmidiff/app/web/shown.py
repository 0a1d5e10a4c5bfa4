"""What a person sees of a run: words, images and figures."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from cmidiff.app.figures import enlarge, std_map
from cmidiff.app.folder import Row
from cmidiff.app.web.jobs import Job, Result, View, describe_cmi
from cmidiff.images import read_image, to_pil
from cmidiff.result import MISFIT_BOUND

SMALLEST, LARGEST = 512, 1600  # longer side of a shown image, in pixels: enlarged by a whole factor, or shrunk


def refusal(message: str) -> str:
    """Return a line that says what cannot be done."""
    return f'<p class="refusal" role="alert">{html.escape(_capitalise(message))}</p>'


def note(message: str, *, doubtful: bool) -> str:
    """Return what a person should know of a result; a doubt is announced."""
    return refusal(message) if doubtful else f'<p role="note">{html.escape(_capitalise(message))}</p>'


def line(text: str, fraction: float | None = None) -> str:
    """Return the line that says how things stand, with a bar where there is something to wait for."""
    bar = "" if fraction is None else f'<progress max="1" value="{fraction:.3f}" aria-label="progress"></progress>'
    return f'<div class="status" role="status"><p>{html.escape(_capitalise(text))}</p>{bar}</div>'


def _capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]


def status(view: View) -> str:
    """Return the progress of a run, in words and as a bar."""
    if view.state == "failed":
        return refusal(view.message)
    if not view.over:
        left = "" if view.left is None else f"; about {duration(view.left)} left"
        return line(f"{view.doing}{left}", view.fraction)
    if view.state == "done":
        return line("finished, but the result is doubtful: see the note below it" if doubt(view) else "finished")
    finished = any(result.finished for result in view.results)
    end = "cancelled" if view.state == "cancelled" else view.message
    return line(f"{end}; {'what was finished is below' if finished else 'nothing was finished'}")


def doubt(view: View) -> str:
    """Return why the result of a run is not to be trusted, or an empty text."""
    rows = view.results[0].rows if view.results else ()
    if lost := sum(row.misfit is None for row in rows):
        return f"{lost} of {len(rows)} images diverged: take more steps, or another solver."
    if not rows or rows[0].status == "ok":
        return ""
    if rows[0].misfit is not None and rows[0].misfit <= MISFIT_BOUND:
        return "The photograph holds more noise than stated, and sharpening amplifies it. State more noise."
    return (
        f"The result does not explain the photograph: its misfit is {rows[0].misfit:.1f} times the noise, and about 1 "
        "is right. Take more steps, state more noise, or check what was wrong with the photograph."
    )


def duration(seconds: float) -> str:
    """Return a time in words."""
    if seconds < 90:
        return f"{max(1, math.ceil(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def show_image(values: Tensor) -> Image.Image:
    """Return an image (C, H, W) at a size that can be seen."""
    image = to_pil(fit(values, (values.shape[1], values.shape[2]))).convert("RGB")
    scale = max(1, SMALLEST // max(image.size))
    return enlarge(image, image.width * scale, image.height * scale)


def fit(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Return an image (C, h, w) at ``size = (height, width)``, or as much smaller as it is shown."""
    scale = min(1.0, LARGEST / max(size))
    height, width = (max(1, round(n * scale)) for n in size)
    if (height, width) == tuple(values.shape[1:]):
        return values
    mode = "nearest" if height > values.shape[1] else "area"
    return interpolate(values[None], size=(height, width), mode=mode)[0]


def comparison(job: Job) -> tuple[Image.Image, Image.Image]:
    """Return what was given and what came out, at one size."""
    after = read_image(job.image).values
    before = job.work.problem.view() if job.work.finish is None else read_image(job.work.photo).values
    return show_image(fit(before, (after.shape[1], after.shape[2]))), show_image(after)


def _prefix(results: Sequence[Result], result: Result) -> str:
    return "" if len(results) == 1 else f"{describe_cmi(result)}: "


def gallery(job: Job) -> list[tuple[Image.Image, str]]:
    """Return the uncertainty of each run, its mean and its samples, with their captions."""
    images = list[tuple[Image.Image, str]]()
    for result in job.view.results:
        name = _prefix(job.view.results, result)
        if result.mean is not None and len(result.good) > 1:
            deviation = torch.stack([sample.values for sample in result.good]).std(0)
            images += [(std_map(deviation), f"{name}where the samples disagree")]
            images += [(show_image(result.mean), f"{name}mean of {len(result.good)}")]
        images += [(show_image(sample.values), f"{name}sample {sample.index + 1}") for sample in result.good]
    if job.work.truth is not None:
        images.append((show_image(job.work.truth), "truth"))
    return images


def summary(results: Sequence[Result]) -> str:
    """Return the figures, as a table."""
    with_truth = any(row.psnr is not None for result in results for row in result.rows)
    lines = ["| image | data misfit |" + (" PSNR (dB) | SSIM |" if with_truth else "")]
    lines.append("|---|---:|" + ("---:|---:|" if with_truth else ""))
    for result in results:
        prefix = _prefix(results, result)
        lines += [f"| {prefix}{_name(row)} | {' | '.join(row.figures(with_truth))} |" for row in result.rows]
    return "\n".join(lines)


def _name(row: Row) -> str:
    word, _, index = row.name.partition(" ")
    name = f"{word} {int(index) + 1}" if index.isdecimal() else row.name
    if row.status == "ok":
        return name
    return f"{name} ({'diverged' if row.misfit is None else 'doubtful'})"
