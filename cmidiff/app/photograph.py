"""From a photograph, and what its user knows of it, to a problem. What is not stated is found out from the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmidiff.app.clues import (
    AUTO,
    SMALLEST,
    STRONGER,
    check_stated_noise,
    doubt_width,
    find_compression,
    find_noise,
    find_width,
    read_file_tables,
)
from cmidiff.app.masks import read_kernel, read_mask, read_seen
from cmidiff.app.problem import JPEG, SUFFIX, Problem, build_physics, load_problem, shape_of
from cmidiff.config import unknown
from cmidiff.images import Image, Range, read_image, to_gray
from cmidiff.physics import (
    TASKS,
    Tables,
    Task,
    ValidBlur,
    canvas_shape,
    gaussian_kernel,
    jpeg_noise_std,
    parse_kernel,
)

BOTH = "--kernel describes the blur: leave out --std and --kernel-size"
UNKNOWN = {
    "inpaint-random": "which pixels are missing? give them with --mask FILE (white: missing) or --seen FILE",
    "inpaint-scratches": "which pixels are missing? give them with --mask FILE (white: missing) or --seen FILE",
    "inpaint-box": "where is the hole? give --position TOP LEFT and --size N, or --mask FILE",
    "deblur-motion": "how did the camera move? give its blur, an image of one point of light, with --kernel FILE",
}  # what an image alone does not tell


@dataclass(frozen=True)
class Degradation:
    """What is known of how an image was degraded.

    Attributes:
        task: its name; None if it is not known, or follows from ``seen`` or ``kernel``.
        parameters: of the task.
        noise_std: in units of a [0, 1] image; None if it is not known.
        seen: the mask, (1, 1, H, W), 1 where a pixel was measured, or None.
        kernel: of a blur, (h, w) with sum 1, or None.
        keeps: whether results keep the pixels that the mask does not hide.
        source: the file of the image, which says how it was compressed, or None.
    """

    task: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    noise_std: float | None = None
    seen: Tensor | None = None
    kernel: Tensor | None = None
    keeps: bool = False
    source: Path | None = None

    @classmethod
    def read(
        cls,
        image: Image,
        task: str | None,
        parameters: Mapping[str, Any],
        noise_std: float | None = None,
        *,
        mask: Path | None = None,
        seen: Path | None = None,
        kernel: Path | None = None,
    ) -> Degradation:
        """Read the mask or the kernel of an image from its file.

        Raises:
            ValueError: a file that cannot be used, or more than one.
        """
        if mask is not None and seen is not None:
            raise ValueError(
                "--mask (damaged pixels) and --seen (measured pixels) exclude each other: leave one of them out"
            )
        if kernel is not None and (mask or seen):
            raise ValueError(
                "--mask or --seen and --kernel exclude each other: an image is either partly hidden or blurred"
            )
        hidden = read_mask(mask, image) if mask is not None else None if seen is None else read_seen(seen, image)
        if str(kernel) == AUTO:
            raise ValueError(f"--kernel {AUTO} finds the blur of a photograph: state a width here, as gaussian:1.5")
        blur = None if kernel is None else read_kernel(kernel, *image.values.shape[1:])
        return cls(task, parameters, noise_std, hidden, blur)

    @property
    def alone(self) -> bool:
        """Whether neither a mask nor a kernel is known."""
        return self.seen is None and self.kernel is None

    def make_task(self, shape: tuple[int, int, int], seed: int = 0) -> Task:
        """Return the task for images of ``shape``, with all that it draws drawn from ``seed``.

        Raises:
            ValueError: no task or an unknown one, or parameters that do not belong to it.
        """
        name, parameters = self.task, dict(self.parameters)
        if self.noise_std is not None:
            parameters["noise_std"] = self.noise_std
        if name == JPEG:
            raise ValueError("jpeg is a task of cmidiff restore: to degrade an image so, save it as JPEG")
        if name is not None and name not in TASKS:
            raise ValueError(unknown("task", name, [*TASKS, JPEG]))
        for given, kind, option in ((self.seen, "inpaint", "--mask or --seen"), (self.kernel, "deblur", "--kernel")):
            if given is not None and name is not None and not name.startswith(kind):
                raise ValueError(f"{option} is for {kind}ing, not for --task {name}: leave one of them out")
        if self.seen is not None:
            return Task("mask", parameters, {"mask": self.seen})
        if self.kernel is not None:
            return Task("kernel", parameters, {"kernel": self.kernel})
        if name is None:
            raise ValueError(
                f"how was the image degraded? give --task with one of {', '.join(TASKS)}, or --mask or --kernel FILE"
            )
        drawn = {"seed": seed} if "seed" in signature(TASKS[name]).parameters else {}
        return Task.draw(name, shape, drawn | parameters)


def read_problem(
    path: Path,
    task: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    noise_std: float | None = None,
    *,
    mask: Path | None = None,
    seen: Path | None = None,
    kernel: Path | None = None,
    value_range: Range | None = None,
    restore_all: bool = False,
) -> Problem:
    """Return the problem in a measurement file, or in an image and what is stated of its degradation.

    Args:
        restore_all: whether the pixels that ``mask`` leaves are restored, too; otherwise results keep them.
        mask, seen, kernel: files.

    Raises:
        ValueError: what cannot be used.
    """
    parameters = parameters or {}
    if path.suffix == SUFFIX:
        stated = {"task": task, "mask": mask, "seen": seen, "kernel": kernel, "noise_std": noise_std}
        stated |= {"range": value_range, "restore_all": restore_all or None} | dict(parameters)
        if superfluous := [f"--{name.replace('_', '-')}" for name, value in stated.items() if value is not None]:
            raise ValueError(f"{path} says itself how it was degraded: leave out {', '.join(superfluous)}")
        return load_problem(path)
    if restore_all and mask is None:
        raise ValueError("--restore-all is for --mask, which keeps the pixels that are not painted: leave it out")
    image = read_image(path, value_range=value_range)
    if str(kernel).startswith("gaussian:") and not Path(str(kernel)).exists() and not (mask or seen):
        if {"std", "kernel_size"} & set(parameters):
            raise ValueError(BOTH)
        if str(kernel) != AUTO:
            parse_kernel(str(kernel))  # refuses what is no width
            parameters = dict(parameters) | {"std": float(str(kernel).partition(":")[2])}
        task, kernel = task or "deblur-gaussian", None
    known = Degradation.read(image, task, parameters, noise_std, mask=mask, seen=seen, kernel=kernel)
    return make_problem(image, replace(known, source=path, keeps=mask is not None and not restore_all))


def read_truth(path: Path, shape: tuple[int, int, int], value_range: Range | None = None) -> Tensor:
    """Read the undegraded image (C, H, W), for the quality figures.

    Raises:
        ValueError: an image that cannot be read, or of another size than the restored image.
    """
    image = read_image(path, value_range=value_range)
    if tuple(image.values.shape[1:]) != shape[1:]:
        raise ValueError(
            f"the truth {path} is {image.size} but the restored image is {shape[2]}x{shape[1]}: both must agree"
        )
    return to_gray(image.values) if shape[0] == 1 else image.values.expand(shape[0], -1, -1)


def make_problem(image: Image, known: Degradation) -> Problem:
    """Return the measurement that an ordinary degraded image is, under the task that degraded it.

    Raises:
        ValueError: a task that an image and what is known do not pin down.
    """
    found, tables, stated = (), None, known.noise_std is not None
    if known.task is None and known.alone and not known.parameters:
        known, tables, found = _find_task(image.values, known)
    if known.task == JPEG:
        return _repair_problem(image, known, tables, found)
    if known.task is None and known.alone:
        raise ValueError(
            f"--{next(iter(known.parameters)).replace('_', '-')} belongs to a task: say which, with --task"
        )
    values, shape, alpha = image.values, shape_of(image.values), image.alpha
    if alpha is not None and not alpha.any():
        raise ValueError("the image is transparent everywhere: there is nothing to restore")
    if alpha is not None and known.seen is not None:
        alpha = torch.maximum(alpha, 1 - known.seen[0])  # what is restored is to be visible
    if known.alone and known.task is not None:
        values, shape = _find_image_behind(values, known.task, known.parameters)
    if known.noise_std is None:
        seen = None if known.seen is None else known.seen[0]
        noise_std, words = find_noise(values, seen, read_file_tables(known.source, values))
        found, known = (*found, words), replace(known, noise_std=noise_std)
    if known.kernel is not None or known.task == "deblur-gaussian":
        assert known.noise_std is not None, "it is stated, or found above"
        if stated:
            tables, large = read_file_tables(known.source, values), min(shape[1:]) >= SMALLEST
            shown = find_noise(values, tables=tables)[0] if large else 0.0
            noise_std, words, doubt = check_stated_noise(shown, known.noise_std, image.bits)
            found, known, image = (*found, *words), replace(known, noise_std=noise_std), _with_notes(image, doubt)
        known, words = _find_blur(values, known, stated=stated)
        found += words
        if known.parameters["padding"] == "valid":
            assert known.kernel is not None, "the blur was found"
            shape = canvas_shape(known.kernel, shape)
    task = known.make_task(shape)
    physics = build_physics(task, shape)
    y = physics.A(values[None]) if "mask" in task.tensors else values[None]  # hidden pixels of a file hold anything
    framed = isinstance(physics, ValidBlur)
    problem = Problem(y, physics, task, shape, alpha, image.notes, image.bits, image.values, known.keeps, framed)
    return replace(problem, assumed=found)


def _repair_problem(image: Image, known: Degradation, tables: Tables | None, found: tuple[str, ...]) -> Problem:
    """A photograph with the artefacts of JPEG; a stated noise is the strength of the repair."""
    if known.parameters or not known.alone:
        raise ValueError("--task jpeg takes no other option of a task, no mask and no kernel: leave them out")
    if tables is None:
        tables, words = find_compression(image.values, known.source)
        found = (words,)
    if tables is None:
        raise ValueError("the image shows no sign of JPEG compression, in its file or its pixels: use --task denoise")
    level = jpeg_noise_std(tables) if known.noise_std is None else known.noise_std
    task, shape = Task("denoise", {"noise_std": level}, {}), shape_of(image.values)
    problem = Problem(image.values[None], build_physics(task, shape), task, shape, image.alpha, image.notes, image.bits)
    return replace(problem, original=image.values, tables=tables, assumed=found)


def _find_image_behind(values: Tensor, name: str, parameters: Mapping[str, Any]) -> tuple[Tensor, tuple[int, int, int]]:
    """The measured values of a degraded image, and the shape of the image behind it."""
    channels, height, width = shape_of(values)
    if name == "super-resolution":
        factor = parameters.get("factor")
        if factor is None or factor < 1:
            raise ValueError(
                "--task super-resolution needs --factor, how many times larger the image is to become: a whole number "
                f">= 1 as --factor 4, received {'none' if factor is None else factor}"
            )
        return values, (channels, height * factor, width * factor)
    if name == "colorize":
        return to_gray(values), (3, height, width)
    if name in UNKNOWN and not (name == "inpaint-box" and {"position", "size"} <= set(parameters)):
        raise ValueError(UNKNOWN[name])
    if name in ("compressed-sensing", "phase-retrieval", "nonlinear-blur"):
        raise ValueError(f"an image alone does not tell the {name}: give a file made by cmidiff degrade")
    return values, (channels, height, width)


def _with_notes(image: Image, notes: tuple[str, ...]) -> Image:
    return replace(image, notes=(*image.notes, *notes))


def _find_task(values: Tensor, known: Degradation) -> tuple[Degradation, Tables | None, tuple[str, ...]]:
    """Whether compression or noise harms a photograph more: what is then known, the tables of the compression, and in
    words what was found."""
    denoise = replace(known, task="denoise")
    if known.noise_std is not None:
        return denoise, None, ("task denoise",)
    tables, words = find_compression(values, known.source)
    noise_std, noise_words = find_noise(values, tables=tables)
    if tables is not None and STRONGER * jpeg_noise_std(tables) >= noise_std:
        return replace(known, task=JPEG), tables, (words,)
    return replace(denoise, noise_std=noise_std), None, ("task denoise", noise_words)


def _find_blur(values: Tensor, known: Degradation, *, stated: bool) -> tuple[Degradation, tuple[str, ...]]:
    """What is known with the kernel of the blur and the noise to assume, and in words what was found.

    Args:
        stated: whether the user stated the noise, which then stays.
    """
    parameters: dict[str, Any] = {"padding": "valid"} | dict(
        known.parameters
    )  # a camera sees light from outside of the photograph
    width, size = parameters.pop("std", None), parameters.pop("kernel_size", None)
    known, words = replace(known, parameters=parameters), ()
    assert known.noise_std is not None, "the noise is found first"
    if known.kernel is not None:
        if width is not None or size is not None:
            raise ValueError(BOTH)
        return known, ()
    if width is None:
        width, found = find_width(values, known.noise_std)
        words = (found,)
    elif not stated:
        doubted, words = doubt_width(values, width, known.noise_std)
        known = replace(known, noise_std=doubted)
    kernel = parse_kernel(f"gaussian:{width}") if size is None else gaussian_kernel(kernel_size=size, std=width)
    return replace(known, kernel=kernel), words
