"""Files that are there as a whole or not at all, and pictures as the bytes of a PNG."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor


def write(path: Path, data: bytes) -> None:
    """Write a file so that no reader, and no kill at any moment, ever sees a part of it.

    Raises:
        OSError: as when the disk is full; nothing is left behind then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def png(picture: Tensor) -> bytes:
    """The PNG of a picture (1 | 3, H, W) in [0, 1], eight bits, clipped."""
    values = (picture.detach().cpu().double().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return _encoded(Image.fromarray(values[..., 0] if values.shape[2] == 1 else values))


def std_png(std: Tensor) -> bytes:
    """The PNG of a map of standard deviations (C, H, W): the mean over the channels, 16 bits, 65535 being 1."""
    values = (std.detach().cpu().double().mean(0).clamp(0, 1) * 65535).round().numpy().astype(np.uint16)
    return _encoded(Image.fromarray(values))


def _encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
