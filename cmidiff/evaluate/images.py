"""The images of a run: all of them are opened before it starts, and what it measures is kept as PNG in its folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import quote

from torch import Tensor

from cmidiff.evaluate.database import ImageRow
from cmidiff.images import Source, decode_image, read_image, square


def opened(source: Source, size: int | None, known: ImageRow | None = None) -> tuple[ImageRow, Tensor | None]:
    """An image (3, H, W) in [0, 1] and its row; a row with an error where it cannot be used.

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
        values = square(decode_image(data), size)
    except (OSError, ValueError) as error:
        message = f"the image {source.file} cannot be used: it {error}"
        return ImageRow(source.name, source.file, digest, None, None, None, message), None
    height, width = values.shape[1:]
    return ImageRow(source.name, source.file, digest, width, height, truth_path(source.name), None), values


def truth_path(name: str) -> str:
    """Where an image lies in a run's folder."""
    return f"truth/{quote(name)}.png"


def read_truth(folder: Path, row: ImageRow) -> Tensor:
    """An image of a run, (3, H, W) in [0, 1]."""
    assert row.path is not None
    return read_image(folder / row.path).values.expand(3, -1, -1)
