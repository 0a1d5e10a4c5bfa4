"""Blur kernels: of a Gaussian, a shaken camera, a lens out of focus and a uniform motion.

A kernel is what one point of light becomes: ``(k, l)`` with odd sides, float64, not negative, sum 1.
"""

import math
from numbers import Integral

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from cmidiff.physics.check import check_fraction, make_generator

SUBPIXELS = 16  # a side of each pixel of a disc, whose edge falls between pixels; weights are right to better than 1%
LARGEST = 500.0  # pixels
FORMS = {"gaussian": "gaussian:STD", "disk": "disk:RADIUS", "motion": "motion:LENGTH,ANGLE"}


def gaussian_kernel(*, kernel_size: int = 61, std: float = 3.0) -> Tensor:
    """Make a Gaussian kernel, cut off at four standard deviations as ``scipy.ndimage.gaussian_filter`` does.

    With (61, 3.0) it is the kernel of the DPS code (Chung et al., Diffusion Posterior Sampling for General Noisy
    Inverse Problems, 2023, https://arxiv.org/abs/2209.14687); the CMI paper uses (61, 5.0).

    Args:
        kernel_size: side, pixels, odd.
        std: standard deviation, pixels, positive.

    Raises:
        ValueError: for an even size, or a standard deviation that is not positive and finite.
    """
    half = _check_odd(kernel_size) // 2
    if not (math.isfinite(std) and std > 0):
        raise ValueError(f"std must be a positive number of pixels; got {std!r}. For no blur at all use 'denoise'.")
    offset = torch.arange(-half, half + 1, dtype=torch.float64)
    profile = torch.exp(-0.5 * (offset / std) ** 2) * (offset.abs() <= int(4 * std + 0.5))
    profile = profile / profile.sum()
    return torch.outer(profile, profile)


def motion_kernel(*, kernel_size: int = 61, intensity: float = 0.5, seed: int = 0) -> Tensor:
    """Make the kernel of a camera that shakes during the exposure: a random path, drawn with bilinear weights.

    The heading wanders as a Brownian motion and makes a few sudden turns; both grow with ``intensity``. The path is
    centred at its centre of mass, so that the blur moves nothing on average, and shrunk where it would leave the
    kernel. The parameter has the meaning it has in the kernels of the DPS code
    (https://github.com/LeviBorodenko/motionblur), the kernels are others.

    Args:
        kernel_size: side, pixels, odd.
        intensity: 0 (a straight line) to 1 (very shaky).
        seed: of the path.

    Raises:
        ValueError: for an even size, or an intensity outside of [0, 1].
    """
    size = _check_odd(kernel_size)
    intensity = check_fraction("intensity", intensity, least=0, most=1)
    steps, generator = 16 * size, make_generator(seed)
    length = size * (0.5 + 0.5 * torch.rand((), generator=generator, dtype=torch.float64))
    start = 2 * math.pi * torch.rand((), generator=generator, dtype=torch.float64)
    wander = torch.randn(steps, generator=generator, dtype=torch.float64) * intensity * math.pi / math.sqrt(steps)
    jolted = torch.rand(steps, generator=generator, dtype=torch.float64) < 4 * intensity / steps
    jolt = torch.randn(steps, generator=generator, dtype=torch.float64) * intensity * math.pi / 2
    heading = start + torch.cumsum(wander + jolted * jolt, 0)
    path = torch.cumsum(torch.stack([heading.sin(), heading.cos()], 1) * length / steps, 0)
    path = path - path.mean(0)
    reach = max(size // 2 - 1, 0.5)
    return _draw_path(path * (reach / path.abs().max()).clamp_max(1), size // 2)


def parse_kernel(spec: str) -> Tensor:
    """Make the kernel that a specification describes.

    Args:
        spec: ``gaussian:STD``, ``disk:RADIUS`` (a lens out of focus) or ``motion:LENGTH,ANGLE`` (a line one pixel
            wide); lengths in pixels, the angle in degrees counterclockwise from the horizontal.

    Returns:
        ``(k, l)`` with odd sides, float64, not negative, sum 1.

    Raises:
        ValueError: for another name, another number of values, or values that are not usable.
    """
    name, colon, rest = spec.partition(":")
    name = name.strip().lower()
    if name not in FORMS or not colon:
        raise ValueError(
            f"A kernel must be one of {', '.join(FORMS.values())}; got {spec!r}. For example gaussian:1.5."
        )
    try:
        values = [float(value) for value in rest.split(",")]
    except ValueError:
        values = []
    if len(values) != FORMS[name].count(",") + 1:
        raise ValueError(
            f"This kernel must be written {FORMS[name]}, with numbers in place of the words; got {spec!r}."
        )
    size = values[0]
    if not (math.isfinite(size) and 0 < size <= LARGEST):
        what = {"gaussian": "std", "disk": "radius", "motion": "length"}[name]
        raise ValueError(f"{what} must be a number of pixels above 0 and at most {LARGEST:g}; got {size!r}.")
    if name == "gaussian":
        return gaussian_kernel(kernel_size=2 * max(1, int(4 * size + 0.5)) + 1, std=size)
    return _disk(size) if name == "disk" else _line(*values)


def _disk(radius: float) -> Tensor:
    """Each pixel receives the share of the disc that lies in it."""
    half = math.ceil(radius - 0.5)
    offset = (torch.arange(SUBPIXELS * (2 * half + 1), dtype=torch.float64) + 0.5) / SUBPIXELS - (half + 0.5)
    fine = (offset[:, None].square() + offset.square() <= radius**2).double()
    kernel = avg_pool2d(fine[None], SUBPIXELS)[0]
    return kernel / kernel.sum()


def _line(length: float, angle: float) -> Tensor:
    if not math.isfinite(angle):
        raise ValueError(f"angle must be a finite number of degrees; got {angle!r}. For a horizontal motion use 0.")
    turn, steps = math.radians(angle), SUBPIXELS * (math.ceil(length) + 1)
    along = ((torch.arange(steps, dtype=torch.float64) + 0.5) / steps - 0.5) * length
    path = torch.stack([-math.sin(turn) * along, math.cos(turn) * along], 1)  # row, column
    return trim(_draw_path(path, math.ceil(length / 2) + 1)).contiguous()


def _draw_path(path: Tensor, half: int) -> Tensor:
    """The share of the points ``(n, 2)`` of a path in each pixel of a kernel of side ``2 half + 1``, each point shared
    by its four neighbours."""
    kernel = torch.zeros(2 * half + 1, 2 * half + 1, dtype=path.dtype)
    corner = path.floor()
    for offset in ((0, 0), (0, 1), (1, 0), (1, 1)):
        at = corner + torch.tensor(offset)
        place = (at + half).long()
        kernel.index_put_((place[:, 0], place[:, 1]), (1 - (path - at).abs()).prod(1), accumulate=True)
    return kernel / kernel.sum()


def trim(kernel: Tensor) -> Tensor:
    """Return a kernel ``(..., k, l)`` without its border of zeros, as far as that is symmetric about the centre."""
    for dim in (-2, -1):
        half = kernel.shape[dim] // 2
        used = (kernel.movedim(dim, 0).flatten(1).abs() > 1e-15).any(1).nonzero().flatten()
        reach = int((used - half).abs().max())
        kernel = kernel.narrow(dim, half - reach, 2 * reach + 1)
    return kernel


def _check_odd(size: int) -> int:
    if not isinstance(size, Integral) or size < 3 or size % 2 == 0:
        raise ValueError(f"kernel_size must be an odd integer of at least 3; got {size!r}. For 60, say, use 61.")
    return int(size)
