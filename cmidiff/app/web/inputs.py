"""What a person gives to the page: images within limits, and the problem that they and the controls describe."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PIL
from PIL import UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

from cmidiff.app.masks import PAINTED, find_damage
from cmidiff.app.photograph import Degradation, make_problem
from cmidiff.app.problem import Problem, degrade, shape_of
from cmidiff.app.repair import WHOLE, Region, fit_mask, put_back
from cmidiff.app.web.controls import CASES, EXPERIMENTS, LEAST, Ask, Limits
from cmidiff.images import TURNED, Image, read_image, resize, to_gray

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")  # those that Pillow decodes by itself
ADDED = 0.05  # the noise that an experiment adds
DOUBTFUL = 0.6  # a mask that hides more than this is probably inverted


def size_of(path: Path, limits: Limits) -> tuple[int, int]:
    """Return (height, width) of an uploaded image, without decoding it."""
    if not path.is_file():
        raise ValueError("This file is no longer on the server: give it again.")
    if (size := path.stat().st_size) > limits.file_bytes:
        raise ValueError(
            f"This file is too large: {size / 2**20:.3g} MB, and at most {limits.file_bytes / 2**20:.3g} MB can be "
            "taken. Shrink it or save it as JPEG, then give that file."
        )
    turned = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PIL.DecompressionBombWarning)
            with PIL.open(path, formats=FORMATS) as header:
                width, height = header.size
                known = header.format != "PNG" or "exif" in header.info  # else a PNG file would be decoded
                turned = known and header.getexif().get(0x0112) in TURNED
    except PIL.DecompressionBombError:  # Pillow does not say how many
        width = height = math.inf
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise ValueError("This file is not an image that can be read: give a PNG, JPEG, WebP or TIFF file.") from error
    if width * height > limits.pixels:
        found = f"{width} x {height}" if width < math.inf else "more than can be opened"
        raise ValueError(
            f"This image has too many pixels: {found}, and at most {limits.pixels / 1e6:.3g} million can be taken. "
            "Shrink it, then give that file."
        )
    return (int(width), int(height)) if turned else (int(height), int(width))


def read_upload(path: Path, limits: Limits) -> Image:
    """Read an uploaded image whose header is within the limits."""
    height, width = size_of(path, limits)
    if min(height, width) < 2 or max(height, width) > 100 * min(height, width):
        raise ValueError(f"This image is too narrow: {width} x {height} pixels. Crop it.")
    try:
        return read_image(path)
    except ValueError as error:
        raise ValueError("This image is damaged: save it again as PNG or JPEG, and try that file.") from error


def scale_size(size: tuple[int, int], side: int, multiple: int = 1) -> tuple[int, int]:
    """Return (height, width) with a longer side of at most ``side``, in multiples; never enlarged."""
    scale = min(1.0, side / max(size))
    height, width = (max(1, round(n * scale) // multiple) * multiple for n in size)
    if min(height, width) < min(LEAST, *size):
        raise ValueError(f"This image is too narrow: its shorter side would be {min(height, width)} pixels. Crop it.")
    return height, width


def shrink(image: Image, side: int, multiple: int = 1) -> Image:
    """Return an image whose longer side is at most ``side``."""
    height, width = scale_size((image.values.shape[1], image.values.shape[2]), side, multiple)
    return image if (height, width) == tuple(image.values.shape[1:]) else resize(image, (width, height))


def result_size(ask: Ask, size: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of the result of a photograph of this size."""
    if (ask.case == "scratches" and not ask.whole) or ask.case == "blocks":
        return size
    height, width = scale_size(size, ask.side // ask.enlarge, ask.multiple)
    return height * ask.enlarge, width * ask.enlarge


def read_paint(layers: Sequence[Path], limits: Limits) -> Tensor | None:
    """Return what was painted on all layers, (1, h, w) in [0, 1]; None where nothing is."""
    alphas = [layer.alpha for layer in (read_upload(path, limits) for path in layers) if layer.alpha is not None]
    if not alphas or not any(bool((alpha > 0).any()) for alpha in alphas):
        return None
    return torch.stack(alphas).amax(0)


def read_mask(path: Path, photo: Path, limits: Limits) -> Tensor:
    """Return the mask of a file, (1, h, w), 1 where it marks damage; see `cmidiff.app.masks.find_damage`."""
    mask, image = read_upload(path, limits), read_upload(photo, limits)
    height, width = mask.values.shape[1:]
    return torch.from_numpy(find_damage(mask, resize(image, (width, height)))).float()[None]


@dataclass(frozen=True)
class Work:
    """What a run restores.

    Attributes:
        problem: the measurement.
        photo: the file of the photograph.
        truth: the clean image (C, H, W) of an experiment, or None.
        finish: puts the restored region (C, h, w) of a repair back into the photograph; else None.
        notes: what was assumed or found, for the person to read.
    """

    problem: Problem
    photo: Path
    truth: Tensor | None = None
    finish: Callable[[Tensor], Image] | None = None
    notes: tuple[str, ...] = ()


def work_of(ask: Ask, path: Path, limits: Limits, mask: Tensor | None = None, kernel: Path | None = None) -> Work:
    """Return the problem that a photograph and the controls describe.

    Args:
        mask: of damaged pixels, (1, h, w) in [0, 1], or None.
        kernel: an image of the blur, in pixels of the photograph, or None.
    """
    image = read_upload(path, limits)
    if ask.case == "scratches":
        return _repair(ask, path, image, mask, limits)
    if ask.case == "blocks":
        return _restore_compressed(ask, path, image, limits)
    small = shrink(image, ask.side // ask.enlarge, ask.multiple)
    known = Degradation(CASES[ask.case].task, _parameters(ask, small), ask.noise_std)
    if ask.case in EXPERIMENTS:
        noise_std = ADDED if ask.noise_std is None else ask.noise_std
        known = Degradation(known.task, known.parameters, noise_std)
        task = known.make_task(shape_of(small.values), ask.seed)
        return Work(degrade(small, task, ask.seed), path, truth=small.values)
    if ask.case == "blurred" and kernel is not None:
        scale = small.values.shape[2] / image.values.shape[2]
        known = Degradation(noise_std=ask.noise_std, kernel=_read_kernel(kernel, limits, min(1.0, scale), small))
    problem = make_problem(small, known)
    return Work(problem, path, notes=problem.assumed)


def _restore_compressed(ask: Ask, path: Path, image: Image, limits: Limits) -> Work:
    """A JPEG at its own resolution: the artefacts have the grid of its pixels."""
    if max(image.values.shape[1:]) > limits.side:
        raise ValueError(
            f"This photograph is too large for the repair of JPEG artefacts: {image.size} pixels, and at most "
            f"{limits.side} on a side can be computed. Crop it, or choose Remove noise."
        )
    try:
        problem = make_problem(image, Degradation(CASES[ask.case].task, {}, ask.noise_std, source=path))
    except ValueError as error:
        raise ValueError("This photograph shows no sign of JPEG compression: choose Remove noise.") from error
    return Work(problem, path, notes=tuple(words.removeprefix("task ") for words in problem.assumed))


def _repair(ask: Ask, path: Path, image: Image, mask: Tensor | None, limits: Limits) -> Work:
    """The painted pixels and their surroundings, at a lower resolution if they are large."""
    if mask is None:
        raise ValueError(
            "Nothing is painted yet: paint over the scratches, beginning each stroke inside the photograph, or give a "
            "mask."
        )
    painted = fit_mask(mask, (image.values.shape[1], image.values.shape[2]))
    region = WHOLE if ask.whole else Region.around(painted)
    crop = Image(region.crop(image.values), image.alpha if ask.whole else None, image.bits)
    small = shrink(crop, ask.side)
    hidden = interpolate(region.crop(painted)[None].float(), size=small.values.shape[1:], mode="area")[0] > PAINTED
    if bool(hidden.all()):
        raise ValueError("Everything is painted over: leave something of the photograph to be seen.")
    problem = make_problem(small, Degradation(noise_std=ask.noise_std, seen=1 - hidden[None].float()))
    notes = problem.assumed
    if (share := float(painted.float().mean())) > DOUBTFUL:
        notes += (f"the mask hides {share:.0%} of the photograph: white means damaged, so it may be inverted",)
    if small is not crop and not ask.whole:
        scale = crop.values.shape[2] / small.values.shape[2]
        notes += (f"the painted parts were computed at 1/{scale:.1f} of the resolution: choose a larger size",)

    def finish(restored: Tensor) -> Image:
        return put_back(read_upload(path, limits), restored, painted, region)  # read again: a waiting job keeps little

    return Work(problem, path, finish=None if ask.whole else finish, notes=notes)


def _parameters(ask: Ask, image: Image) -> dict[str, Any]:
    """The parameters of the task."""
    strength, value, shorter = CASES[ask.case].strength, ask.strength, min(image.values.shape[1:])
    if strength is None or (strength.option == "std" and value == 0):
        return {}
    if strength.option == "kernel_size":
        return {"kernel_size": 2 * (min(int(value), shorter - 1) // 2) + 1}
    if strength.option == "std":
        return {"std": value, "kernel_size": 2 * min(math.ceil(3 * value), (shorter - 1) // 2) + 1}
    if strength.option == "size":
        return {"size": max(1, round(value * shorter))}
    return {strength.option: int(value) if strength.option == "factor" and ask.case != "hdr" else value}


def _read_kernel(path: Path, limits: Limits, scale: float, image: Image) -> Tensor:
    """The kernel, (h, w) with sum 1, shrunk as the photograph was."""
    values = to_gray(read_upload(path, limits).values)
    height, width = (max(1, round(n * scale)) for n in values.shape[1:])
    if height > image.values.shape[1] or width > image.values.shape[2]:
        raise ValueError("The image of the blur is larger than the photograph: crop it to the blurred point of light.")
    if scale < 1:
        values = interpolate(values[None], size=(height, width), mode="bilinear", antialias=True)[0]
    if not bool(values.max() > 0):
        raise ValueError("The image of the blur is black everywhere: it must show a point of light.")
    return values[0] / values.sum()
