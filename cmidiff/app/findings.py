"""What a photograph says of itself, so that the user need not: its noise, and how it was compressed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from cmidiff.physics import Tables, estimate_blur_width, estimate_noise, find_tables, jpeg_quality, read_tables

LEAST_NOISE = 1 / 255  # what an estimate says at least: solvers take no measurement for more exact
USUAL_NOISE = 0.02  # of a good photograph, where nothing can be estimated
SMALLEST = 16  # side of an image whose noise can be estimated, pixels
DOUBTFUL, MOST_DOUBT = 1.15, 1.6  # times the found width: from where a stated one is doubted, and at most how much
MOST_HIDDEN = 0.5  # fraction of hidden pixels up to which the noise can be estimated


def find_noise(values: Tensor, seen: Tensor | None = None) -> tuple[float, str]:
    """Find the noise of an image.

    Args:
        values: (C, H, W) in [0, 1].
        seen: (1, H, W), 0 where a mask hides the image; None: all is seen.

    Returns:
        The standard deviation, and in words how it is known.
    """
    if min(values.shape[1:]) < SMALLEST:
        return USUAL_NOISE, f"noise {USUAL_NOISE:g} (the image is too small for an estimate)"
    if seen is not None and float(1 - seen.mean()) > MOST_HIDDEN:
        return USUAL_NOISE, f"noise {USUAL_NOISE:g} (too little is seen for an estimate)"
    whole = values if seen is None else _mirrored(values, seen[0] > 0)
    noise = float(f"{max(LEAST_NOISE, float(estimate_noise(whole))):.3g}")
    return noise, f"noise {noise:g} (estimated from the image)"


def find_compression(values: Tensor, source: Path | None) -> tuple[Tables | None, str]:
    """Find how an image was compressed as JPEG, by its file or by its pixels.

    Args:
        values: (C, H, W) in [0, 1].
        source: its file, if it has one.

    Returns:
        The quantisation tables, or None without a sign of JPEG; and in words what was found.
    """
    tables, where = _tables_in(source), "in its file"
    if tables is None:
        tables, where = find_tables(values), "by its pixels"
    if tables is None:
        return None, ""
    return tables, f"task jpeg (quality {jpeg_quality(tables)}, {where})"


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

    A kernel that is too wide sharpens too much. Where the image is less blurred than stated, by more than the usual
    error of an estimate, more noise is to be assumed: the cube of the ratio keeps rings away.

    Returns:
        The noise to assume, and what was found, in words; none where the image agrees.
    """
    if min(values.shape[1:]) < 2 * SMALLEST:
        return noise_std, ()
    found, _ = find_width(values, noise_std)
    if width <= DOUBTFUL * found:
        return noise_std, ()
    more = float(f"{noise_std * min(width / found, MOST_DOUBT) ** 3:.3g}")
    return more, (
        f"noise {more:g} against rings, because the image looks less blurred than stated (gaussian:{found:g}; "
        "--kernel gaussian:auto takes that)",
    )


def _tables_in(source: Path | None) -> Tables | None:
    try:
        return None if source is None else read_tables(source)
    except OSError:  # no file that Pillow reads, so no JPEG
        return None


def _mirrored(values: Tensor, seen: Tensor) -> Tensor:
    """An image with its hidden pixels filled by a reflection about their nearest seen pixel: a fill that has the noise
    of the image, unlike a smooth one."""
    hidden = (~seen).numpy()
    nearest = np.empty((2, *hidden.shape), np.int32)
    distance_transform_edt(hidden, return_distances=False, return_indices=True, indices=nearest)
    here = np.indices(hidden.shape)
    sides = np.array(hidden.shape).reshape(2, 1, 1)
    opposite = np.clip(2 * nearest - here, 0, sides - 1)
    usable = ~hidden[opposite[0], opposite[1]]
    rows, columns = (torch.from_numpy(np.where(usable, o, n)).long() for o, n in zip(opposite, nearest, strict=True))
    return values[:, rows, columns]
