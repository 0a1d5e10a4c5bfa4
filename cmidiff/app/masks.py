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

from cmidiff.app.errors import say
from cmidiff.images import Image, UnknownRange, read_image, to_gray
from cmidiff.physics import hidden_disc, hidden_fraction, parse_kernel

PAINTED = 0.1  # a pixel with more paint than this is damaged: the soft edge of a stroke counts
COPY = 0.1  # a mask is a copy of the photograph if it explains all but this fraction of its variance in most pixels
STROKE = 0.25  # difference to the photograph that only paint makes, whatever JPEG has done to a copy
EXACT = 3 / 255  # difference to the photograph that rounding makes
RED = torch.tensor([1.0, 0.0, 0.0])[:, None, None]

Bools = NDArray[np.bool_]


def read_mask(path: Path, image: Image) -> Tensor:
    """Return what ``--mask`` leaves seen of an image, (1, 1, H, W) of zeros and ones."""
    mask = _read(path, image, "--mask")
    damaged = find_damage(mask, image)
    if not damaged.any():
        raise ValueError(
            f"the mask {path} marks nothing (its brightest value is {mask.values.max():.2g} of 1): paint what is "
            "damaged in white or in a colour, on black, on a transparent layer or on a copy of the photograph"
        )
    if damaged.all():
        raise ValueError(
            f"the mask {path} marks every pixel as damaged: black and transparent pixels are the intact ones; if "
            "bright pixels are the ones that were measured, give it with --seen"
        )
    if damaged.mean() > 0.5:
        say(
            f"note: the mask {path} marks {100 * damaged.mean():.0f}% of the pixels as damaged; if it is inverted "
            "(bright pixels were measured), give it with --seen"
        )
    return torch.from_numpy(~damaged).float()[None, None]


def read_seen(path: Path, image: Image) -> Tensor:
    """Return what ``--seen`` says was measured of an image, (1, 1, H, W) of zeros and ones."""
    mask = _read(path, image, "--seen")
    brightness = to_gray(mask.values)[0].numpy() * _alpha(mask)
    seen = brightness > (1 - PAINTED) * brightness.max()
    if brightness.max() < 0.5:
        raise ValueError(
            f"the mask {path} hides every pixel: with --seen, bright pixels are the ones that were measured"
        )
    if seen.all():
        raise ValueError(f"the mask {path} hides nothing: with --seen, dark pixels are the ones that are missing")
    return torch.from_numpy(seen).float()[None, None]


def read_kernel(path: Path, height: int, width: int) -> Tensor:
    """Return a blur kernel, (h, w), non-negative with sum 1: of an image, or of a specification as ``gaussian:1.5``."""
    if ":" in str(path) and not path.exists():
        return parse_kernel(str(path))
    image = _read_proportions(path, "kernel")
    kernel = to_gray(image.values) * torch.from_numpy(_alpha(image))
    if kernel.shape[1] > height or kernel.shape[2] > width:
        raise ValueError(f"the kernel {path} is {image.size}, larger than the image ({width}x{height}): crop it")
    if not kernel.sum() > 0:
        raise ValueError(f"the kernel {path} is black everywhere: it must show the path of a point of light")
    return (kernel / kernel.sum())[0]


def find_damage(mask: Image, image: Image) -> Bools:
    """Return which pixels a mask marks as damaged, (H, W). It has the size of the photograph ``image``: paint on
    black, on a transparent layer or on a copy of it."""
    values, alpha = mask.values.expand(3, -1, -1).numpy(), _alpha(mask)
    damaged = _compare_with_copy(values, alpha, image.values.expand(3, -1, -1).numpy())
    return values.max(0) * alpha > PAINTED if damaged is None else damaged


def _read(path: Path, image: Image, option: str) -> Image:
    mask = _read_proportions(path, "mask")
    if mask.values.shape[1:] != image.values.shape[1:]:
        raise ValueError(f"the mask {path} is {mask.size} but the image is {image.size}: {option} needs the same size")
    return mask


def _read_proportions(path: Path, what: str) -> Image:
    """A file in which only proportions count, so that its range need not be stated."""
    try:
        return read_image(path)
    except UnknownRange as error:
        low, high = error.found
    if low < 0:
        raise ValueError(f"the {what} {path} holds negative values (from {low:g} to {high:g}): give one of values >= 0")
    return read_image(path, value_range=(0.0, high or 1.0))


def _alpha(image: Image) -> NDArray[np.float32]:
    return np.ones(image.values.shape[1:], np.float32) if image.alpha is None else image.alpha[0].numpy()


def _compare_with_copy(
    mask: NDArray[np.float32], alpha: NDArray[np.float32], photo: NDArray[np.float32]
) -> Bools | None:
    """Where a copy of the photograph differs from it, or was erased; None if the mask is no copy."""
    opaque = alpha > 1 - PAINTED
    difference = np.abs(mask - photo).max(0)
    typical = float(np.median(difference[opaque])) if opaque.any() else 1.0
    same = opaque & (difference <= max(EXACT, 8 * typical))
    residual, contrast = (mask - photo)[:, same], photo[:, same]
    if same.mean() < 0.3 or not residual.var(1).sum() < COPY * contrast.var(1).sum():
        return None
    differs = difference > max(EXACT, 8 * typical)
    if typical > 0:  # saved as JPEG: only differences that hold together with a clear one are paint
        parts = np.empty(differs.shape, np.int32)
        label(differs, np.ones((3, 3)), parts)
        differs &= np.isin(parts, np.unique(parts[difference > STROKE]))
        differs = np.asarray(binary_dilation(differs, iterations=2), np.bool_)  # and JPEG blurs their edges
    return differs | ~opaque


def describe_mask(seen: Tensor) -> str:
    """Return in words how much a mask hides."""
    return (
        f"{100 * hidden_fraction(seen):.3g}% of the pixels are hidden; the largest hidden disc is "
        f"{hidden_disc(seen):.0f} pixels wide"
    )


def overlay(values: Tensor, seen: Tensor) -> Tensor:
    """Return an image (C, H, W) with its hidden pixels half red, (3, H, W)."""
    return torch.where(seen[0] > 0, values.expand(3, -1, -1), 0.5 * values + 0.5 * RED)
