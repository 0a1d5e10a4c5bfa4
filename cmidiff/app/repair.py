"""Painted repairs: only the painted pixels of a photograph change.

The restoration computes the paint and its surroundings, at a lower resolution if they are large. A restoration ``x`` of
the painted pixels differs from the photograph ``p`` along the border of the paint. The reason is that noise is removed
on both sides of it. Let ``m`` be 1 on unpainted pixels and 0 on painted ones, and ``G`` a Gaussian of a few pixels. The
offset at the border continues into the paint and fades there:

    painted      x + min(1, 2 G m) * G(m (p - x)) / (G m)
    unpainted    p

``G m`` is 1/2 at a straight border, where the whole offset is added, and 0 far inside, where ``x`` is unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate

from cmidiff.app.masks import PAINTED
from cmidiff.images import Image

MARGIN = 48  # pixels of the photograph around the paint that the restoration sees
WIDTH = 2.0  # pixels, standard deviation of G


def fit_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the painted pixels of a photograph of ``size = (H, W)``, (1, H, W), boolean; ``mask`` (1, h, w) is 1
    where there is paint."""
    rows, columns = mask.shape[1:]
    if abs(rows * size[1] - columns * size[0]) > size[0] + size[1] + rows + columns:
        raise ValueError(
            f"The mask has {columns} x {rows} pixels and the photograph {size[1]} x {size[0]}: give a mask of the "
            "photograph's size."
        )
    painted = interpolate(mask[None], size=size, mode="bilinear", antialias=True)[0] > PAINTED
    if bool(painted.all()) or not bool(painted.any()):
        found = "Everything is" if bool(painted.all()) else "Nothing is"
        raise ValueError(
            f"{found} marked as damaged. White or coloured pixels of a mask mean damaged, black ones sound."
        )
    return painted


@dataclass(frozen=True)
class Region:
    """The part of a photograph that a repair computes: its rows and columns."""

    rows: slice
    columns: slice

    @classmethod
    def around(cls, painted: Tensor, margin: int = MARGIN) -> Region:
        """Return the smallest region that holds all paint of a mask (1, H, W), with a margin in pixels."""
        found = []
        for dim, side in ((1, painted.shape[1]), (0, painted.shape[2])):
            used = painted[0].any(dim).nonzero().flatten()
            found.append(slice(max(0, int(used[0]) - margin), min(side, int(used[-1]) + 1 + margin)))
        return cls(*found)

    def crop(self, x: Tensor) -> Tensor:
        """Return the region of (C, H, W)."""
        return x[:, self.rows, self.columns]


WHOLE = Region(slice(None), slice(None))


def put_back(photograph: Image, restored: Tensor, painted: Tensor, region: Region = WHOLE) -> Image:
    """Replace the painted pixels of a photograph, which become opaque; all others stay bit for bit.

    Args:
        photograph: (C, H, W) in [0, 1].
        restored: the restoration of the ``region``, (C, h, w), at any resolution.
        painted: (1, H, W), true where there is paint.
    """
    old, hidden = region.crop(photograph.values), region.crop(painted)
    scale = max(1.0, old.shape[2] / restored.shape[2])
    new = restored[None] if scale == 1 else interpolate(restored[None], size=old.shape[1:], mode="bicubic")
    new = keep_unpainted(new[0].clamp(0, 1), old, (~hidden).float(), width=WIDTH * scale)
    values = photograph.values.clone()
    region.crop(values).copy_(new.clamp(0, 1))
    alpha = None if photograph.alpha is None else torch.where(painted, torch.ones(1), photograph.alpha)
    return replace(photograph, values=values, alpha=alpha)


def keep_unpainted(x: Tensor, photograph: Tensor, seen: Tensor, *, width: float = WIDTH) -> Tensor:
    """Return the restoration ``x`` of the painted pixels in the photograph, both (C, H, W). ``seen`` (1, H, W) is 1
    where nothing is painted; ``width`` is the standard deviation of G in pixels."""
    seen = seen.to(x)
    weight, offset = _smooth(seen, width), _smooth(seen * (photograph - x), width)
    blended = x + (2 * weight).clamp_max(1) * offset / weight.clamp_min(1e-6)
    return torch.where(seen > 0, photograph, blended)


def _smooth(x: Tensor, width: float) -> Tensor:
    """``G x`` of each channel, nothing being beyond the border."""
    reach = round(4 * width)
    place = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    row = torch.softmax(-0.5 * (place / width) ** 2, 0)
    wide = conv2d(x[:, None], row[None, None, None, :], padding=(0, reach))
    return conv2d(wide, row[None, None, :, None], padding=(reach, 0))[:, 0]
