"""What a photograph tells of itself: its noise, how it was compressed, and how wide its blur is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PIL
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from cmidiff.images import ORIENTATION
from cmidiff.intake import ROUNDING
from cmidiff.physics import (
    Tables,
    agree,
    estimate_blur_width,
    estimate_jpeg_noise,
    estimate_noise,
    find_tables,
    jpeg_noise_std,
    jpeg_quality,
    read_tables,
    turn_tables,
)

LEAST_NOISE = 1 / 255  # what an estimate says at least: solvers take no measurement for more exact
USUAL_NOISE = 0.02  # of a good photograph, where nothing can be estimated
SMALLEST = 16  # side of an image whose noise can be estimated, pixels
DOUBTFUL, MOST_DOUBT = 1.05, 4.0  # times the found width, from where a stated one is doubted; most times the noise
STRONGER = 1.3  # times the level of JPEG artefacts, from where noise harms more
VISIBLE = 4.0  # times the level of JPEG artefacts, from where compression hides no noise, ...
SEEN = 2.0  # ... so that what is more than this many times the noise that the pixels show is texture
NOISIER = 2.0  # times the stated noise, from where an estimate is a note
MOST_HIDDEN = 0.5  # fraction of hidden pixels up to which the noise can be estimated
AUTO = "gaussian:auto"  # the kernel of a Gaussian blur whose width is found in the image


def find_noise(values: Tensor, seen: Tensor | None = None, tables: Tables | None = None) -> tuple[float, str]:
    """Find the noise of an image.

    Args:
        values: (C, H, W) in [0, 1].
        seen: (1, H, W), 0 where a mask hides the image; None: all is seen.
        tables: how it was compressed as JPEG, which hides noise; None: not.

    Returns:
        The standard deviation, and in words how it is known.
    """
    if min(values.shape[1:]) < SMALLEST:
        return USUAL_NOISE, f"noise {USUAL_NOISE:g} (the image is too small for an estimate)"
    if seen is not None and float(1 - seen.mean()) > MOST_HIDDEN:
        return USUAL_NOISE, f"noise {USUAL_NOISE:g} (too little is seen for an estimate)"
    whole = values if seen is None else _reflect_into_holes(values, seen[0] > 0)
    found, where = float(estimate_noise(whole)), "from the image"
    if tables is not None and min(values.shape[1:]) >= 2 * SMALLEST and agree(whole[None], tables):
        hidden = estimate_jpeg_noise(whole, tables)
        if found < hidden <= max(VISIBLE * jpeg_noise_std(tables), SEEN * found):
            found, where = hidden, "before its compression"
    noise = float(f"{max(LEAST_NOISE, found):.3g}")
    return noise, f"noise {noise:g} (estimated {where})"


def check_stated_noise(seen: float, noise_std: float, bits: int) -> tuple[float, tuple[str, ...], tuple[str, ...]]:
    """Compare the stated noise of a blurred image with the image, because sharpening amplifies what is not stated.

    Args:
        seen: the noise that is estimated from the image.
        noise_std: as stated. Less than the rounding of a file stands for none beyond that.
        bits: depth of the file.

    Returns:
        The noise to take; why it is not the stated one, in words; and a note where the image looks noisier.
    """
    rounding = float(f"{ROUNDING / (2**bits - 1):.3g}")
    if noise_std >= rounding:
        doubtful = seen > max(LEAST_NOISE, NOISIER * noise_std)
        note = f"the image looks noisier than stated ({seen:g}, not {noise_std:g}), and sharpening amplifies noise"
        return noise_std, (), (note,) if doubtful else ()
    if seen > LEAST_NOISE:
        return seen, (f"noise {seen:g} (estimated from the image: sharpening would amplify it)",), ()
    return rounding, (f"noise {rounding:g} (of rounding to {bits} bits, which sharpening amplifies)",), ()


def find_compression(values: Tensor, source: Path | None) -> tuple[Tables | None, str]:
    """Find how an image (C, H, W) was compressed as JPEG, by its file or by its pixels.

    Returns:
        The quantisation tables, or None without a sign of JPEG; and in words what was found.
    """
    tables, where = read_file_tables(source, values), "in its file"
    if tables is None:
        tables, where = find_tables(values), "by its pixels"
    return tables, "" if tables is None else f"task jpeg (quality {jpeg_quality(tables)}, {where})"


def read_file_tables(source: Path | None, values: Tensor) -> Tables | None:
    """The quantisation tables in a file, for its upright image (C, H, W)."""
    try:
        if source is None or (tables := read_tables(source, converted=True)) is None:
            return None
        with PIL.open(source) as file:
            orientation = file.getexif().get(ORIENTATION, 1)
    except OSError:  # no file that Pillow reads, so no JPEG
        return None
    return turn_tables(tables, orientation, (values.shape[1], values.shape[2]))


def find_width(values: Tensor, noise_std: float) -> tuple[float, str]:
    """Find the width of a Gaussian blur.

    Args:
        values: (C, H, W) in [0, 1].
        noise_std: of the noise in it.

    Returns:
        The standard deviation in pixels, and in words how it is known.

    Raises:
        ValueError: the image is too small.
    """
    width = float(f"{float(estimate_blur_width(values, noise_std)):.2g}")
    return width, f"blur gaussian:{width:g} (found in the image)"


def doubt_width(values: Tensor, width: float, noise_std: float) -> tuple[float, tuple[str, ...]]:
    """Compare the stated width of a Gaussian blur with the image.

    A kernel that is too wide sharpens too much. Where the image is less blurred than stated, more noise is to be
    assumed, by the eighth power of the ratio. That is twice as much against rings where the stated width is 15% too
    large.

    Returns:
        The noise to assume, and what was found, in words; none where the image agrees.
    """
    if min(values.shape[1:]) < 2 * SMALLEST:
        return noise_std, ()
    found, _ = find_width(values, noise_std)
    if width <= DOUBTFUL * found:
        return noise_std, ()
    more = float(f"{noise_std * min((width / found / DOUBTFUL) ** 8, MOST_DOUBT):.3g}")
    return more, (
        f"noise {more:g} against rings, because the image looks less blurred than stated (gaussian:{found:g}; "
        f"--kernel {AUTO} takes that)",
    )


def _reflect_into_holes(values: Tensor, seen: Tensor) -> Tensor:
    """An image with its hidden pixels filled by a reflection about their nearest seen pixel. This fill has the noise
    of the image, unlike a smooth one."""
    hidden = (~seen).numpy()
    nearest: Any = distance_transform_edt(hidden, return_distances=False, return_indices=True)
    sides = np.array(hidden.shape).reshape(2, 1, 1)
    opposite = np.clip(2 * nearest - np.indices(hidden.shape), 0, sides - 1)
    usable = ~hidden[opposite[0], opposite[1]]
    rows, columns = (torch.from_numpy(np.where(usable, o, n)).long() for o, n in zip(opposite, nearest, strict=True))
    return values[:, rows, columns]
