"""The named tasks, and ``Task``: one of them with everything that was drawn for it, as data that can be stored.

Paper presets. ``cmi-paper`` (https://arxiv.org/abs/2501.02880): 256x256, noise_std 0.05, box 128, random mask 90%,
bicubic x4, Gaussian 61x61 std 5, motion 61x61 intensity 0.5. The DPS code
(https://github.com/DPS2022/diffusion-posterior-sampling): Gaussian std 3 with ``padding="reflect"``, random mask 92%,
and noise 0.05 of images in [-1, 1], which is noise_std 0.025 here.

Three tasks are not linear (``cmidiff.physics.nonlinear``): phase retrieval, a clipped exposure and the blur of light.

Everywhere ``shape`` is ``(C, H, W)`` of the images, and ``noise_std`` the standard deviation of the noise in units of
an image in [0, 1]. ``seed`` is any integer, ``dtype`` ``torch.float32`` or ``torch.float64``. A bad value raises
``ValueError``.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, TypedDict, Unpack

import torch
from deepinv.physics import Denoising, GaussianNoise, LinearPhysics, Physics, PoissonNoise
from torch import Tensor

from cmidiff.config import unknown
from cmidiff.physics.check import Device, Shape, check_gain, check_shape
from cmidiff.physics.decomposed import BicubicResize, Luminance
from cmidiff.physics.kernels import gaussian_kernel, motion_kernel
from cmidiff.physics.masks import box_mask, random_mask, random_signs, scratch_mask
from cmidiff.physics.nonlinear import Exposure, FourierMagnitude, LightBlur
from cmidiff.physics.operators import from_kernel, from_mask, from_signs, gaussian_noise
from cmidiff.registry import TASKS

POISSON = "poisson"  # the parameter that every task takes


class Build(TypedDict, total=False):
    """How every physics is built: noise_std 0.05, dtype ``torch.float32`` and device ``"cpu"`` unless given."""

    noise_std: float
    dtype: torch.dtype
    device: Device


def _read_build(
    *, noise_std: float = 0.05, dtype: torch.dtype = torch.float32, device: Device = "cpu"
) -> tuple[GaussianNoise, torch.dtype, Device]:
    return gaussian_noise(noise_std, dtype), dtype, device


def denoise(shape: Shape, **build: Unpack[Build]) -> LinearPhysics:
    """Noise only: ``A`` is the identity."""
    noise, dtype, device = _read_build(**build)
    return Denoising(noise, img_size=check_shape(shape)).to(device=device, dtype=dtype)


def inpaint_box(
    shape: Shape,
    *,
    size: int | Sequence[int] | None = None,
    position: Sequence[int] | None = None,
    seed: int = 0,
    **build: Unpack[Build],
) -> LinearPhysics:
    """One hidden rectangle of ``size`` pixels (``None``: half of each side) at ``position``; see ``box_mask``."""
    return from_mask(box_mask(shape, size=size, position=position, seed=seed), shape, **build)


def inpaint_random(shape: Shape, *, hidden: float = 0.9, seed: int = 0, **build: Unpack[Build]) -> LinearPhysics:
    """The fraction ``hidden`` of the pixels is not measured, all channels together; see ``random_mask``."""
    return from_mask(random_mask(shape, hidden=hidden, seed=seed), shape, **build)


def inpaint_scratches(
    shape: Shape, *, hidden: float = 0.04, width: float = 2.0, seed: int = 0, **build: Unpack[Build]
) -> LinearPhysics:
    """Thin strokes ``width`` pixels wide hide the fraction ``hidden`` of the pixels; see ``scratch_mask``."""
    return from_mask(scratch_mask(shape, hidden=hidden, width=width, seed=seed), shape, **build)


def deblur_gaussian(
    shape: Shape, *, kernel_size: int = 61, std: float = 3.0, padding: str = "circular", **build: Unpack[Build]
) -> LinearPhysics:
    """Blur by a Gaussian of ``std`` pixels; see ``gaussian_kernel``, and ``from_kernel`` for ``padding``."""
    return from_kernel(gaussian_kernel(kernel_size=kernel_size, std=std), shape, padding=padding, **build)


def deblur_motion(
    shape: Shape,
    *,
    kernel_size: int = 61,
    intensity: float = 0.5,
    padding: str = "circular",
    seed: int = 0,
    **build: Unpack[Build],
) -> LinearPhysics:
    """Blur by a shaken camera; see ``motion_kernel``, and ``from_kernel`` for ``padding``."""
    kernel = motion_kernel(kernel_size=kernel_size, intensity=intensity, seed=seed)
    return from_kernel(kernel, shape, padding=padding, **build)


def super_resolution(shape: Shape, *, factor: int = 4, **build: Unpack[Build]) -> LinearPhysics:
    """Bicubic reduction by a whole ``factor`` with antialiasing; ``shape`` is that of the large image.

    Equal to the resizer of the DPS code (https://github.com/assafshocher/ResizeRight) and MATLAB's ``imresize``.

    Raises:
        ValueError: also if ``factor`` does not divide height and width, or leaves fewer than two pixels a side.
    """
    image = check_shape(shape)
    if not isinstance(factor, Integral) or factor < 1:
        raise ValueError(f"factor must be a whole number of at least 1; got {factor!r}. Use 2, 4, 8, ...")
    if any(side % factor or side < 2 * factor for side in image[1:]):
        fitting = [max(2, round(side / factor)) * factor for side in image[1:]]
        raise ValueError(
            "factor must divide the height and width of the large image and leave two pixels a side; got factor "
            f"{factor} and {image[1]}x{image[2]}. Crop or pad the image to {fitting[0]}x{fitting[1]}, or choose "
            "another factor."
        )
    noise, dtype, device = _read_build(**build)
    return BicubicResize(image, int(factor), noise, dtype).to(device)


def colorize(shape: Shape, **build: Unpack[Build]) -> LinearPhysics:
    """Only the grey image is measured (weights 0.299, 0.587, 0.114); ``y`` is ``(B, 1, H, W)``.

    Raises:
        ValueError: also for an image without three channels.
    """
    image = check_shape(shape)
    if image[0] != 3:
        raise ValueError(f"colorize needs images of 3 channels; got {image[0]}. Pass a colour image.")
    noise, dtype, device = _read_build(**build)
    return Luminance(image, noise, dtype).to(device)


def compressed_sensing(shape: Shape, *, ratio: float = 0.25, seed: int = 0, **build: Unpack[Build]) -> LinearPhysics:
    """About ``ratio H W`` random projections of each channel; see ``from_signs``."""
    return from_signs(random_signs(shape, seed=seed), ratio=ratio, **build)


def phase_retrieval(shape: Shape, *, oversampling: float = 2.0, **build: Unpack[Build]) -> Physics:
    """The magnitudes of the Fourier transform are measured, not the phases; see ``FourierMagnitude``. Not linear."""
    noise, _, device = _read_build(**build)
    return FourierMagnitude(shape, oversampling, noise).to(device)


def hdr(shape: Shape, *, factor: float = 2.0, **build: Unpack[Build]) -> Physics:
    """Contrast times ``factor``, clipped to what a sensor holds; see ``Exposure``. Not linear."""
    noise, _, device = _read_build(**build)
    return Exposure(shape, factor, noise).to(device)


def nonlinear_blur(
    shape: Shape,
    *,
    kernel_size: int = 61,
    intensity: float = 0.5,
    padding: str = "circular",
    seed: int = 0,
    **build: Unpack[Build],
) -> Physics:
    """Light blurred by a shaken camera, then stored by the sRGB curve; see ``LightBlur``. Not linear."""
    blur = deblur_motion(shape, kernel_size=kernel_size, intensity=intensity, padding=padding, seed=seed, **build)
    return LightBlur(blur, shape)


_DRAWS: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "inpaint-box": ("mask", box_mask),
    "inpaint-random": ("mask", random_mask),
    "inpaint-scratches": ("mask", scratch_mask),
    "deblur-gaussian": ("kernel", gaussian_kernel),
    "deblur-motion": ("kernel", motion_kernel),
    "compressed-sensing": ("signs", random_signs),
    "nonlinear-blur": ("kernel", motion_kernel),
}
_GIVEN: dict[str, tuple[str, Callable[..., Physics]]] = {"mask": ("mask", from_mask), "kernel": ("kernel", from_kernel)}


@dataclass(frozen=True)
class Task:
    """A physics as data: what a measurement file must store to restore the exact physics on every machine.

    ``Task.draw("inpaint-random", (3, 64, 64), {"seed": 1})`` for a named task;
    ``Task("mask", {"noise_std": 0.05}, {"mask": mask})`` and
    ``Task("kernel", {"noise_std": 0.05, "padding": "reflect"}, {"kernel": kernel})`` for a user's own.

    Args:
        name: one of ``TASKS``, or ``"mask"`` or ``"kernel"``.
        parameters: the task's keyword arguments, JSON values; those left out have their defaults. With ``"poisson"``,
            the gain of a ``deepinv.physics.PoissonNoise``, that is the noise, and ``noise_std`` has no meaning.
        tensors: what was drawn or given, under ``"mask"``, ``"kernel"`` or ``"signs"``; it is used and the seed is not.

    Raises:
        ValueError: for an unknown name or parameter (the nearest names are suggested), or a missing tensor.
    """

    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = [*_parameters(self.name), POISSON]
        for parameter in self.parameters:
            if parameter not in known:
                raise ValueError(unknown(f"parameter of the task {self.name}", parameter, known))
        needed = (_GIVEN | _DRAWS).get(self.name)
        if needed and needed[0] not in self.tensors:
            raise ValueError(
                f"Task {self.name!r} needs the tensor {needed[0]!r}; got {sorted(self.tensors) or 'none'}. "
                "Add it, or let Task.draw draw it."
            )

    @classmethod
    def draw(cls, name: str, shape: Shape, parameters: Mapping[str, Any] | None = None) -> "Task":
        """The named task for images of ``shape``, with every default written out and everything random drawn.

        Raises:
            ValueError: for what ``Task`` or the named function refuses.
        """
        if name not in TASKS:
            raise ValueError(unknown("task", name, TASKS))
        chosen = {**_parameters(name), **(parameters or {})}
        tensors: dict[str, Tensor] = {}
        if name in _DRAWS:
            key, function = _DRAWS[name]
            wanted = inspect.signature(function).parameters
            arguments = {k: v for k, v in chosen.items() if k in wanted} | (
                {"shape": shape} if "shape" in wanted else {}
            )
            tensors[key] = function(**arguments)
        task = cls(name, chosen, tensors)
        task.build(shape)
        return task

    def build(self, shape: Shape, dtype: torch.dtype = torch.float32, device: Device = "cpu") -> Physics:
        """The physics for images of ``shape`` ``(C, H, W)``.

        Raises:
            ValueError: if a stored tensor belongs to images of another size, or for what the named function refuses.
        """
        physics = self._build(check_shape(shape), dtype, device)
        if POISSON in self.parameters:
            gain = torch.tensor(check_gain(self.parameters[POISSON]), dtype=dtype, device=device)
            physics.noise_model = PoissonNoise(gain, clip_positive=True)
        return physics

    def _build(self, image: tuple[int, int, int], dtype: torch.dtype, device: Device) -> Physics:
        options: dict[str, Any] = {
            "noise_std": self.parameters.get("noise_std", 0.05),
            "dtype": dtype,
            "device": device,
        }
        if "mask" in self.tensors:
            return from_mask(self.tensors["mask"], image, **options)
        if "kernel" in self.tensors:
            padding = self.parameters.get("padding", "circular")
            blur = from_kernel(self.tensors["kernel"], image, padding=padding, **options)
            return LightBlur(blur, image) if self.name == "nonlinear-blur" else blur
        if "signs" in self.tensors:
            signs = self.tensors["signs"]
            if tuple(signs.shape) != image:
                raise ValueError(
                    f"The signs were drawn for images of {tuple(signs.shape)}; got {image}. Use that shape."
                )
            return from_signs(signs, ratio=self.parameters.get("ratio", 0.25), **options)
        own = {name: value for name, value in self.parameters.items() if name != POISSON}
        return TASKS[self.name](image, **{**own, "dtype": dtype, "device": device})


def _parameters(name: str) -> dict[str, Any]:
    """The parameters of a task that a file stores, with their defaults."""
    if name not in TASKS and name not in _GIVEN:
        raise ValueError(unknown("task", name, [*TASKS, *_GIVEN]))
    signature = inspect.signature(_GIVEN[name][1] if name in _GIVEN else TASKS[name]).parameters
    own = {key: p.default for key, p in signature.items() if p.kind is p.KEYWORD_ONLY}
    return {"noise_std": 0.05} | {key: value for key, value in own.items() if key not in ("dtype", "device")}
