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

from deepinv.physics import LinearPhysics, Physics
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cmidiff.app.errors import BadInput, unknown
from cmidiff.app.pictures import Picture, read_kernel, read_mask, read_picture, to_gray
from cmidiff.physics import TASKS, Task, measure

FORMAT = 1
KEY = "cmidiff"
ASSUMED_NOISE_STD = 0.02


@dataclass(frozen=True)
class Problem:
    """One measurement and all that is known about it.

    Attributes:
        y: measurement, shape (1, ...), in units of a [0, 1] image.
        physics: the forward operator with its noise.
        task: how the physics is built.
        shape: (C, H, W) of the image behind ``y``.
        alpha: transparency (1, h, w) to put back, or None.
        notes: what was assumed, for the user to read.
    """

    y: Tensor
    physics: Physics
    task: Task
    shape: tuple[int, int, int]
    alpha: Tensor | None = None
    notes: tuple[str, ...] = ()

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

    def view(self) -> Tensor:
        """The measurement as a picture (1 | 3, h, w).

        It is itself where it has the shape of one; else its back-projection, stretched to [0, 1].
        """
        if self.y.ndim == 4 and self.y.shape[1] in (1, 3):
            return self.y[0]
        assert isinstance(self.physics, LinearPhysics), "what is measured of a non-linear task is a picture"
        back = self.physics.A_adjoint(self.y)[0]
        low, high = back.min(), back.max()
        return (back - low) / (high - low).clamp_min(1e-12)

    def describe(self) -> dict[str, Any]:
        """The physics and the noise, for the record of a run."""
        return {"task": self.task.name, "parameters": dict(self.task.parameters), "shape": list(self.shape)}

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
    mask: Path | None,
    kernel: Path | None,
    shape: tuple[int, int, int],
    seed: int = 0,
) -> Task:
    """The task that the options of the command line describe, for images of ``shape``, with all that it draws drawn.

    Raises:
        BadInput: no task or an unknown one, options that do not belong to it, an unusable mask or kernel.
    """
    if name is not None and name not in TASKS:
        raise unknown("task", name, TASKS)
    if mask is not None and kernel is not None:
        raise BadInput("--mask and --kernel exclude each other: a picture is either partly hidden or blurred")
    try:
        if mask is not None:
            _fits(name, "inpaint", "--mask")
            return Task("mask", dict(options), {"mask": read_mask(mask, *shape[1:])})
        if kernel is not None:
            _fits(name, "deblur", "--kernel")
            return Task("kernel", dict(options), {"kernel": read_kernel(kernel, *shape[1:])})
        if name is None:
            raise BadInput(
                f"how was the picture degraded? give --task with one of {', '.join(TASKS)}, or --mask or --kernel FILE"
            )
        drawn = {"seed": seed} if "seed" in signature(TASKS[name]).parameters else {}
        return Task.draw(name, shape, drawn | dict(options))
    except (ValueError, TypeError) as error:
        raise BadInput(str(error)) from error


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


def degraded(picture: Picture, task: Task, seed: int) -> Problem:
    """The measurement of a clean picture under a task, with noise drawn from ``seed``."""
    shape = _shape(picture.values)
    physics = built(task, shape)
    return Problem(measure(picture.values[None], physics, seed=seed), physics, task, shape, picture.alpha)


def from_degraded_picture(
    picture: Picture,
    name: str | None,
    options: Mapping[str, Any],
    noise_std: float | None,
    mask: Path | None,
    kernel: Path | None,
) -> Problem:
    """The measurement that an ordinary degraded picture is, under the task that degraded it.

    Raises:
        BadInput: a task that a picture and these options do not pin down.
    """
    notes: tuple[str, ...] = ()
    if noise_std is None:
        noise_std = ASSUMED_NOISE_STD
        notes = (f"a noise of {noise_std:g} is assumed, that of a good photograph: set it with --noise-std",)
    known = dict(options) | {"noise_std": noise_std}
    if kernel is not None or name == "deblur-gaussian":
        known.setdefault("padding", "reflect")  # a camera does not wrap around
    values, shape = picture.values, _shape(picture.values)
    if mask is None and kernel is None and name is not None:
        values, shape = _behind(values, name, known)
    task = task_of(name, known, mask, kernel, shape)
    physics = built(task, shape)
    y = physics.A(values[None]) if "mask" in task.tensors else values[None]  # hidden pixels of a file hold anything
    return Problem(y, physics, task, shape, picture.alpha, notes)


def _shape(values: Tensor) -> tuple[int, int, int]:
    channels, height, width = values.shape
    return channels, height, width


def _behind(values: Tensor, name: str, options: Mapping[str, Any]) -> tuple[Tensor, tuple[int, int, int]]:
    """The measured values of a degraded picture, and the shape of the picture behind it."""
    channels, height, width = _shape(values)
    match name:
        case "super-resolution":
            factor = options.get("factor")
            if factor is None or factor < 1:
                raise BadInput(
                    "--task super-resolution needs --factor, how many times larger the picture is to become: a whole "
                    f"number >= 1 as --factor 4, received {'none' if factor is None else factor}"
                )
            return values, (channels, height * factor, width * factor)
        case "colorize":
            return to_gray(values), (3, height, width)
        case "inpaint-random" | "inpaint-scratches":
            raise BadInput("which pixels are missing? give them with --mask FILE (bright: seen, dark: hidden)")
        case "inpaint-box" if not {"position", "size"} <= set(options):
            raise BadInput("where is the hole? give --position TOP LEFT and --size N, or --mask FILE")
        case "deblur-motion":
            raise BadInput(
                "how did the camera move? give its blur, a picture of one point of light, with --kernel FILE"
            )
        case "compressed-sensing" | "phase-retrieval" | "nonlinear-blur":
            raise BadInput(f"a picture alone does not tell the {name}: give a file made by cmidiff degrade")
        case _:
            return values, (channels, height, width)


def save_problem(path: Path, problem: Problem) -> None:
    """Write a measurement file."""
    tensors = {"y": problem.y, **{f"task.{name}": tensor for name, tensor in problem.task.tensors.items()}}
    if problem.alpha is not None:
        tensors["alpha"] = problem.alpha
    record = json.dumps({"format": FORMAT} | problem.describe())
    path.write_bytes(save({name: value.contiguous() for name, value in tensors.items()}, metadata={KEY: record}))


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
    return Problem(y, physics, task, shape, tensors.get("alpha"))


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


def read_truth(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """The undegraded picture (C, H, W), for the quality figures.

    Raises:
        BadInput: another size than the restored picture.
    """
    picture = read_picture(path)
    if tuple(picture.values.shape[1:]) != shape[1:]:
        raise BadInput(
            f"the truth {path} is {picture.size} but the restored picture is {shape[2]}x{shape[1]}: both must agree"
        )
    return to_gray(picture.values) if shape[0] == 1 else picture.values.expand(shape[0], -1, -1)
