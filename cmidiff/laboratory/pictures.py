"""Pictures for the embedded prior: crops of the embedded photograph, or the user's own folder or tar file."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIDE = 64
PHOTOGRAPH = Path(__file__).resolve().parent.parent / "assets" / "plane.png"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")


def pictures(source: Path | None, count: int) -> Tensor:
    """``count`` pictures or fewer, shape (N, 3, 64, 64), in [-1, 1].

    Args:
        source: a folder, searched to its depths, or a tar file: pictures at even distances in the order of their names,
            each cropped to a square and shrunk; None: overlapping crops of the embedded photograph.
        count: how many at most.

    Raises:
        ValueError: for a source without pictures.
    """
    if source is None:
        whole = Image.open(PHOTOGRAPH).convert("RGB")
        corners = [(i * (whole.width - SIDE) // 2, j * (whole.height - SIDE) // 2) for i in range(3) for j in range(3)]
        images = [whole.crop((x, y, x + SIDE, y + SIDE)) for x, y in corners][::2][:count]
    else:
        images = list(_chosen(source, count))
    if not images:
        raise ValueError(f"no pictures in {source}: give a folder or a tar file of {', '.join(SUFFIXES)}")
    stack = np.stack([np.asarray(_square(image), dtype=np.float32) for image in images])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous() / 127.5 - 1


def _chosen(source: Path, count: int) -> Iterator[Image.Image]:
    if source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
        for path in paths[:: max(1, len(paths) // count)][:count]:
            yield Image.open(path).convert("RGB")
        return
    if not source.is_file() or not tarfile.is_tarfile(source):
        return
    with tarfile.open(source) as archive:
        names = sorted(member.name for member in archive if Path(member.name).suffix.lower() in SUFFIXES)
        for name in names[:: max(1, len(names) // count)][:count]:
            file = archive.extractfile(name)
            assert file is not None
            yield Image.open(io.BytesIO(file.read())).convert("RGB")


def _square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)
