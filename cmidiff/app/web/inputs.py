"""What a visitor gives, as a problem that the command line could have been given: pictures within limits, and cases.

A case is something that is wrong with a picture in a visitor's words, or an experiment on a clean one; behind each is a
task of the command line and at most one number, its strength.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

from cmidiff.app.errors import BadInput
from cmidiff.app.problem import Problem, degraded, from_degraded_image, task_of
from cmidiff.images import Image as Picture
from cmidiff.images import read_image, resize, to_gray, write_image

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")  # those that Pillow decodes by itself
KEPT = 1024  # pixels of the longer side: what is kept of a photograph, and painted on
LEAST = 8  # pixels of the shorter side of what is restored
PAINTED = 0.1  # a pixel is lost if more than this fraction of it was painted over


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask of a server.

    Attributes:
        file_bytes, pixels: of an uploaded picture.
        side: longer side of a restored picture, in pixels.
        steps, samples: of the sampler.
        seconds: of a run; what is finished by then is shown.
        jobs: runs at a time; the others wait.
        waiting: visitors who may wait; more are asked to come back later.
    """

    file_bytes: int = 20 * 2**20
    pixels: int = 25_000_000
    side: int = 256
    steps: int = 200
    samples: int = 8
    seconds: float = 300.0
    jobs: int = 1
    waiting: int = 40


@dataclass(frozen=True)
class Strength:
    """The number of a case: what it is called, the task's parameter behind it, and its range."""

    label: str
    option: str
    low: float
    high: float
    value: float
    step: float


@dataclass(frozen=True)
class Case:
    """What is wrong with a picture, or what an experiment does to it.

    Attributes:
        label: in a visitor's words.
        task: of the command line; None where a mask or a kernel says it all.
        strength: its number, or None.
        noise_std: that is usual.
        hint: what the visitor has to do or to know.
    """

    label: str
    task: str | None
    strength: Strength | None = None
    noise_std: float = 0.02
    hint: str = ""


_FACTOR = Strength("Enlarge so many times", "factor", 2, 8, 4, 2)
_BLUR = Strength("Width of the blur (pixels of the result)", "std", 0.5, 5, 1, 0.1)
_SHAKE = Strength("Length of the shake (pixels)", "kernel_size", 3, 31, 11, 2)

DEGRADED: dict[str, Case] = {
    "scratches": Case("scratches or missing parts", None, hint="Paint over everything that is to be replaced."),
    "blurred": Case("blurred: out of focus", "deblur-gaussian", _BLUR, hint="If rings appear, lower the width."),
    "kernel": Case("blurred, and the blur is known", None, hint="What one point of light became, on black."),
    "small": Case(
        "too small: enlarge it", "super-resolution", _FACTOR, hint="A large photograph is first shrunk, then enlarged."
    ),
    "grainy": Case("grainy: noise", "denoise", noise_std=0.1, hint="The noise below says how much grain there is."),
    "grey": Case("black and white: colour it", "colorize"),
}
"""What can be wrong with a picture."""

EXPERIMENTS: dict[str, Case] = {
    "inpaint-random": Case(
        "hide random pixels",
        "inpaint-random",
        Strength("Fraction of the pixels to hide", "hidden", 0.1, 0.98, 0.8, 0.02),
        0.05,
    ),
    "inpaint-box": Case(
        "hide a box", "inpaint-box", Strength("Side of the box (fraction)", "size", 0.1, 0.8, 0.4, 0.05), 0.05
    ),
    "inpaint-scratches": Case(
        "scratch it",
        "inpaint-scratches",
        Strength("Fraction of the pixels to hide", "hidden", 0.01, 0.2, 0.04, 0.01),
        0.02,
    ),
    "super-resolution": Case("shrink it", "super-resolution", replace(_FACTOR, label="Shrink so many times"), 0.05),
    "deblur-gaussian": Case("blur it", "deblur-gaussian", replace(_BLUR, label="Width of the blur (pixels)"), 0.05),
    "deblur-motion": Case("shake the camera", "deblur-motion", _SHAKE, 0.05),
    "denoise": Case("add noise", "denoise", noise_std=0.15),
    "colorize": Case("take the colours away", "colorize", noise_std=0.02),
    "compressed-sensing": Case(
        "keep a few random projections",
        "compressed-sensing",
        Strength("Measurements for each pixel", "ratio", 0.05, 0.9, 0.25, 0.05),
        0.05,
    ),
    "hdr": Case(
        "overexpose it", "hdr", Strength("Contrast", "factor", 1.2, 4, 2, 0.2), 0.02, "Not linear: choose dps or dsg."
    ),
    "nonlinear-blur": Case("shake the camera, in light", "nonlinear-blur", _SHAKE, 0.05, "Not linear: dps or dsg."),
    "phase-retrieval": Case(
        "keep only Fourier magnitudes", "phase-retrieval", None, 0.05, "Not linear: choose dps or dsg. Rarely solved."
    ),
}
"""What can be done to a clean picture: every task of the command line."""

CASES: Mapping[str, Case] = DEGRADED | EXPERIMENTS


@dataclass(frozen=True)
class Photograph:
    """What is kept of an upload.

    Attributes:
        picture: its longer side is at most `KEPT`.
        side: longer side of the upload, in pixels.
    """

    picture: Picture
    side: int


def photograph(path: Path, limits: Limits) -> Photograph:
    """An uploaded picture.

    Raises:
        BadInput: too large, no picture, or a damaged one.
    """
    picture = checked(path, limits)
    side = max(picture.values.shape[1:])
    return Photograph(shrunk(picture, KEPT), side)


def checked(path: Path, limits: Limits) -> Picture:
    """A picture whose header was found to be within the limits before any pixel was decoded.

    Raises:
        BadInput: as `photograph`.
    """
    if (size := path.stat().st_size) > limits.file_bytes:
        most = f"{limits.file_bytes / 2**20:.3g} MB"
        raise BadInput(
            f"This file is too large: {size / 2**20:.3g} MB, and at most {most} can be taken. "
            "Shrink it or save it as JPEG, then give that file."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as header:
                width, height = header.size
    except Image.DecompressionBombError:  # Pillow does not say how many
        width = height = math.inf
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise BadInput("This file is no picture that can be read: give a PNG, JPEG, WebP or TIFF file.") from error
    if width * height > limits.pixels:
        found = f"{width} x {height}" if width < math.inf else "more than can be opened"
        raise BadInput(
            f"This picture has too many pixels: {found}, and at most {limits.pixels / 1e6:.3g} million can be taken. "
            "Shrink it, then give that file."
        )
    try:
        return read_image(path)
    except (BadInput, ValueError) as error:
        raise BadInput("This picture is damaged: save it again as PNG or JPEG, and try that file.") from error


def shrunk(picture: Picture, side: int, multiple: int = 1) -> Picture:
    """A picture whose longer side is at most ``side``, and whose sides are multiples; never enlarged.

    Raises:
        BadInput: nothing is left of the shorter side.
    """
    height, width = picture.values.shape[1:]
    scale = min(1.0, side / max(height, width))
    size = [max(1, round(n * scale) // multiple) * multiple for n in (width, height)]
    if min(size) < min(LEAST, height, width) or min(height, width) < 2:
        raise BadInput(f"This picture is too narrow: its shorter side would be {min(size)} pixels. Crop it.")
    return picture if size == [width, height] else resize(picture, (size[0], size[1]))


def painted(layers: Sequence[Path], limits: Limits) -> Picture | None:
    """What was painted, on all layers: 1 where there is paint. None if there is none."""
    alphas = [layer.alpha for layer in (checked(path, limits) for path in layers) if layer.alpha is not None]
    if not alphas or not any(bool((alpha > 0).any()) for alpha in alphas):
        return None
    return Picture(torch.stack(alphas).amax(0))


@dataclass(frozen=True)
class Ask:
    """What is to be restored, as the controls say it: a key of `CASES`, its strength, and the longer side in pixels."""

    case: str
    strength: float
    noise_std: float
    side: int
    seed: int = 0


def problem_of(
    ask: Ask, given: Photograph, paint: Picture | None, blur: Picture | None, folder: Path
) -> tuple[Problem, Tensor | None]:
    """The measurement, and the clean picture where it is known.

    Args:
        paint: 1 where the picture is to be replaced.
        blur: the kernel, in pixels of the upload.
        folder: where the mask or the kernel is written.

    Raises:
        BadInput: what is missing, or what does not go together.
    """
    case = CASES[ask.case]
    options = _options(case, ask, given.picture)
    if ask.case in EXPERIMENTS:
        picture = shrunk(given.picture, ask.side, int(options["factor"]) if case.task == "super-resolution" else 1)
        channels, height, width = picture.values.shape
        if ask.case == "inpaint-box":
            options["size"] = max(1, round(options["size"] * min(height, width)))
        task = task_of(
            case.task, options | {"noise_std": ask.noise_std}, None, None, (channels, height, width), ask.seed
        )
        return degraded(picture, task, ask.seed), picture.values
    side = ask.side // int(options["factor"]) if case.task == "super-resolution" else ask.side
    picture = shrunk(given.picture, side)
    mask = _mask(paint, picture) if ask.case == "scratches" else None
    scale = max(picture.values.shape[1:]) / given.side
    kernel = _kernel(blur, scale, folder) if ask.case == "kernel" else None
    return from_degraded_image(picture, case.task, options, ask.noise_std, mask, kernel), None


def _options(case: Case, ask: Ask, picture: Picture) -> dict[str, Any]:
    """The task's parameters."""
    if case.strength is None:
        return {}
    option, value = case.strength.option, ask.strength
    if option == "kernel_size":
        return {"kernel_size": 2 * (int(value) // 2) + 1}
    if option == "std":
        height, width = picture.values.shape[1:]
        narrow = min(height, width) * min(1.0, ask.side / max(height, width))
        return {"std": value, "kernel_size": 2 * min(math.ceil(3 * value), (int(narrow) - 1) // 2) + 1}
    whole = option == "factor" and case.task == "super-resolution"
    return {option: int(value) if whole else value}


def _mask(paint: Picture | None, picture: Picture) -> Tensor:
    if paint is None:
        raise BadInput("Nothing is painted yet: paint over the scratches or the missing parts of the picture.")
    height, width = picture.values.shape[1:]
    lost = (resize(paint, (width, height)).values > PAINTED).to(torch.float32)
    if bool(lost.all()):
        raise BadInput("Everything is painted over: leave something of the picture to be seen.")
    return (1 - lost)[None]


def _kernel(blur: Picture | None, scale: float, folder: Path) -> Path:
    """The kernel, shrunk as the photograph was."""
    if blur is None:
        raise BadInput("The picture of the blur is missing: give one that shows what a point of light became.")
    values = to_gray(blur.values)
    size = [max(1, round(n * scale)) for n in values.shape[1:]]
    if size != list(values.shape[1:]):
        values = interpolate(values[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]
    if not bool(values.max() > 0):
        raise BadInput("The picture of the blur is black everywhere: it must show a point of light.")
    write_image(folder / "kernel.png", values / values.max())
    return folder / "kernel.png"
