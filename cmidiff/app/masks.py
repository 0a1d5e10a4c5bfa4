"""Masks as people paint them, the kernel of a blur, and the overlay that shows what a mask hides.

``--mask`` marks damage: white or coloured paint on black or on nothing, or paint over a copy of the photograph.
``--seen`` marks what was measured: bright is seen. Both become one tensor of zeros (hidden) and ones (seen).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, label
from torch import Tensor

from cmidiff.app.errors import BadInput, say
from cmidiff.images import Image, UnknownRange, read_image, to_gray
from cmidiff.physics.masks import hidden_disc, hidden_fraction

PAINTED = 0.1  # a pixel with more paint than this is damaged: the soft edge of a stroke counts
COPY = 0.1  # a mask is a copy of the photograph if it explains all but this fraction of its variance in most pixels
STROKE = 0.25  # difference to the photograph that only paint makes, whatever JPEG has done to a copy
EXACT = 3 / 255  # difference to the photograph that rounding makes
RED = (1.0, 0.0, 0.0)

Bools = NDArray[np.bool_]


def seen_of(mask: Path | None, seen: Path | None, image: Image) -> Tensor | None:
    """What ``--mask`` or ``--seen`` says of an image, (1, 1, H, W), 1 where it was measured; None without both.

    Raises:
        ValueError: both were given, or a mask that cannot be used.
    """
    if mask is not None and seen is not None:
        raise BadInput("--mask (damaged pixels) and --seen (measured pixels) exclude each other: leave one of them out")
    if mask is not None:
        return read_mask(mask, image)
    return None if seen is None else read_seen(seen, image)


def read_mask(path: Path, image: Image) -> Tensor:
    """What ``--mask`` leaves seen of an image, (1, 1, H, W) of zeros and ones.

    Raises:
        BadInput: not an image, another size than ``image``, nothing is marked, or everything is.
    """
    mask = _read(path, image, "--mask")
    damaged = find_damage(mask, image)
    if not damaged.any():
        raise BadInput(
            f"the mask {path} marks nothing (its brightest value is {mask.values.max():.2g} of 1): paint what is "
            "damaged in white or in a colour, on black, on a transparent layer or on a copy of the photograph"
        )
    if damaged.all():
        raise BadInput(
            f"the mask {path} marks every pixel as damaged: black and transparent pixels are the intact ones; if "
            "bright pixels are the ones that were measured, give it with --seen"
        )
    if damaged.mean() > 0.5:
        say(
            f"note: the mask {path} marks {100 * damaged.mean():.0f}% of the pixels as damaged; if it is inverted "
            "(bright pixels were measured), give it with --seen"
        )
    return _seen(~damaged)


def find_damage(mask: Image, image: Image) -> Bools:
    """Return which pixels a mask marks as damaged, (H, W).

    Args:
        mask: white or coloured paint on black, on a transparent layer or on a copy of ``image``.
        image: the photograph, of the same size.
    """
    values, alpha = _rgb(mask), _alpha(mask)
    damaged = _painted_over(values, alpha, _rgb(image))
    return values.max(0) * alpha > PAINTED if damaged is None else damaged


def read_seen(path: Path, image: Image) -> Tensor:
    """What ``--seen`` says was measured of an image, (1, 1, H, W) of zeros and ones.

    Raises:
        BadInput: as `read_mask`.
    """
    mask = _read(path, image, "--seen")
    brightness = to_gray(mask.values)[0].numpy() * _alpha(mask)
    seen = brightness > (1 - PAINTED) * brightness.max()
    if brightness.max() < 0.5:
        raise BadInput(f"the mask {path} hides every pixel: with --seen, bright pixels are the ones that were measured")
    if seen.all():
        raise BadInput(f"the mask {path} hides nothing: with --seen, dark pixels are the ones that are missing")
    return _seen(seen)


def _read(path: Path, image: Image, option: str) -> Image:
    mask = _read_positive(path, "mask")
    if mask.values.shape[1:] != image.values.shape[1:]:
        raise BadInput(f"the mask {path} is {mask.size} but the image is {image.size}: {option} needs the same size")
    return mask


def _read_positive(path: Path, what: str) -> Image:
    """A file in which only proportions count, so that its range need not be stated."""
    try:
        return read_image(path)
    except UnknownRange as error:
        low, high = error.found
    if low < 0:
        raise BadInput(f"the {what} {path} holds negative values (from {low:g} to {high:g}): give one of values >= 0")
    return read_image(path, value_range=(0.0, high or 1.0))


def _rgb(image: Image) -> NDArray[np.float32]:
    return image.values.expand(3, -1, -1).numpy()


def _alpha(image: Image) -> NDArray[np.float32]:
    return np.ones(image.values.shape[1:], np.float32) if image.alpha is None else image.alpha[0].numpy()


def _seen(seen: Bools) -> Tensor:
    return torch.from_numpy(seen).float()[None, None]


def _painted_over(mask: NDArray[np.float32], alpha: NDArray[np.float32], photo: NDArray[np.float32]) -> Bools | None:
    """Where a copy of the photograph differs from it, or was erased; None if the mask is no copy."""
    kept = alpha > 1 - PAINTED
    difference = np.abs(mask - photo).max(0)
    typical = float(np.median(difference[kept])) if kept.any() else 1.0
    same = kept & (difference <= max(EXACT, 8 * typical))
    residual, contrast = (mask - photo)[:, same], photo[:, same]
    if same.mean() < 0.3 or not residual.var(1).sum() < COPY * contrast.var(1).sum():
        return None
    differs = difference > max(EXACT, 8 * typical)
    if typical > 0:  # saved as JPEG: only differences that hold together with a clear one are paint
        parts = np.empty(differs.shape, np.int32)
        label(differs, np.ones((3, 3)), parts)
        differs &= np.isin(parts, np.unique(parts[difference > STROKE]))
        differs = np.asarray(binary_dilation(differs, iterations=2), np.bool_)  # and JPEG blurs their edges
    return differs | ~kept


def describe_mask(seen: Tensor) -> str:
    """How much a mask hides, in words."""
    return (
        f"{100 * hidden_fraction(seen):.3g}% of the pixels are hidden; the largest hidden disc is "
        f"{hidden_disc(seen):.0f} pixels wide"
    )


def overlay(values: Tensor, seen: Tensor) -> Tensor:
    """An image (C, H, W) with its hidden pixels half red, (3, H, W)."""
    red = torch.tensor(RED)[:, None, None]
    return torch.where(seen[0] > 0, values.expand(3, -1, -1), 0.5 * values + 0.5 * red)


def read_kernel(path: Path, height: int, width: int) -> Tensor:
    """A blur kernel image as (h, w), non-negative with sum 1.

    Raises:
        BadInput: not an image, larger than the image, or black everywhere.
    """
    image = _read_positive(path, "kernel")
    kernel = to_gray(image.values) * torch.from_numpy(_alpha(image))
    if kernel.shape[1] > height or kernel.shape[2] > width:
        raise BadInput(f"the kernel {path} is {image.size}, larger than the image ({width}x{height}): crop it")
    if not kernel.sum() > 0:
        raise BadInput(f"the kernel {path} is black everywhere: it must show the path of a point of light")
    return (kernel / kernel.sum())[0]
