"""What is to be restored: a measurement, the physics that explains it, and the file that holds both.

A measurement file is one safetensors file. Its tensors are the measurement ``y`` (float32), the mask, kernel or signs
that were drawn or given, and the transparency to put back. Its metadata name the task, its parameters and the shape of
the image behind ``y``. The physics is built from what is stored, never drawn again.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepinv.physics import Physics
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cmidiff import files
from cmidiff.app.repair import keep_unpainted
from cmidiff.images import Image
from cmidiff.physics import Tables, Task, ValidBlur, jpeg_quality, measure
from cmidiff.physics.measure import view_measurement

FORMAT = 1
KEY = "cmidiff"
SUFFIX = ".safetensors"
JPEG = "jpeg"  # the task of a compressed photograph: what is lost is no noise, so no physics describes it
AGAIN = "make it again with cmidiff degrade"


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
        framed: whether results are cropped to the photograph, into which its surroundings were blurred.
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
    framed: bool = False
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
    def result_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the results."""
        return shape_of(self.y[0]) if self.framed else self.shape

    def view(self) -> Tensor:
        """Return the measurement as an image (1 | 3, h, w)."""
        return view_measurement(self.y, self.physics)

    def finish(self, x: Tensor) -> Tensor:
        """Return a restoration (C, H, W) without what lies beyond the photograph, and with the pixels of the photograph
        that no mask hides."""
        if self.framed:
            assert isinstance(self.physics, ValidBlur), "the frame is that of a blur"
            return self.physics.crop(x)
        if not self.keeps:
            return x
        assert self.original is not None, "only a photograph has such pixels"
        assert self.seen is not None, "a mask says which they are"
        return keep_unpainted(x, self.original.to(x), self.seen[0])

    def describe(self) -> dict[str, Any]:
        """Return the physics and the noise, for the record of a run."""
        record = {"task": self.name, "parameters": dict(self.task.parameters), "shape": list(self.shape)}
        if self.tables is not None:
            record["quality"] = jpeg_quality(self.tables)
        return record | ({"keeps": "unpainted pixels"} if self.keeps else {})

    def digest(self) -> str:
        """Return a hash of the measurement and of what its physics was built from."""
        parts = [self.y, *(tensor for _, tensor in sorted(self.task.tensors.items()))]
        return hashlib.sha256(b"".join(t.cpu().contiguous().numpy().tobytes() for t in parts)).hexdigest()[:16]


def build_physics(task: Task, shape: tuple[int, int, int]) -> Physics:
    """Build the physics of a task without the warnings of deepinv."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return task.build(shape)


def degrade(image: Image, task: Task, seed: int) -> Problem:
    """Measure a clean image under a task, with noise drawn from ``seed``."""
    shape = shape_of(image.values)
    physics = build_physics(task, shape)
    y = measure(image.values[None], physics, seed=seed)
    return Problem(y, physics, task, shape, image.alpha, image.notes, image.bits)


def shape_of(values: Tensor) -> tuple[int, int, int]:
    """(C, H, W) of an image."""
    channels, height, width = values.shape
    return channels, height, width


def measurement_path(output: Path | None, image: Path, task: str) -> Path:
    """Return where a measurement goes: the user may name the file, its PNG, or its folder."""
    default = f"{image.stem}-{task}{SUFFIX}"
    if output is None or output.is_dir():
        return (output or Path()) / default
    if output.suffix not in ("", ".png", SUFFIX):
        raise ValueError(f"--output must end in {SUFFIX}, received {output}: rename it")
    return output.with_suffix(SUFFIX)


def save_problem(path: Path, problem: Problem) -> None:
    """Write a measurement file."""
    tensors = {"y": problem.y, **{f"task.{name}": tensor for name, tensor in problem.task.tensors.items()}}
    if problem.alpha is not None:
        tensors["alpha"] = problem.alpha
    record = json.dumps({"format": FORMAT, "bits": problem.bits, "framed": problem.framed} | problem.describe())
    data = save({name: value.contiguous() for name, value in tensors.items()}, metadata={KEY: record})
    files.write(path, data, "degrade")


def load_problem(path: Path) -> Problem:
    """Read a measurement file and build its physics."""
    record, tensors = _read_contents(path)
    try:
        y, (channels, height, width) = tensors["y"], record["shape"]
        drawn = {name.removeprefix("task."): tensor for name, tensor in tensors.items() if name.startswith("task.")}
        task = Task(record["task"], {"noise_std": 0.05} | record["parameters"], drawn)
        shape = (channels, height, width)
        physics = build_physics(task, shape)
        expected = tuple(physics.A(torch.zeros(1, *shape)).shape)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): {AGAIN}") from error
    if y.numel() == 0 or not y.isfinite().all():
        what = "is empty" if y.numel() == 0 else "holds values that are not finite (NaN or infinity)"
        raise ValueError(f"the measurement in {path} {what}: {AGAIN}")
    if tuple(y.shape) != expected:
        raise ValueError(f"the measurement in {path} is {tuple(y.shape)}, but its {task.name} measures {expected}")
    bits, framed = 16 if record.get("bits") == 16 else 8, bool(record.get("framed"))
    return Problem(y, physics, task, shape, tensors.get("alpha"), bits=bits, framed=framed)


def _read_contents(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise ValueError(
            f"no such file: {path}" if not path.exists() else f"{path} is a folder: give a measurement file"
        )
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {}).get(KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read {path} as a measurement file: make one with cmidiff degrade") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{path} is no measurement file of this version: make one with cmidiff degrade")
    return record, tensors
