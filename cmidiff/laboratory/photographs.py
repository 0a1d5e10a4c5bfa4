"""Images for the embedded prior: crops of the embedded photograph, or the user's own folder or tar file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cmidiff.images import read_image
from cmidiff.sources import list_sources, read_source

SIDE = 64
PHOTOGRAPH = Path(__file__).resolve().parent.parent / "assets" / "plane.png"


def load_images(source: Path | None, count: int) -> Tensor:
    """Load ``count`` images or fewer, shape (N, 3, 64, 64), in [-1, 1].

    Args:
        source: a folder, searched with its sub-folders, or a tar file. Images are taken at even distances in the order
            of their names, each cropped to a square and shrunk. None: overlapping crops of the embedded photograph.
        count: how many at most.
    """
    if source is None:
        whole = read_image(PHOTOGRAPH).values
        height, width = whole.shape[1:]
        corners = [(i * (width - SIDE) // 2, j * (height - SIDE) // 2) for i in range(3) for j in range(3)]
        images = [whole[:, y : y + SIDE, x : x + SIDE] for x, y in corners][::2][:count]
    else:
        found = list_sources(source)
        images = [read_source(one, SIDE) for one in found[:: max(1, len(found) // count)][:count]]
    return 2 * torch.stack(images) - 1
