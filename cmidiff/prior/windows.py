"""Overlapping tiles along one axis: where they begin, and the windows that blend them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def starts(side: int, tile: int, overlap: int, multiple: int = 1) -> list[int]:
    """Where the tiles along one axis begin: evenly, from 0 to ``side - tile``, in multiples of ``multiple``, neighbours
    sharing at least ``overlap`` entries."""
    if side <= tile:
        return [0]
    stride = max(multiple, (tile - overlap) // multiple * multiple)
    count = math.ceil((side - tile) / stride) + 1
    return [round(i * (side - tile) / (count - 1) / multiple) * multiple for i in range(count)]


def windows(side: int, tile: int, overlap: int, multiple: int = 1) -> Tensor:
    """The weight of each tile along one axis, shape (tiles, min(side, tile)), float64. It is squared sines over
    ``overlap`` entries at its ends, divided by their sum over the tiles at each entry. Nothing fades at the border of
    the image, where there is one tile alone."""
    places, tile = starts(side, tile, overlap, multiple), min(side, tile)
    edge = torch.arange(tile, dtype=torch.float64) + 0.5
    ramp = torch.minimum(edge, tile - edge).div(max(overlap, 1)).clamp_max(1.0)
    window = torch.sin(0.5 * math.pi * ramp) ** 2
    total = torch.zeros(side, dtype=torch.float64)
    for start in places:
        total[start : start + tile] += window
    return torch.stack([window / total[start : start + tile] for start in places])
