"""What a person gives to the page: images within limits, the values of the controls, and the problem they describe.

A case is a wish in everyday words, or an experiment on a clean image. Behind each is a task of the command line.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PIL
from PIL import UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

from cmidiff.app.errors import BadInput
from cmidiff.app.findings import find_noise
from cmidiff.app.masks import PAINTED, find_damage
from cmidiff.app.problem import JPEG, Problem, degraded, from_degraded_image, task_of
from cmidiff.app.repair import fit_mask, put_back, region_of, repair_problem, whole
from cmidiff.images import Image, read_image, resize, to_gray, write_image
from cmidiff.physics import TASKS
from cmidiff.registry import SOLVERS

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")  # those that Pillow decodes by itself
CANVAS = 1024  # longer side of what is painted on, in pixels
LEAST = 8  # shorter side of what is restored, in pixels
ADDED = 0.05  # the noise that an experiment adds
DOUBTFUL = 0.6  # a mask that hides more than this is probably inverted
TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


@dataclass(frozen=True)
class Limits:
    """What one person may ask of a server.

    Attributes:
        file_bytes, pixels: of an uploaded image.
        side: longer side of what is computed, in pixels.
        steps, samples: of the sampler.
        seconds: of a run; the samples that are finished by then are shown.
        jobs: runs at a time; the others wait.
        waiting: runs that may wait.
        away: seconds after which a run stops if no browser asks for it.
    """

    file_bytes: int = 20 * 2**20
    pixels: int = 25_000_000
    side: int = 1024
    steps: int = 200
    samples: int = 8
    seconds: float = 300.0
    jobs: int = 1
    waiting: int = 40
    away: float = 60.0


@dataclass(frozen=True)
class Strength:
    """The number of a case: its name, the parameter of the task, and its range."""

    label: str
    option: str
    low: float
    high: float
    value: float
    step: float


@dataclass(frozen=True)
class Case:
    """A wish, or an experiment.

    Attributes:
        label: in everyday words.
        task: of the command line; None for a painted mask.
        strength: its number, or None.
        hint: what the person has to do or to know.
    """

    label: str
    task: str | None
    strength: Strength | None = None
    hint: str = ""


_SHAKE = Strength("Length of the shake (pixels)", "kernel_size", 3, 31, 11, 2)

WISHES: dict[str, Case] = {
    "scratches": Case(
        "Remove scratches",
        None,
        hint="Paint over everything that is to be replaced, and begin each stroke inside the photograph. Only the "
        "painted pixels change.",
    ),
    "small": Case("Enlarge", "super-resolution", Strength("Enlarge so many times", "factor", 2, 8, 4, 2)),
    "blurred": Case(
        "Sharpen",
        "deblur-gaussian",
        Strength("Width of the blur (pixels of the result)", "std", 0.5, 5, 1, 0.1),
        hint="If rings appear, lower the width.",
    ),
    "grainy": Case("Remove noise", "denoise"),
    "blocks": Case("Repair JPEG", JPEG, hint="Give the JPEG file itself: it says how strongly it was compressed."),
    "grey": Case("Add colour", "colorize"),
}
"""What a person wants of a photograph."""

_EXPERIMENTS = {
    "inpaint-random": Strength("Fraction to hide", "hidden", 0.1, 0.98, 0.8, 0.02),
    "inpaint-box": Strength("Side of the box (fraction)", "size", 0.1, 0.8, 0.4, 0.05),
    "super-resolution": Strength("Shrink so many times", "factor", 2, 8, 4, 2),
    "deblur-gaussian": Strength("Width of the blur (pixels)", "std", 0.5, 5, 1, 0.1),
    "deblur-motion": _SHAKE,
    "compressed-sensing": Strength("Measurements for each pixel", "ratio", 0.05, 0.9, 0.25, 0.05),
    "hdr": Strength("Contrast", "factor", 1.2, 4, 2, 0.2),
    "nonlinear-blur": _SHAKE,
}
EXPERIMENTS = {name: Case(name.replace("-", " "), name, _EXPERIMENTS.get(name)) for name in TASKS}
"""How a clean image can be degraded: every task of the command line."""

EXPERIMENT = "experiment"  # instead of a wish
CASES: Mapping[str, Case] = WISHES | EXPERIMENTS


# the values of the controls


class BadValue(BadInput):
    """A value that no control of the page sends."""


def number(name: str, value: Any, low: float, high: float, *, whole: bool = False) -> float:
    """Return a number of a control.

    Raises:
        BadValue: not a number, not a whole one, or out of its range.
    """
    fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    if not fits or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise BadValue(f"{name} must be {kind} from {low:g} to {high:g}, received {_seen(value)}")
    return int(value) if whole else float(value)


def typed(text: Any) -> Any:
    """Return the number that was typed, None where nothing was, and anything else as it is."""
    if not isinstance(text, str):
        return text
    try:
        return float(text) if text.strip() else None
    except ValueError:
        return text


def choice(name: str, value: Any, names: Collection[str]) -> str:
    """Return one of several names.

    Raises:
        BadValue: another value.
    """
    if not isinstance(value, str) or value not in names:
        raise BadValue(f"{name} must be one of {', '.join(names)}, received {_seen(value)}")
    return value


def file_of(name: str, value: Any) -> Path | None:
    """Return the path of an uploaded file, or None where there is none.

    Raises:
        BadValue: something else.
    """
    path = value.get("path") if isinstance(value, dict) else value
    if path is not None and (value is path or not isinstance(path, str)):
        raise BadValue(f"{name} must be an uploaded file, received {_seen(value)}")
    return None if path is None else Path(path)


def _seen(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:40]


@dataclass(frozen=True)
class Ask:
    """What is to be restored, and how.

    Attributes:
        case: key of `CASES`.
        strength: of the case; 0 where it has none.
        noise_std: in units of a [0, 1] image; None to estimate it.
        side: longer side of what is computed, in pixels.
        whole: for a repair: whether the pixels outside of the paint are denoised, too.
        solver: of the result.
        steps: of the solver; None for its default.
    """

    case: str
    strength: float = 0.0
    noise_std: float | None = None
    side: int = 128
    whole: bool = False
    solver: str = "dpir"
    steps: int | None = None
    seed: int = 0

    @classmethod
    def read(cls, values: Mapping[str, Any], limits: Limits) -> Ask:
        """Check the values of the controls.

        Raises:
            BadValue: one that cannot be used; the message names it.
        """
        wished = choice("case", values["case"], [*WISHES, EXPERIMENT])
        case = choice("experiment", values["experiment"], EXPERIMENTS) if wished == EXPERIMENT else wished
        scale, noise, steps = CASES[case].strength, typed(values["noise"]), typed(values["steps"])
        return cls(
            case,
            0.0 if scale is None else number("strength", values["strength"], scale.low, scale.high),
            None if noise is None else number("noise", noise, 0, 1),
            int(number("side", values["side"], LEAST, limits.side, whole=True)),
            choice("whole", str(values["whole"]), ("True", "False")) == "True",
            choice("solver", values["solver"], SOLVERS),
            None if steps is None else int(number("steps", steps, 2, limits.steps, whole=True)),
            int(number("seed", values["seed"], 0, 2**31 - 1, whole=True)),
        )


# images


def size_of(path: Path, limits: Limits) -> tuple[int, int]:
    """Return (height, width) of an uploaded image, without decoding it.

    Raises:
        BadInput: too large, or not an image.
    """
    if not path.is_file():
        raise BadInput("This file is no longer on the server: give it again.")
    if (size := path.stat().st_size) > limits.file_bytes:
        raise BadInput(
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
        raise BadInput("This file is not an image that can be read: give a PNG, JPEG, WebP or TIFF file.") from error
    if width * height > limits.pixels:
        found = f"{width} x {height}" if width < math.inf else "more than can be opened"
        raise BadInput(
            f"This image has too many pixels: {found}, and at most {limits.pixels / 1e6:.3g} million can be taken. "
            "Shrink it, then give that file."
        )
    return (int(width), int(height)) if turned else (int(height), int(width))


def read_upload(path: Path, limits: Limits) -> Image:
    """Read an uploaded image whose header is within the limits.

    Raises:
        BadInput: too large, not an image, a damaged one, or one that is too narrow.
    """
    height, width = size_of(path, limits)
    if min(height, width) < 2 or max(height, width) > 100 * min(height, width):
        raise BadInput(f"This image is too narrow: {width} x {height} pixels. Crop it.")
    try:
        return read_image(path)
    except (BadInput, ValueError) as error:
        raise BadInput("This image is damaged: save it again as PNG or JPEG, and try that file.") from error


def scaled(size: tuple[int, int], side: int, multiple: int = 1) -> tuple[int, int]:
    """Return (height, width) with a longer side of at most ``side``, in multiples; never enlarged.

    Raises:
        BadInput: nothing is left of the shorter side.
    """
    scale = min(1.0, side / max(size))
    height, width = (max(1, round(n * scale) // multiple) * multiple for n in size)
    if min(height, width) < min(LEAST, *size):
        raise BadInput(f"This image is too narrow: its shorter side would be {min(height, width)} pixels. Crop it.")
    return height, width


def shrink(image: Image, side: int, multiple: int = 1) -> Image:
    """Return an image whose longer side is at most ``side``."""
    height, width = scaled((image.values.shape[1], image.values.shape[2]), side, multiple)
    return image if (height, width) == tuple(image.values.shape[1:]) else resize(image, (width, height))


def result_size(ask: Ask, size: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of the result of a photograph of this size."""
    if (ask.case == "scratches" and not ask.whole) or ask.case == "blocks":
        return size
    factor = int(ask.strength) if ask.case == "small" else 1
    height, width = scaled(size, ask.side // factor, int(ask.strength) if ask.case == "super-resolution" else 1)
    return height * factor, width * factor


def read_paint(layers: Sequence[Path], limits: Limits) -> Tensor | None:
    """Return what was painted on all layers, (1, h, w) in [0, 1]; None where nothing is."""
    alphas = [layer.alpha for layer in (read_upload(path, limits) for path in layers) if layer.alpha is not None]
    if not alphas or not any(bool((alpha > 0).any()) for alpha in alphas):
        return None
    return torch.stack(alphas).amax(0)


def read_mask(path: Path, photo: Path, limits: Limits) -> Tensor:
    """Return the mask of a file, (1, h, w), 1 where it marks damage.

    Args:
        path: white or coloured paint on black, on a transparent layer, or on a copy of the photograph.
        photo: the photograph, at any resolution.
        limits: of both files.
    """
    mask, image = read_upload(path, limits), read_upload(photo, limits)
    height, width = mask.values.shape[1:]
    return torch.from_numpy(find_damage(mask, resize(image, (width, height)))).float()[None]


# the problem


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


def work_of(ask: Ask, path: Path, limits: Limits, mask: Tensor | None, kernel: Path | None, folder: Path) -> Work:
    """Return the problem that a photograph and the controls describe.

    Args:
        ask: the controls.
        path: the photograph.
        limits: of what is read.
        mask: of damaged pixels, (1, h, w) in [0, 1], or None.
        kernel: an image of the blur, in pixels of the photograph, or None.
        folder: where the kernel is written.

    Raises:
        BadInput: something is missing, or does not go together.
    """
    case, image = CASES[ask.case], read_upload(path, limits)
    if ask.case in EXPERIMENTS:
        return _experiment(ask, path, image)
    if ask.case == "scratches":
        return _repair(ask, path, image, mask, limits)
    if ask.case == "blocks":
        return _compressed(ask, path, image, limits)
    factor = int(ask.strength) if ask.case == "small" else 1
    scale = min(1.0, ask.side // factor / max(image.values.shape[1:]))
    image = shrink(image, ask.side // factor)
    noise_std, notes = _noise(ask, image)
    given = None if ask.case != "blurred" or kernel is None else _kernel(kernel, limits, scale, image, folder)
    options = {} if given else _options(case, ask, image)
    problem = from_degraded_image(image, None if given else case.task, options, noise_std, None, given)
    return Work(problem, path, notes=notes)


def _compressed(ask: Ask, path: Path, image: Image, limits: Limits) -> Work:
    """A JPEG at its own resolution: the artefacts have the grid of its pixels."""
    if max(image.values.shape[1:]) > limits.side:
        raise BadInput(
            f"This photograph is too large for the repair of JPEG artefacts: {image.size} pixels, and at most "
            f"{limits.side} on a side can be computed. Crop it, or choose Remove noise."
        )
    try:
        problem = from_degraded_image(image, JPEG, {}, ask.noise_std, None, None, source=path)
    except BadInput as error:
        raise BadInput("This photograph shows no sign of JPEG compression: choose Remove noise.") from error
    return Work(problem, path, notes=tuple(words.removeprefix("task ") for words in problem.assumed))


def _experiment(ask: Ask, path: Path, image: Image) -> Work:
    image = shrink(image, ask.side, int(ask.strength) if ask.case == "super-resolution" else 1)
    channels, height, width = image.values.shape
    options = _options(CASES[ask.case], ask, image)
    noise_std = ADDED if ask.noise_std is None else ask.noise_std
    task = task_of(ask.case, options | {"noise_std": noise_std}, None, None, (channels, height, width), ask.seed)
    return Work(degraded(image, task, ask.seed), path, truth=image.values)


def _repair(ask: Ask, path: Path, image: Image, mask: Tensor | None, limits: Limits) -> Work:
    if mask is None:
        raise BadInput(
            "Nothing is painted yet: paint over the scratches, beginning each stroke inside the photograph, or give a "
            "mask."
        )
    painted = fit_mask(mask, (image.values.shape[1], image.values.shape[2]))
    region = whole(painted) if ask.whole else region_of(painted)
    crop = Image(region.crop(image.values), image.alpha if ask.whole else None, image.bits)
    small = shrink(crop, ask.side)
    hidden = interpolate(region.crop(painted)[None].float(), size=small.values.shape[1:], mode="area")[0] > PAINTED
    noise_std, notes = _noise(ask, small, 1 - hidden.float())
    problem = repair_problem(small, region.crop(painted), noise_std)
    if (share := float(painted.float().mean())) > DOUBTFUL:
        notes += (f"the mask hides {share:.0%} of the photograph: white means damaged, so it may be inverted",)
    if small is not crop and not ask.whole:
        scale = crop.values.shape[2] / small.values.shape[2]
        notes += (f"the painted parts were computed at 1/{scale:.1f} of the resolution: choose a larger size",)

    def finish(restored: Tensor) -> Image:
        return put_back(read_upload(path, limits), restored, painted, region)  # read again: a waiting job keeps little

    return Work(problem, path, finish=None if ask.whole else finish, notes=notes)


def _noise(ask: Ask, image: Image, seen: Tensor | None = None) -> tuple[float, tuple[str, ...]]:
    """The noise that is stated, or else estimated."""
    if ask.noise_std is not None:
        return ask.noise_std, ()
    noise_std, words = find_noise(image.values, seen)
    return noise_std, (words,)


def _options(case: Case, ask: Ask, image: Image) -> dict[str, Any]:
    """The parameters of the task."""
    if case.strength is None:
        return {}
    option, value, shorter = case.strength.option, ask.strength, min(image.values.shape[1:])
    if option == "kernel_size":
        return {"kernel_size": 2 * (min(int(value), shorter - 1) // 2) + 1}
    if option == "std":
        return {"std": value, "kernel_size": 2 * min(math.ceil(3 * value), (shorter - 1) // 2) + 1}
    if option == "size":
        return {"size": max(1, round(value * shorter))}
    return {option: int(value) if option == "factor" and ask.case != "hdr" else value}


def _kernel(path: Path, limits: Limits, scale: float, image: Image, folder: Path) -> Path:
    """The kernel, shrunk as the photograph was."""
    values = to_gray(read_upload(path, limits).values)
    height, width = (max(1, round(n * scale)) for n in values.shape[1:])
    if height > image.values.shape[1] or width > image.values.shape[2]:
        raise BadInput("The image of the blur is larger than the photograph: crop it to the blurred point of light.")
    if scale < 1:
        values = interpolate(values[None], size=(height, width), mode="bilinear", antialias=True)[0]
    if not bool(values.max() > 0):
        raise BadInput("The image of the blur is black everywhere: it must show a point of light.")
    write_image(folder / "kernel.png", values / values.max())
    return folder / "kernel.png"
