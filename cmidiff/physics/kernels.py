"""Blur kernels from a few words: ``gaussian:1.5``, ``motion:12,30``, ``disk:3``.

A kernel is what one point of light becomes. Lines and discs have sharp edges that fall between pixels, so they are
drawn on a grid finer than the pixels and averaged: each pixel receives the share of the shape that lies in it.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cmidiff.physics.draw import gaussian_kernel

SUBPIXELS = 16  # a side of each pixel; the weights are then right to better than 1%
LARGEST = 500.0  # pixels


def gaussian(std: float) -> Tensor:
    """A Gaussian of standard deviation ``std`` pixels, cut off at four of them (``(k, k)``, float64, sum 1)."""
    return gaussian_kernel(kernel_size=2 * max(1, int(4 * _length("std", std) + 0.5)) + 1, std=std)


def disk(radius: float) -> Tensor:
    """A uniform disc of ``radius`` pixels, the blur of a lens out of focus (``(k, k)``, float64, sum 1)."""
    radius = _length("radius", radius)
    half = math.ceil(radius - 0.5)
    rows, columns = _fine_grid(half)
    return _averaged((rows.square() + columns.square() <= radius**2).double())


def motion(length: float, angle: float) -> Tensor:
    """A straight line of ``length`` pixels, the blur of a uniform motion (``(k, l)``, float64, sum 1).

    Args:
        length: of the path, pixels; the line is one pixel wide.
        angle: of the path, degrees, counterclockwise from the horizontal.
    """
    length = _length("length", length)
    if not math.isfinite(angle):
        raise ValueError(f"angle must be a finite number of degrees; got {angle!r}. For a horizontal motion use 0.")
    turn = math.radians(angle)
    steps = SUBPIXELS * (math.ceil(length) + 1)
    along = ((torch.arange(steps, dtype=torch.float64) + 0.5) / steps - 0.5) * length
    path = torch.stack([-math.sin(turn) * along, math.cos(turn) * along], 1)  # row, column
    half = math.ceil(length / 2) + 1
    kernel = torch.zeros(2 * half + 1, 2 * half + 1, dtype=torch.float64)
    corner = path.floor()
    for row in (0, 1):
        for column in (0, 1):
            at = corner + torch.tensor([row, column])
            weight = (1 - (path - at).abs()).prod(1)
            place = (at + half).long()
            kernel.index_put_((place[:, 0], place[:, 1]), weight, accumulate=True)
    return _trim(kernel / kernel.sum())


def parse_kernel(spec: str) -> Tensor:
    """Make the kernel that a specification describes.

    Args:
        spec: ``gaussian:STD``, ``disk:RADIUS`` or ``motion:LENGTH,ANGLE``; lengths in pixels, the angle in degrees
            counterclockwise from the horizontal.

    Returns:
        ``(k, l)`` with odd sides, float64, not negative, sum 1.

    Raises:
        ValueError: for another name, another number of values, or values that are not usable.
    """
    name, colon, rest = spec.partition(":")
    kind = KERNELS.get(name.strip().lower())
    if kind is None or not colon:
        raise ValueError(f"A kernel must be one of {', '.join(FORMS)}; got {spec!r}. For example gaussian:1.5.")
    make, form = kind
    try:
        values = [float(value) for value in rest.split(",")]
    except ValueError:
        values = []
    if len(values) != form.count(",") + 1:
        raise ValueError(f"This kernel must be written {form}, with numbers in place of the words; got {spec!r}.")
    return make(*values)


KERNELS: dict[str, tuple[Callable[..., Tensor], str]] = {
    "gaussian": (gaussian, "gaussian:STD"),
    "disk": (disk, "disk:RADIUS"),
    "motion": (motion, "motion:LENGTH,ANGLE"),
}
"""Every kind of kernel with its form."""
FORMS = tuple(form for _, form in KERNELS.values())


def _length(name: str, value: float) -> float:
    if not (math.isfinite(value) and 0 < value <= LARGEST):
        raise ValueError(f"{name} must be a number of pixels above 0 and at most {LARGEST:g}; got {value!r}.")
    return float(value)


def _fine_grid(half: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of the centres of all sub-pixels, pixels from the centre of the kernel."""
    side = SUBPIXELS * (2 * half + 1)
    offset = (torch.arange(side, dtype=torch.float64) + 0.5) / SUBPIXELS - (half + 0.5)
    return offset[:, None].expand(side, side), offset[None, :].expand(side, side)


def _averaged(fine: Tensor) -> Tensor:
    kernel = torch.nn.functional.avg_pool2d(fine[None], SUBPIXELS)[0]
    return kernel / kernel.sum()


def _trim(kernel: Tensor) -> Tensor:
    """The kernel without its border of zeros, symmetric about the centre."""
    for dim in (0, 1):
        half = kernel.shape[dim] // 2
        used = (kernel.abs() > 1e-12).any(1 - dim).nonzero().flatten()
        reach = int((used - half).abs().max())
        kernel = kernel.narrow(dim, half - reach, 2 * reach + 1)
    return kernel.contiguous()
