"""The masks and signs of the named tasks, and facts about masks.

Each is drawn on the CPU in float64 from its own generator, so a seed means the same everywhere. The precision of the
physics changes the rounding only. A mask is ``(1, 1, H, W)``: 1 where a pixel is measured, 0 where it is hidden.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from cmidiff.physics.check import Shape, check_fraction, check_shape, make_generator

STROKES = 10_000  # of a mask of scratches, at most


def box_mask(
    shape: Shape, *, size: int | Sequence[int] | None = None, position: Sequence[int] | None = None, seed: int = 0
) -> Tensor:
    """Hide one rectangle.

    Args:
        shape: ``(C, H, W)``, pixels.
        size: height and width of the rectangle, pixels; one number for a square; ``None``: half of each side.
        position: top and left, pixels. ``None``: uniform from ``seed``, at least a sixteenth of the side away from the
            border where there is room. This is the rule of the DPS code at 256 pixels, box 128.
        seed: of the position.

    Raises:
        ValueError: if the rectangle does not fit, or hides everything.
    """
    _, *sides = check_shape(shape)
    box = _pair("size", size, 1) if size is not None else (max(1, sides[0] // 2), max(1, sides[1] // 2))
    if position is None:
        generator = make_generator(seed)
        corner = tuple(_draw_start(n, b, generator) for n, b in zip(sides, box, strict=True))
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


def _pair(name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(n, int) and n >= least for n in pair):
        raise ValueError(f"{name} must be one or two integers of at least {least} (height, width); got {value!r}.")
    return pair[0], pair[1]


def _draw_start(side: int, box: int, generator: torch.Generator) -> int:
    if box > side:
        return 0
    margin = min(side // 16, (side - box) // 2)
    return int(torch.randint(margin, side - box - margin + 1, (), generator=generator))


def random_mask(shape: Shape, *, hidden: float = 0.9, seed: int = 0) -> Tensor:
    """Hide exactly ``round(hidden H W)`` pixels, all channels together, chosen without replacement.

    Args:
        shape: ``(C, H, W)``, pixels.
        hidden: fraction of pixels that are not measured, in [0, 1).
        seed: of the choice.

    Raises:
        ValueError: for a fraction outside of [0, 1), or one that leaves no pixel.
    """
    _, height, width = check_shape(shape)
    hidden = check_fraction("hidden", hidden, least=0, most=1, open_end=True)
    count = round(hidden * height * width)
    if count == height * width:
        raise ValueError(f"hidden={hidden} leaves no pixel of a {height}x{width} image. Hide a smaller fraction.")
    return _hide(torch.randperm(height * width, generator=make_generator(seed))[:count], height, width)


def scratch_mask(shape: Shape, *, hidden: float = 0.04, width: float = 2.0, seed: int = 0) -> Tensor:
    """Hide thin random strokes, as scratches on a photograph: gently curved lines at random places.

    Strokes are added until at least the fraction ``hidden`` is covered; the last one is cut where that is reached, so
    the fraction is exact.

    Args:
        shape: ``(C, H, W)``, pixels.
        hidden: fraction of pixels that are not measured, in (0, 1).
        width: of a stroke, pixels, at least 1.
        seed: of the strokes.

    Raises:
        ValueError: for a fraction outside of (0, 1) or one that hides no pixel or all, or a width below 1.
    """
    _, rows, columns = check_shape(shape)
    count = round(check_fraction("hidden", hidden, least=0, most=1) * rows * columns)
    if not 0 < count < rows * columns:
        raise ValueError(
            f"hidden={hidden} must hide some pixels and not all; it hides {count} of a {rows}x{columns} image."
        )
    if not (math.isfinite(width) and width >= 1):
        raise ValueError(f"width must be a number of pixels of at least 1; got {width!r}.")
    generator = make_generator(seed)
    pixels: dict[int, None] = {}  # a set that keeps its order
    for _ in range(STROKES):
        pixels |= dict.fromkeys(_find_pixels(_draw_stroke(rows, columns, generator), width / 2, rows, columns))
        if len(pixels) >= count:
            return _hide(torch.tensor(list(pixels)[:count]), rows, columns)
    raise ValueError(f"hidden={hidden} is too much for {STROKES} strokes of width {width}. Use a larger width.")


def _hide(pixels: Tensor, height: int, width: int) -> Tensor:
    mask = torch.ones(height * width, dtype=torch.float64)
    mask[pixels] = 0
    return mask.reshape(1, 1, height, width)


def _find_pixels(path: Tensor, radius: float, height: int, width: int) -> list[int]:
    """Indices of the pixels whose centre is within ``radius`` of a point of ``path`` ``(n, 2)``, in its order."""
    reach = math.ceil(radius)
    offset = torch.arange(-reach, reach + 1, dtype=torch.float64)
    pixels = path.floor()[:, None] + torch.cartesian_prod(offset, offset)
    near = (pixels + 0.5 - path[:, None]).square().sum(-1) <= radius**2
    inside = (pixels >= 0).all(-1) & (pixels[..., 0] < height) & (pixels[..., 1] < width)
    chosen = pixels[near & inside].long()
    return (chosen[:, 0] * width + chosen[:, 1]).tolist()


def _draw_stroke(height: int, width: int, generator: torch.Generator) -> Tensor:
    """Points ``(n, 2)``, half a pixel apart, of a line that bends slowly; its length is a quarter to the whole of the
    image's larger side."""
    row, column, heading, length, bend = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    steps = int(2 * max(height, width) * (0.25 + 0.75 * length))
    angle = 2 * math.pi * heading + torch.linspace(0, (bend - 0.5) * math.pi / 2, steps, dtype=torch.float64)
    start = torch.tensor([row * height, column * width], dtype=torch.float64)
    return start + 0.5 * torch.stack([angle.sin(), angle.cos()], 1).cumsum(0)


def random_signs(shape: Shape, *, seed: int = 0) -> Tensor:
    """Draw independent fair signs, -1 or 1, float64, of shape ``(C, H, W)``, from ``seed``."""
    return torch.randint(0, 2, check_shape(shape), generator=make_generator(seed)).double() * 2 - 1


def hidden_fraction(mask: Tensor) -> float:
    """Compute the fraction of hidden pixels of a mask of shape (..., H, W); positive values are seen."""
    return float((mask <= 0).double().mean())


def hidden_disc(mask: Tensor) -> float:
    """Compute the diameter in pixels of the largest disc of hidden pixels.

    Args:
        mask: (..., H, W); positive values are seen. A pixel is hidden if no channel or batch entry sees it.

    Returns:
        ``2 d - 1``, ``d`` the largest distance from the centre of a hidden pixel to that of the nearest seen one: 1 for
        a single pixel or a line one pixel wide, 0 if nothing is hidden, infinity if nothing is seen. Beyond the border
        of the image nothing is seen and nothing is hidden.
    """
    height, width = mask.shape[-2:]
    hidden = (mask.detach().cpu().reshape(-1, height, width) <= 0).all(0).numpy()
    if hidden.all():
        return float("inf")
    return max(0.0, 2 * float(np.asarray(distance_transform_edt(hidden)).max()) - 1)
