"""What a visitor sees of a run: words, pictures, curves and figures."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from cmidiff.app.figures import enlarged, std_map
from cmidiff.app.run import Row
from cmidiff.app.web.jobs import Result, View
from cmidiff.images import to_pil

SHOWN = 512  # pixels: small pictures are enlarged by a whole factor up to this


def refusal(message: str) -> str:
    """A friendly line."""
    return f'<p class="refusal" role="alert">{html.escape(message)}</p>'


def status(view: View) -> str:
    """The progress of a run, in words and as a bar."""
    if view.state == "failed":
        return refusal(view.message)
    words = [view.doing]
    if view.left is not None:
        words.append(f"about {duration(view.left)} left")
    if view.state in ("cancelled", "out of time"):
        finished = sum(len(result.samples) for result in view.results)
        words = ["Cancelled" if view.state == "cancelled" else view.message.capitalize()]
        words.append("what was finished is below" if finished else "no sample was finished")
    if view.state == "done":
        words = ["Finished"]
        if lost := sum(not sample.ok for result in view.results for sample in result.samples):
            words.append(f"{lost} samples diverged: take more steps, or another solver")
    text = "; ".join(words)
    return told(_capital(text), view.fraction)


def told(text: str, fraction: float | None = None) -> str:
    """The line that says how things stand, with a bar where there is something to wait for."""
    bar = "" if fraction is None else f'<progress max="1" value="{fraction:.3f}" aria-label="progress"></progress>'
    return f'<div class="status" role="status"><p>{html.escape(text)}</p>{bar}</div>'


def duration(seconds: float) -> str:
    """A time as one says it."""
    return f"{math.ceil(seconds)} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def shown(values: Tensor, like: Tensor | None = None) -> Image.Image:
    """A picture of (C, H, W) as `enlarge` shows it, or at the size that ``like`` is shown at."""
    image = to_pil(values).convert("RGB")
    return enlarge(image, None if like is None else (like.shape[2], like.shape[1]))


def enlarge(image: Image.Image, size: tuple[int, int] | None = None) -> Image.Image:
    """A small picture (or one of another ``size``, stretched to it), enlarged by a whole factor."""
    width, height = size or image.size
    scale = max(1, SHOWN // max(height, width))
    return enlarged(image, width * scale, height * scale)


def comparison(left: tuple[str, Image.Image], right: tuple[str, Image.Image]) -> str:
    """Two pictures of one size, each with its name, one over the other: a slider says where they meet."""
    names = [html.escape(name) for name, _ in (left, right)]
    captions = "".join(f"<span>{_capital(name)}</span>" for name in names)
    moved = "this.parentElement.style.setProperty('--cut', this.value + '%')"
    return (
        f'<figure class="comparison"><figcaption>{captions}</figcaption><div class="halves">{_img(*left)}{_img(*right)}'
        f'<span class="handle" aria-hidden="true">&#9666; &#9656;</span><input type="range" value="50" '
        f'aria-label="how much is {names[0]}, the rest is {names[1]}" oninput="{moved}"></div></figure>'
    )


def figures(pictures: Sequence[tuple[str, Image.Image]]) -> str:
    """Pictures beside each other, each with its name below."""
    shown = (
        f"<figure>{_img(name, image)}<figcaption>{html.escape(_capital(name))}</figcaption></figure>"
        for name, image in pictures
    )
    return f'<div class="figures">{"".join(shown)}</div>'


def _img(name: str, image: Image.Image) -> str:
    data = io.BytesIO()
    image.save(data, format="PNG")
    return f'<img src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}" alt="{html.escape(name)}">'


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def name_of(result: Result, results: Sequence[Result]) -> str:
    """What tells a run from the other, before a colon; nothing if there is no other."""
    return "" if len(results) == 1 else ("with CMI: " if result.settings.cmi else "without CMI: ")


def curves(results: Sequence[Result], what: str) -> pd.DataFrame:
    """A curve by step for every finished sample; of the moves, where there are any."""
    rows = [
        {"step": step + 1, what: float(value), "sample": f"{name_of(result, results)}sample {sample.index + 1}"}
        for result in results
        if what == "misfit" or result.settings.cmi
        for sample, move in zip(result.samples, result.cmi, strict=True)
        for step, value in enumerate(sample.misfit if what == "misfit" else move)
        if math.isfinite(float(value))
    ]
    return pd.DataFrame(rows, columns=["step", what, "sample"])


def summary(results: Sequence[Result]) -> str:
    """The figures, as a table."""
    with_truth = any(row.psnr is not None for result in results for row in result.rows)
    lines = ["| | data misfit |" + (" PSNR (dB) | SSIM |" if with_truth else "")]
    lines.append("|---|---:|" + ("---:|---:|" if with_truth else ""))
    for result in results:
        for row in result.rows:
            cells = [f"{name_of(result, results)}{_spoken(row)}", _number(row.misfit, 2)]
            cells += [_number(row.psnr, 2), _number(row.ssim, 3)] if with_truth else []
            lines.append(f"| {' | '.join(cells)} |")
    note = "\n\n*Misfit: how far a restoration is from explaining the measurement, in units of its noise; 1 is right.*"
    return "\n".join(lines) + note if len(lines) > 2 else ""


def _spoken(row: Row) -> str:
    word, _, index = row.name.partition(" ")
    name = f"{word} {int(index) + 1}" if index.isdecimal() else row.name
    return name if row.status == "ok" else f"{name} ({row.status})"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def moments(results: Sequence[Result]) -> str:
    """Mean and uncertainty of each run."""
    pictures = []
    for result in results:
        if result.mean is not None:
            pictures.append((f"{name_of(result, results)}mean of {len(result.good)}", shown(result.mean)))
        if len(result.good) > 1:
            deviation = torch.stack([sample.values for sample in result.good]).std(0)
            pictures.append((f"{name_of(result, results)}where the samples disagree", std_map(deviation)))
    note = "" if len(pictures) > len(results) else "<p>Take two samples or more to see where they disagree.</p>"
    return figures(pictures) + note
