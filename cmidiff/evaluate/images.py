"""The images of a run: all of them are opened before it starts, and what it measures is kept as PNG in its folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from cmidiff.evaluate.database import ImageRow
from cmidiff.images import Pixels, Source, decoded


def opened(source: Source, size: int | None, known: ImageRow | None = None) -> tuple[ImageRow, Pixels | None]:
    """An image (H, W, 3) and its row; a row with an error where it cannot be used.

    Args:
        size: see `Config`.
        known: its row of an earlier call, if its PNG is in the run: a file that has not changed is not decoded again.
    """
    digest = None
    try:
        data = source.read()
        digest = hashlib.sha256(data).hexdigest()
        if known is not None and known.digest == digest:
            return known, None
        pixels = decoded(data, size)
    except (OSError, ValueError) as error:
        message = f"the image {source.file} cannot be used: {error}"
        return ImageRow(source.name, source.file, digest, None, None, None, message), None
    height, width = pixels.shape[:2]
    return ImageRow(source.name, source.file, digest, width, height, truth_path(source.name), None), pixels


def truth_path(name: str) -> str:
    """Where an image lies in a run's folder."""
    return f"truth/{quote(name)}.png"


def read_truth(folder: Path, row: ImageRow) -> Pixels:
    """The pixels (H, W, 3) of an image of a run."""
    assert row.path is not None
    with Image.open(folder / row.path) as image:
        return np.asarray(image.convert("RGB"))
