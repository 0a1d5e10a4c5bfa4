"""What is to be restored: a measurement, the physics that explains it, and the file that holds both.

A measurement file is one safetensors file. Its tensors are the measurement ``y`` (float32), the mask, kernel or signs
that were drawn or given, and the transparency to put back. Its metadata name the task, its parameters and the shape of
the image behind ``y``: the physics is built from what is stored, never drawn again.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from deepinv.physics import LinearPhysics, Physics
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cmidiff import files
from cmidiff.app.errors import BadInput, unknown
from cmidiff.app.findings import doubt_width, find_compression, find_noise, find_width
from cmidiff.app.masks import read_kernel
from cmidiff.app.unpainted import keep_unpainted
from cmidiff.images import Image, Range, read_image, to_gray
from cmidiff.physics import (
    TASKS,
    Tables,
    Task,
    ValidBlur,
    canvas_shape,
    gaussian_kernel,
    jpeg_noise_std,
    jpeg_quality,
    measure,
    parse_kernel,
)

FORMAT = 1
KEY = "cmidiff"
AUTO = "gaussian:auto"  # the kernel of a Gaussian blur whose width is found in the image
JPEG = "jpeg"  # the task of a compressed photograph: what is lost is no noise, so no physics describes it


@dataclass(frozen=True)
class Problem:
    """One measurement and all that is known about it.

    Attributes:
        y: measurement, shape (1, ...), in units of a [0, 1] image.
        physics: the forward operator with its noise.
        task: how the physics is built.
        shape: (C, H, W) of the image behind ``y``.
        alpha: transparency (1, h, w) to put back, or None.
        notes: what was converted, for the user to read.
        bits: depth of the image file behind it, 8 or 16, and of the files to write.
        original: the degraded image as it was given, (C, h, w), with what a mask hides; None for a measurement file.
        keeps: whether results keep the pixels of ``original`` that no mask hides.
        tables: how a JPEG was compressed, for the task ``jpeg``; its ``physics`` is that of noise of the same strength.
        assumed: what was found out or assumed because the user did not state it, in words.
    """

    y: Tensor
    physics: Physics
    task: Task
    shape: tuple[int, int, int]
    alpha: Tensor | None = None
    notes: tuple[str, ...] = ()
    bits: int = 8
    original: Tensor | None = None
    keeps: bool = False
    tables: Tables | None = None
    assumed: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the task."""
        return self.task.name if self.tables is None else JPEG

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise, in units of a [0, 1] image; with photons, that of a middle grey."""
        if self.photons:
            return math.sqrt(0.5 * float(self.task.parameters["poisson"]))
        return float(self.task.parameters["noise_std"])

    @property
    def photons(self) -> bool:
        """Whether the noise is that of photons, as the physics says."""
        return "poisson" in self.task.parameters

    @property
    def seen(self) -> Tensor | None:
        """The mask that the user gave, (1, 1, h, w), 1 where a pixel was measured; None without one."""
        return self.task.tensors["mask"] if self.task.name == "mask" else None

    @property
    def framed(self) -> bool:
        """Whether the photograph shows a part of what is restored: its surroundings were blurred into it."""
        return self.original is not None and isinstance(self.physics, ValidBlur)

    @property
    def result_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the results."""
        return _shape(self.y[0]) if self.framed else self.shape

    def view(self) -> Tensor:
        """The measurement as an image (1 | 3, h, w).

        It is itself where it has the shape of one; else its back-projection, stretched to [0, 1].
        """
        if self.y.ndim == 4 and self.y.shape[1] in (1, 3):
            return self.y[0]
        assert isinstance(self.physics, LinearPhysics), "what is measured of a non-linear task is an image"
        back = self.physics.A_adjoint(self.y)[0]
        low, high = back.min(), back.max()
        return (back - low) / (high - low).clamp_min(1e-12)

    def finish(self, x: Tensor) -> Tensor:
        """Return a restoration (C, H, W) as the person sees it: without what lies beyond the photograph, and with the
        pixels that belong to the person."""
        if self.framed:
            assert isinstance(self.physics, ValidBlur), "the frame is that of a blur"
            return self.physics.crop(x)
        if not self.keeps:
            return x
        assert self.original is not None, "only a photograph has such pixels"
        assert self.seen is not None, "a mask says which they are"
        return keep_unpainted(x, self.original.to(x), self.seen[0])

    def describe(self) -> dict[str, Any]:
        """The physics and the noise, for the record of a run."""
        record = {"task": self.name, "parameters": dict(self.task.parameters), "shape": list(self.shape)}
        if self.tables is not None:
            record["quality"] = jpeg_quality(self.tables)
        return record | ({"keeps": "unpainted pixels"} if self.keeps else {})

    def digest(self) -> str:
        """A hash of the measurement and of what its physics was built from."""
        parts = [self.y, *(tensor for _, tensor in sorted(self.task.tensors.items()))]
        return hashlib.sha256(b"".join(t.cpu().contiguous().numpy().tobytes() for t in parts)).hexdigest()[:16]


def check_noise_std(noise_std: float) -> float:
    """``noise_std`` if it is usable.

    Raises:
        BadInput: negative or not finite.
    """
    if not (math.isfinite(noise_std) and noise_std >= 0):
        raise BadInput(
            f"--noise-std must be a number >= 0 (0.05 is visible grain, black to white is 1), received {noise_std:g}"
        )
    return noise_std


def task_of(
    name: str | None,
    options: Mapping[str, Any],
    seen: Tensor | None,
    kernel: Path | Tensor | None,
    shape: tuple[int, int, int],
    seed: int = 0,
) -> Task:
    """The task that the options of the command line describe, for images of ``shape``, with all that it draws drawn.

    Args:
        seen: the mask, (1, 1, H, W), 1 where a pixel was measured.

    Raises:
        BadInput: no task or an unknown one, options that do not belong to it, an unusable mask or kernel.
    """
    if name == JPEG:
        raise BadInput("jpeg is a task of cmidiff restore: to degrade an image so, save it as JPEG")
    if name is not None and name not in TASKS:
        raise unknown("task", name, (*TASKS, JPEG))
    if seen is not None and kernel is not None:
        raise BadInput("--mask or --seen and --kernel exclude each other: an image is either partly hidden or blurred")
    try:
        if seen is not None:
            _fits(name, "inpaint", "--mask or --seen")
            return Task("mask", dict(options), {"mask": seen})
        if kernel is not None:
            _fits(name, "deblur", "--kernel")
            made = kernel if isinstance(kernel, Tensor) else _kernel_of(kernel, shape)
            return Task("kernel", dict(options), {"kernel": made})
        if name is None:
            raise BadInput(
                f"how was the image degraded? give --task with one of {', '.join(TASKS)}, or --mask or --kernel FILE"
            )
        drawn = {"seed": seed} if "seed" in signature(TASKS[name]).parameters else {}
        return Task.draw(name, shape, drawn | dict(options))
    except (ValueError, TypeError) as error:
        raise BadInput(str(error)) from error


def _kernel_of(kernel: Path, shape: tuple[int, int, int]) -> Tensor:
    """The kernel in an image file, or of a specification as ``gaussian:1.5``, (h, w) with sum 1."""
    if str(kernel) == AUTO:
        raise BadInput(f"--kernel {AUTO} finds the blur of a photograph: state a width here, as gaussian:1.5")
    if ":" in str(kernel) and not kernel.exists():
        return parse_kernel(str(kernel))
    return read_kernel(kernel, *shape[1:])


def _fits(name: str | None, kind: str, option: str) -> None:
    if name is not None and not name.startswith(kind):
        raise BadInput(f"{option} is for {kind}ing, not for --task {name}: leave one of them out")


def built(task: Task, shape: tuple[int, int, int]) -> Physics:
    """The physics of a task.

    Raises:
        BadInput: it does not go with images of this shape.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return task.build(shape)
    except (ValueError, TypeError) as error:
        raise BadInput(str(error)) from error


def degraded(image: Image, task: Task, seed: int) -> Problem:
    """The measurement of a clean image under a task, with noise drawn from ``seed``."""
    shape = _shape(image.values)
    physics = built(task, shape)
    y = measure(image.values[None], physics, seed=seed)
    return Problem(y, physics, task, shape, image.alpha, image.notes, image.bits)


def from_degraded_image(
    image: Image,
    name: str | None,
    options: Mapping[str, Any],
    noise_std: float | None,
    seen: Tensor | None,
    kernel: Path | None,
    *,
    source: Path | None = None,
    keep: bool = False,
) -> Problem:
    """The measurement that an ordinary degraded image is, under the task that degraded it.

    Args:
        name: the task; None: by the mask or the kernel, or else found out from the image.
        noise_std: None: found out from the image.
        source: the file of the image, which says how it was compressed.
        keep: whether results keep the pixels that the mask does not hide.

    Raises:
        BadInput: a task that an image and these options do not pin down.
    """
    tables, found = None, tuple[str, ...]()
    if name is None and seen is None and kernel is None and not options:
        name, tables, noise_std, found = _found(image.values, source, noise_std)
    if name == JPEG:
        return _compressed(image, tables, found, options, noise_std, seen, kernel, source)
    if name is None and seen is None and kernel is None:
        raise BadInput(f"--{next(iter(options)).replace('_', '-')} belongs to a task: say which, with --task")
    values, shape, alpha = image.values, _shape(image.values), image.alpha
    if alpha is not None and not alpha.any():
        raise BadInput("the image is transparent everywhere: there is nothing to restore")
    if alpha is not None and seen is not None:
        alpha = torch.maximum(alpha, 1 - seen[0])  # what is restored is to be visible
    known, blur = dict(options), None
    if seen is None and kernel is None and name is not None:
        values, shape = _behind(values, name, known)
    stated = noise_std is not None
    if noise_std is None:
        noise_std, words = find_noise(values, None if seen is None else seen[0])
        found = (*found, words)
    if seen is None and (kernel is not None or name == "deblur-gaussian"):
        known.setdefault("padding", "valid")  # a camera sees light from outside of the photograph
        blur, noise_std, words = _blur_of(values, known, kernel, noise_std, stated=stated)
        found = (*found, *words)
        shape = canvas_shape(blur, shape) if known["padding"] == "valid" else shape
    task = task_of(name, known | {"noise_std": noise_std}, seen, kernel if blur is None else blur, shape)
    physics = built(task, shape)
    y = physics.A(values[None]) if "mask" in task.tensors else values[None]  # hidden pixels of a file hold anything
    keeps = keep and seen is not None
    return Problem(y, physics, task, shape, alpha, image.notes, image.bits, image.values, keeps, assumed=found)


def _found(
    values: Tensor, source: Path | None, noise_std: float | None
) -> tuple[str, Tables | None, float | None, tuple[str, ...]]:
    """Whether compression or noise harms a photograph more: the task, the tables of the compression, the noise, and in
    words what was found."""
    if noise_std is not None:
        return "denoise", None, noise_std, ("task denoise",)
    tables, words = find_compression(values, source)
    noise_std, said = find_noise(values)
    if tables is not None and jpeg_noise_std(tables) >= noise_std:
        return JPEG, tables, None, (words,)
    return "denoise", None, noise_std, ("task denoise", said)


def _blur_of(
    values: Tensor, options: dict[str, Any], kernel: Path | None, noise_std: float, *, stated: bool
) -> tuple[Tensor, float, tuple[str, ...]]:
    """The kernel of a blurred photograph, the noise to assume, and in words what was found. The options lose the width.

    Args:
        stated: whether the user stated the noise, which then stays.
    """
    width, size = options.pop("std", None), options.pop("kernel_size", None)
    if kernel is not None and str(kernel) != AUTO:
        if width is not None or size is not None:
            raise BadInput("--kernel describes the blur: leave out --std and --kernel-size")
        made, words = _kernel_of(kernel, _shape(values)), ()
        kind, _, text = str(kernel).partition(":")
        width = float(text) if kind.strip().lower() == "gaussian" and not kernel.exists() else None
    else:
        words = ()
        try:
            if width is None:
                width, said = find_width(values, noise_std)
                words = (said,)
            made = parse_kernel(f"gaussian:{width}") if size is None else gaussian_kernel(kernel_size=size, std=width)
        except ValueError as error:
            raise BadInput(str(error)) from error
    if width is not None and not words:
        doubted, words = doubt_width(values, width, noise_std)
        noise_std = noise_std if stated else doubted
    return made, noise_std, words


def _compressed(
    image: Image,
    tables: Tables | None,
    found: tuple[str, ...],
    options: Mapping[str, Any],
    noise_std: float | None,
    seen: Tensor | None,
    kernel: Path | None,
    source: Path | None,
) -> Problem:
    """A photograph with the artefacts of JPEG; a stated noise is the strength of the repair."""
    if options or seen is not None or kernel is not None:
        raise BadInput("--task jpeg takes no other option of a task, no mask and no kernel: leave them out")
    if tables is None:
        tables, words = find_compression(image.values, source)
        found = (words,) if words else ()
    if tables is None:
        raise BadInput("the image shows no sign of JPEG compression, in its file or its pixels: use --task denoise")
    level = jpeg_noise_std(tables) if noise_std is None else noise_std
    task, shape = Task("denoise", {"noise_std": level}, {}), _shape(image.values)
    y = image.values[None]
    return Problem(
        y,
        built(task, shape),
        task,
        shape,
        image.alpha,
        image.notes,
        image.bits,
        image.values,
        tables=tables,
        assumed=found,
    )


def _shape(values: Tensor) -> tuple[int, int, int]:
    channels, height, width = values.shape
    return channels, height, width


def _behind(values: Tensor, name: str, options: Mapping[str, Any]) -> tuple[Tensor, tuple[int, int, int]]:
    """The measured values of a degraded image, and the shape of the image behind it."""
    channels, height, width = _shape(values)
    match name:
        case "super-resolution":
            factor = options.get("factor")
            if factor is None or factor < 1:
                raise BadInput(
                    "--task super-resolution needs --factor, how many times larger the image is to become: a whole "
                    f"number >= 1 as --factor 4, received {'none' if factor is None else factor}"
                )
            return values, (channels, height * factor, width * factor)
        case "colorize":
            return to_gray(values), (3, height, width)
        case "inpaint-random" | "inpaint-scratches":
            raise BadInput("which pixels are missing? give them with --mask FILE (white: missing) or --seen FILE")
        case "inpaint-box" if not {"position", "size"} <= set(options):
            raise BadInput("where is the hole? give --position TOP LEFT and --size N, or --mask FILE")
        case "deblur-motion":
            raise BadInput("how did the camera move? give its blur, an image of one point of light, with --kernel FILE")
        case "compressed-sensing" | "phase-retrieval" | "nonlinear-blur":
            raise BadInput(f"an image alone does not tell the {name}: give a file made by cmidiff degrade")
        case _:
            return values, (channels, height, width)


def save_problem(path: Path, problem: Problem) -> None:
    """Write a measurement file."""
    tensors = {"y": problem.y, **{f"task.{name}": tensor for name, tensor in problem.task.tensors.items()}}
    if problem.alpha is not None:
        tensors["alpha"] = problem.alpha
    record = json.dumps({"format": FORMAT, "bits": problem.bits} | problem.describe())
    data = save({name: value.contiguous() for name, value in tensors.items()}, metadata={KEY: record})
    files.write(path, data, "degrade")


def load_problem(path: Path) -> Problem:
    """Read a measurement file and build its physics.

    Raises:
        BadInput: not such a file, a damaged one, or values that are not finite.
    """
    if not path.is_file():
        raise BadInput(f"no such file: {path}" if not path.exists() else f"{path} is a folder: give a measurement file")
    record, tensors = _contents(path)
    try:
        y, (channels, height, width) = tensors["y"], record["shape"]
        drawn = {name.removeprefix("task."): tensor for name, tensor in tensors.items() if name.startswith("task.")}
        task = Task(record["task"], {"noise_std": 0.05} | record["parameters"], drawn)
        check_noise_std(float(task.parameters["noise_std"]))
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path} is damaged ({error}): make it again with cmidiff degrade") from error
    if y.numel() == 0 or not y.isfinite().all():
        what = "is empty" if y.numel() == 0 else "holds values that are not finite (NaN or infinity)"
        raise BadInput(f"the measurement in {path} {what}: make it again with cmidiff degrade")
    shape = (channels, height, width)
    physics = built(task, shape)
    expected = tuple(physics.A(y.new_zeros(1, *shape)).shape)
    if tuple(y.shape) != expected:
        raise BadInput(f"the measurement in {path} is {tuple(y.shape)}, but its {task.name} measures {expected}")
    return Problem(y, physics, task, shape, tensors.get("alpha"), bits=16 if record.get("bits") == 16 else 8)


def _contents(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {}).get(KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise BadInput(f"cannot read {path} as a measurement file: make one with cmidiff degrade") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise BadInput(f"{path} is no measurement file of this version: make one with cmidiff degrade")
    return record, tensors


def read_truth(path: Path, shape: tuple[int, int, int], value_range: Range | None = None) -> Tensor:
    """The undegraded image (C, H, W), for the quality figures.

    Raises:
        ValueError: an image that cannot be read, or of another size than the restored image.
    """
    image = read_image(path, value_range=value_range)
    if tuple(image.values.shape[1:]) != shape[1:]:
        raise BadInput(
            f"the truth {path} is {image.size} but the restored image is {shape[2]}x{shape[1]}: both must agree"
        )
    return to_gray(image.values) if shape[0] == 1 else image.values.expand(shape[0], -1, -1)
