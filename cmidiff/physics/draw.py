"""The masks, kernels and signs of the named tasks: drawn on the CPU from their own generator, so a seed means the same
everywhere.

Nothing here touches torch's global generator. Draws are in float64, so that the precision asked of the physics changes
nothing but the rounding.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cmidiff.physics.check import Shape, checked_fraction, checked_odd, checked_seed, checked_shape

STROKES = 10_000  # of a mask of scratches, at most


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(checked_seed(seed))


def _pair(name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(n, int) and n >= least for n in pair):
        raise ValueError(f"{name} must be one or two integers of at least {least} (height, width); got {value!r}.")
    return pair[0], pair[1]


def box_mask(
    shape: Shape, *, size: int | Sequence[int] | None = None, position: Sequence[int] | None = None, seed: int = 0
) -> Tensor:
    """A mask that hides one rectangle, 0 there and 1 elsewhere.

    Args:
        shape: ``(C, H, W)``, pixels.
        size: height and width of the rectangle, pixels; one number for a square; ``None``: half of each side.
        position: top and left, pixels; ``None``: uniform from ``seed``, at least a sixteenth of the side away from the
            border where there is room (the rule of the DPS code at 256 pixels, box 128).
        seed: of the position.

    Returns:
        ``(1, 1, H, W)``, float64.

    Raises:
        ValueError: if the rectangle does not fit, or hides everything.
    """
    _, *sides = checked_shape(shape)
    box = _pair("size", size, 1) if size is not None else (max(1, sides[0] // 2), max(1, sides[1] // 2))
    if position is None:
        generator = _generator(seed)
        corner = tuple(_box_start(n, b, generator) for n, b in zip(sides, box, strict=True))
    else:
        corner = _pair("position", position, 0)
    if any(c + b > n for c, b, n in zip(corner, box, sides, strict=True)) or list(box) == sides:
        raise ValueError(
            f"The hidden box must lie inside the image and leave some of it; got size {box} at {corner} in an image of "
            f"{sides[0]}x{sides[1]}. Choose a smaller size or another position."
        )
    mask = torch.ones(1, 1, *sides, dtype=torch.float64)
    mask[..., corner[0] : corner[0] + box[0], corner[1] : corner[1] + box[1]] = 0
    return mask


def _box_start(side: int, box: int, generator: torch.Generator) -> int:
    if box > side:
        return 0
    margin = min(side // 16, (side - box) // 2)
    return int(torch.randint(margin, side - box - margin + 1, (), generator=generator))


def random_mask(shape: Shape, *, hidden: float = 0.9, seed: int = 0) -> Tensor:
    """A mask that hides exactly ``round(hidden H W)`` pixels, all channels together, chosen without replacement.

    Args:
        shape: ``(C, H, W)``, pixels.
        hidden: fraction of pixels that are not measured, in [0, 1).
        seed: of the choice.

    Returns:
        ``(1, 1, H, W)``, float64: 1 where measured.

    Raises:
        ValueError: for a fraction outside of [0, 1), or one that leaves no pixel.
    """
    _, height, width = checked_shape(shape)
    hidden = checked_fraction("hidden", hidden, least=0, most=1, open_end=True)
    count = round(hidden * height * width)
    if count == height * width:
        raise ValueError(f"hidden={hidden} leaves no pixel of a {height}x{width} image. Hide a smaller fraction.")
    mask = torch.ones(height * width, dtype=torch.float64)
    mask[torch.randperm(height * width, generator=_generator(seed))[:count]] = 0
    return mask.reshape(1, 1, height, width)


def scratch_mask(shape: Shape, *, hidden: float = 0.04, width: float = 2.0, seed: int = 0) -> Tensor:
    """A mask of thin random strokes, as scratches on a photograph: gently curved lines at random places.

    Strokes are added until at least the fraction ``hidden`` is covered; the last one is cut where that is reached, so
    the fraction is exact.

    Args:
        shape: ``(C, H, W)``, pixels.
        hidden: fraction of pixels that are not measured, in (0, 1).
        width: of a stroke, pixels, at least 1.
        seed: of the strokes.

    Returns:
        ``(1, 1, H, W)``, float64: 1 where measured.

    Raises:
        ValueError: for a fraction outside of (0, 1) or one that hides no pixel or all, or a width below 1.
    """
    _, height, width_of_image = checked_shape(shape)
    count = round(checked_fraction("hidden", hidden, least=0, most=1) * height * width_of_image)
    if not 0 < count < height * width_of_image:
        raise ValueError(
            f"hidden={hidden} must hide some pixels and not all; it hides {count} of a {height}x{width_of_image} image."
        )
    if not (math.isfinite(width) and width >= 1):
        raise ValueError(f"width must be a number of pixels of at least 1; got {width!r}.")
    generator = _generator(seed)
    hidden_pixels: dict[int, None] = {}  # a set that keeps its order
    for _ in range(STROKES):
        path = _stroke(height, width_of_image, generator)
        hidden_pixels |= dict.fromkeys(_around(path, width / 2, height, width_of_image))
        if len(hidden_pixels) >= count:
            mask = torch.ones(height * width_of_image, dtype=torch.float64)
            mask[torch.tensor(list(hidden_pixels)[:count])] = 0
            return mask.reshape(1, 1, height, width_of_image)
    raise ValueError(f"hidden={hidden} is too much for {STROKES} strokes of width {width}. Use a larger width.")


def _around(path: Tensor, radius: float, height: int, width: int) -> list[int]:
    """Indices of the pixels whose centre is within ``radius`` of a point of ``path`` ``(n, 2)``, in its order."""
    reach = math.ceil(radius)
    offset = torch.arange(-reach, reach + 1, dtype=torch.float64)
    offsets = torch.cartesian_prod(offset, offset)
    pixels = path.floor()[:, None] + offsets
    near = (pixels + 0.5 - path[:, None]).square().sum(-1) <= radius**2
    inside = (pixels >= 0).all(-1) & (pixels[..., 0] < height) & (pixels[..., 1] < width)
    chosen = pixels[near & inside].long()
    return (chosen[:, 0] * width + chosen[:, 1]).tolist()


def _stroke(height: int, width: int, generator: torch.Generator) -> Tensor:
    """Points ``(n, 2)``, half a pixel apart, of a line that bends slowly; its length is a quarter to the whole of the
    image's larger side."""
    row, column, heading, length, bend = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    steps = int(2 * max(height, width) * (0.25 + 0.75 * length))
    angle = 2 * math.pi * heading + torch.linspace(0, (bend - 0.5) * math.pi / 2, steps, dtype=torch.float64)
    start = torch.tensor([row * height, column * width], dtype=torch.float64)
    return start + 0.5 * torch.stack([angle.sin(), angle.cos()], 1).cumsum(0)


def gaussian_kernel(*, kernel_size: int = 61, std: float = 3.0) -> Tensor:
    """A Gaussian blur kernel, cut off at four standard deviations as ``scipy.ndimage.gaussian_filter`` does; sum 1.

    With (61, 3.0) it is the kernel of the DPS code (Chung et al., Diffusion Posterior Sampling for General Noisy
    Inverse Problems, 2023, https://arxiv.org/abs/2209.14687); the CMI paper uses (61, 5.0).

    Args:
        kernel_size: side, pixels, odd.
        std: standard deviation, pixels, positive.

    Returns:
        ``(kernel_size, kernel_size)``, float64.

    Raises:
        ValueError: for an even size, or a standard deviation that is not positive and finite.
    """
    half = checked_odd("kernel_size", kernel_size) // 2
    if not (math.isfinite(std) and std > 0):
        raise ValueError(f"std must be a positive number of pixels; got {std!r}. For no blur at all use 'denoise'.")
    offset = torch.arange(-half, half + 1, dtype=torch.float64)
    profile = torch.exp(-0.5 * (offset / std) ** 2) * (offset.abs() <= int(4 * std + 0.5))
    profile = profile / profile.sum()
    return torch.outer(profile, profile)


def motion_kernel(*, kernel_size: int = 61, intensity: float = 0.5, seed: int = 0) -> Tensor:
    """The kernel of a camera that shakes during the exposure: a random path, drawn with bilinear weights; sum 1.

    The heading wanders as a Brownian motion and makes a few sudden turns; both grow with ``intensity``. The path is
    centred at its centre of mass, so that the blur moves nothing on average, and shrunk where it would leave the
    kernel. The parameter has the meaning it has in the kernels of the DPS code
    (https://github.com/LeviBorodenko/motionblur), the kernels are others.

    Args:
        kernel_size: side, pixels, odd.
        intensity: 0 (a straight line) to 1 (very shaky).
        seed: of the path.

    Returns:
        ``(kernel_size, kernel_size)``, float64.

    Raises:
        ValueError: for an even size, or an intensity outside of [0, 1].
    """
    size = checked_odd("kernel_size", kernel_size)
    intensity = checked_fraction("intensity", intensity, least=0, most=1)
    path = _shaken_path(16 * size, size, intensity, _generator(seed))
    return _drawn(path, size)


def _shaken_path(steps: int, size: int, intensity: float, generator: torch.Generator) -> Tensor:
    """Points ``(steps, 2)`` in pixels from the kernel's centre."""
    length = size * (0.5 + 0.5 * torch.rand((), generator=generator, dtype=torch.float64))
    start = 2 * math.pi * torch.rand((), generator=generator, dtype=torch.float64)
    wander = torch.randn(steps, generator=generator, dtype=torch.float64) * intensity * math.pi / math.sqrt(steps)
    jolted = torch.rand(steps, generator=generator, dtype=torch.float64) < 4 * intensity / steps
    jolt = torch.randn(steps, generator=generator, dtype=torch.float64) * intensity * math.pi / 2
    heading = start + torch.cumsum(wander + jolted * jolt, 0)
    path = torch.cumsum(torch.stack([heading.sin(), heading.cos()], 1) * length / steps, 0)
    path = path - path.mean(0)
    reach = max(size // 2 - 1, 0.5)
    return path * (reach / path.abs().max()).clamp_max(1)


def _drawn(path: Tensor, size: int) -> Tensor:
    """The share of the path's points in each pixel of a ``(size, size)`` kernel, each point shared by its four
    neighbours."""
    place = path + size // 2
    corner = place.floor()
    kernel = torch.zeros(size * size, dtype=path.dtype)
    for row in (0, 1):
        for column in (0, 1):
            at = corner + torch.tensor([row, column])
            weight = (1 - (place - at).abs()).prod(1)
            kernel.index_add_(0, (at[:, 0] * size + at[:, 1]).long(), weight)
    return (kernel / kernel.sum()).reshape(size, size)


def random_signs(shape: Shape, *, seed: int = 0) -> Tensor:
    """Independent fair signs, -1 or 1, float64, of shape ``(C, H, W)``, from ``seed``."""
    bits = torch.randint(0, 2, checked_shape(shape), generator=_generator(seed))
    return bits.double() * 2 - 1
