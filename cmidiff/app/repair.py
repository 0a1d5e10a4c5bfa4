"""Painted repairs: only the painted pixels of a photograph change.

The restoration computes the paint and its surroundings, at a lower resolution if they are large. `put_back` returns it
to its place in the whole photograph. `cmidiff.app.unpainted` makes the border of the paint invisible.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from cmidiff.app.errors import BadInput
from cmidiff.app.masks import PAINTED
from cmidiff.app.unpainted import WIDTH, keep_unpainted
from cmidiff.images import Image

MARGIN = 48  # pixels of the photograph around the paint that the restoration sees


def fit_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the painted pixels of a photograph, (1, H, W), boolean.

    Args:
        mask: (1, h, w) in [0, 1], 1 where there is paint.
        size: (H, W).

    Raises:
        BadInput: nothing or everything is painted, or the mask has another shape.
    """
    rows, columns = mask.shape[1:]
    if abs(rows * size[1] - columns * size[0]) > size[0] + size[1] + rows + columns:
        raise BadInput(
            f"The mask has {columns} x {rows} pixels and the photograph {size[1]} x {size[0]}: give a mask of the "
            "photograph's size."
        )
    painted = interpolate(mask[None], size=size, mode="bilinear", antialias=True)[0] > PAINTED
    if bool(painted.all()) or not bool(painted.any()):
        found = "Everything is" if bool(painted.all()) else "Nothing is"
        raise BadInput(f"{found} marked as damaged. White or coloured pixels of a mask mean damaged, black ones sound.")
    return painted


@dataclass(frozen=True)
class Region:
    """The part of a photograph that a repair computes: its borders in pixels."""

    top: int
    bottom: int
    left: int
    right: int

    def crop(self, x: Tensor) -> Tensor:
        """Return the region of (C, H, W)."""
        return x[:, self.top : self.bottom, self.left : self.right]


def whole(painted: Tensor) -> Region:
    """Return the whole of an image (1, H, W)."""
    return Region(0, painted.shape[1], 0, painted.shape[2])


def region_of(painted: Tensor, margin: int = MARGIN) -> Region:
    """Return the smallest region that holds all paint, with a margin.

    Args:
        painted: (1, H, W), true where there is paint; at least one pixel is.
        margin: in pixels.
    """
    _, height, width = painted.shape
    rows, columns = (painted[0].any(dim).nonzero().flatten() for dim in (1, 0))
    return Region(
        max(0, int(rows[0]) - margin),
        min(height, int(rows[-1]) + 1 + margin),
        max(0, int(columns[0]) - margin),
        min(width, int(columns[-1]) + 1 + margin),
    )


def put_back(photograph: Image, restored: Tensor, painted: Tensor, region: Region) -> Image:
    """Replace the painted pixels of a photograph; they become opaque.

    Args:
        photograph: (C, H, W) in [0, 1].
        restored: the restoration of the region, (C, h, w), at any resolution.
        painted: (1, H, W), true where there is paint.
        region: where ``restored`` belongs.

    Returns:
        The photograph, bit for bit outside of the paint.
    """
    old, hidden = region.crop(photograph.values), region.crop(painted)
    scale = max(1.0, old.shape[2] / restored.shape[2])
    new = restored[None] if scale == 1 else interpolate(restored[None], size=old.shape[1:], mode="bicubic")
    new = keep_unpainted(new[0].clamp(0, 1), old, (~hidden).float(), width=WIDTH * scale)
    values = photograph.values.clone()
    region.crop(values).copy_(new.clamp(0, 1))
    alpha = None if photograph.alpha is None else torch.where(painted, torch.ones(1), photograph.alpha)
    return replace(photograph, values=values, alpha=alpha)
