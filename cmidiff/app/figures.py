"""Labelled figures: images side by side, and the map of what is uncertain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

TILE = 256  # least side of a tile: small images are enlarged by a whole factor, so that every pixel can be seen
COLUMNS = 6
INK, PAPER, FAINT = (20, 20, 20), (255, 255, 255), (110, 110, 110)


@dataclass(frozen=True)
class Tile:
    """An image and what is written above it: a title and a fainter second line."""

    image: Image.Image
    title: str
    note: str = ""


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def enlarge(image: Image.Image, width: int, height: int) -> Image.Image:
    """Enlarge an image to exactly (width, height), by its nearest pixels."""
    return image.resize((width, height), Image.Resampling.NEAREST)


def side_by_side(tiles: Sequence[Tile], *, columns: int = COLUMNS) -> Image.Image:
    """All tiles on one sheet, in even rows of at most ``columns``, each at the size of the largest."""
    width, height = max(t.image.width for t in tiles), max(t.image.height for t in tiles)
    scale = max(1, -(-TILE // max(width, height)))
    width, height = width * scale, height * scale
    rows = -(-len(tiles) // columns)
    columns = -(-len(tiles) // rows)
    gap, caption, top = 12, 48, 8
    cell_w, cell_h = max(width, 150) + gap, height + caption + gap
    sheet = Image.new("RGB", (columns * cell_w + gap, rows * cell_h + top), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, tile in enumerate(tiles):
        left, upper = gap + index % columns * cell_w, top + index // columns * cell_h
        draw.text((left, upper), tile.title, INK, _font(17))
        draw.text((left, upper + 22), tile.note, FAINT, _font(14))
        sheet.paste(enlarge(_on_paper(tile.image), width, height), (left, upper + caption))
    return sheet


def _on_paper(image: Image.Image) -> Image.Image:
    """Transparent pixels over white."""
    if "A" not in image.getbands():
        return image.convert("RGB")
    paper = Image.new("RGBA", image.size, (*PAPER, 255))
    return Image.alpha_composite(paper, image.convert("RGBA")).convert("RGB")


def _colours(values: np.ndarray) -> Image.Image:
    """Values in [0, 1] through the magma colour map."""
    return Image.fromarray(matplotlib.colormaps["magma"](values, bytes=True)[..., :3].copy())


def std_tile(std: Tensor) -> Tile:
    """Return a tile of the standard deviation (C, H, W) in colours."""
    image, top = _colour_std(std)
    return Tile(image, "uncertainty", f"black 0, brightest {top:.3f}")


def _colour_std(std: Tensor) -> tuple[Image.Image, float]:
    """The root mean square over channels, in colours from 0 to the returned maximum."""
    values = std.detach().cpu().to(torch.float32).square().mean(0).sqrt()
    top = float(values.max())
    return _colours((values / (top or 1.0)).numpy()), top


def std_map(std: Tensor) -> Image.Image:
    """Return the standard deviation (C, H, W) in colours, enlarged, with its scale."""
    image, top = _colour_std(std)
    scale = max(1, -(-TILE // max(image.size)))
    width, height = image.width * scale, image.height * scale
    gap, bar = 12, 18
    sheet = Image.new("RGB", (max(width, 190) + bar + 70 + 2 * gap, height + 56), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, 8), "standard deviation of the samples", INK, _font(15))
    draw.text((gap, 27), "0 = certain; 1 = the range from black to white", FAINT, _font(11))
    sheet.paste(enlarge(image, width, height), (gap, 46))
    ramp = np.repeat(np.linspace(1, 0, height, dtype=np.float32)[:, None], bar, axis=1)
    left = width + 2 * gap
    sheet.paste(_colours(ramp), (left, 46))
    for fraction in (0.0, 0.5, 1.0):
        y = 46 + round((1 - fraction) * (height - 14))
        draw.text((left + bar + 6, y), f"{fraction * top:.3f}", INK, _font(12))
    return sheet
