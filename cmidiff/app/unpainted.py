"""Pixels that a mask leaves unpainted belong to the person: they stay as they are.

A restoration ``x`` of the painted pixels differs from the photograph ``p`` along the border of the paint, because noise
is removed on both sides of it. With ``m`` (1 unpainted, 0 painted) and a Gaussian ``G`` of a few pixels, the offset at
the border continues into the paint and fades there:

    painted      x + min(1, 2 G m) * G(m (p - x)) / (G m)
    unpainted    p

``G m`` is 1/2 at a straight border, where the whole offset is added, and 0 far inside, where ``x`` is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

WIDTH = 2.0  # pixels, standard deviation of G


def keep_unpainted(x: Tensor, photograph: Tensor, seen: Tensor, *, width: float = WIDTH) -> Tensor:
    """Return the restoration of the painted pixels in the photograph.

    Args:
        x: the restoration, (C, H, W).
        photograph: (C, H, W).
        seen: (1, H, W), 1 where nothing is painted, 0 where there is paint.
        width: standard deviation of G, in pixels.

    Returns:
        (C, H, W), equal to the photograph where nothing is painted.
    """
    seen = seen.to(x)
    weight, offset = _smooth(seen, width), _smooth(seen * (photograph - x), width)
    blended = x + (2 * weight).clamp_max(1) * offset / weight.clamp_min(1e-6)
    return torch.where(seen > 0, photograph, blended)


def _smooth(x: Tensor, width: float) -> Tensor:
    """``G x`` of each channel, nothing being beyond the border."""
    reach = round(4 * width)
    place = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    row = torch.exp(-0.5 * (place / width) ** 2)
    row = row / row.sum()
    wide = conv2d(pad(x[:, None], (reach, reach, 0, 0)), row[None, None, None, :])
    return conv2d(pad(wide, (0, 0, reach, reach)), row[None, None, :, None])[:, 0]
