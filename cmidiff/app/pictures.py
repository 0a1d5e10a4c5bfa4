"""Pictures on disk and as tensors: (C, H, W), float32, in [0, 1], C = 1 (gray) or 3 (colour), transparency apart.

Orientation (EXIF) is applied on reading, and sixteen bits per channel keep their precision; what is written has eight.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

from cmidiff.app.errors import BadInput

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        values: (C, H, W) in [0, 1], C = 1 or 3.
        alpha: (1, H, W) in [0, 1], or None where the file has no transparency.
    """

    values: Tensor
    alpha: Tensor | None = None

    @property
    def size(self) -> str:
        return f"{self.values.shape[2]}x{self.values.shape[1]}"


def read_picture(path: Path) -> Picture:
    """A picture from any file that Pillow reads.

    Raises:
        BadInput: the file is missing, is not a picture, is damaged, or holds values that are not finite.
    """
    if not path.is_file():
        raise BadInput(f"no such file: {path}" if not path.exists() else f"{path} is a folder: give a picture file")
    try:
        values = _sixteen_bit_png(path) if _is_deep_colour_png(path) else _pillow(path)
    except (UnidentifiedImageError, OSError, RuntimeError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInput(f"cannot read {path} as a picture: give a sound PNG, JPEG or TIFF file") from error
    if not torch.isfinite(values).all():
        raise BadInput(f"{path} holds values that are not finite (NaN or infinity): mend or mask them first")
    colours = values[:1] if len(values) <= 2 else values[:3]
    return Picture(colours.contiguous(), values[-1:].contiguous() if len(values) in (2, 4) else None)


def _is_deep_colour_png(path: Path) -> bool:
    """Sixteen bits per channel and more than one channel: Pillow would keep eight of the bits."""
    with path.open("rb") as file:
        head = file.read(26)
    return head.startswith(PNG_SIGNATURE) and len(head) == 26 and head[24] == 16 and head[25] != 0


def _sixteen_bit_png(path: Path) -> Tensor:
    from torchvision.io import ImageReadMode, decode_image

    values = decode_image(str(path), mode=ImageReadMode.UNCHANGED, apply_exif_orientation=True)
    return values.to(torch.float32) / 65535


def _pillow(path: Path) -> Tensor:
    """All channels of the first frame, (1 | 2 | 3 | 4, H, W)."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith(("I", "F")):
            return _single_channel(image)
        transparent = image.has_transparency_data
        gray = image.mode in ("1", "L", "LA", "La")
        image = image.convert(("LA" if gray else "RGBA") if transparent else ("L" if gray else "RGB"))
        array = np.asarray(image, dtype=np.float32) / 255
    return torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)


def _single_channel(image: Image.Image) -> Tensor:
    """Integers of 16 bits over their range; floating-point files are taken to be in [0, 1] already."""
    array = np.asarray(image)
    scale = 1.0 if image.mode.startswith("F") else 65535.0
    return torch.from_numpy(array.astype(np.float32) / scale)[None]


def resized(picture: Picture, size: tuple[int, int]) -> Picture:
    """The centre of a picture in the shape of ``size = (width, height)``, brought to that size (antialiased)."""
    width, height = size
    rows, columns = picture.values.shape[1:]
    scale = max(height / rows, width / columns)
    crop_h, crop_w = min(rows, round(height / scale)), min(columns, round(width / scale))
    top, left = (rows - crop_h) // 2, (columns - crop_w) // 2

    def fit(x: Tensor) -> Tensor:
        cut = x[None, :, top : top + crop_h, left : left + crop_w]
        return interpolate(cut, size=(height, width), mode="bicubic", antialias=True, align_corners=False)[0].clamp(
            0, 1
        )

    return Picture(fit(picture.values), None if picture.alpha is None else fit(picture.alpha))


def to_gray(values: Tensor) -> Tensor:
    """The mean of the channels, (1, H, W): what a single-channel measurement sees of a colour picture."""
    return values.mean(0, keepdim=True)


def read_mask(path: Path, height: int, width: int) -> Tensor:
    """A mask picture as (1, 1, H, W) of zeros and ones: bright is seen, dark is hidden.

    Raises:
        BadInput: another size than the picture, nothing hidden, or nothing seen.
    """
    mask = to_gray(read_picture(path).values)
    if mask.shape[1:] != (height, width):
        raise BadInput(
            f"the mask {path} is {mask.shape[2]}x{mask.shape[1]} but the picture is {width}x{height}: both must agree"
        )
    seen = (mask > 0.5).to(torch.float32)
    if not seen.any():
        raise BadInput(f"the mask {path} hides every pixel: bright pixels are the ones that were seen")
    return seen[None]


def read_kernel(path: Path, height: int, width: int) -> Tensor:
    """A blur kernel picture as (h, w), non-negative with sum 1.

    Raises:
        BadInput: larger than the picture, or black everywhere.
    """
    kernel = to_gray(read_picture(path).values)
    if kernel.shape[1] > height or kernel.shape[2] > width:
        raise BadInput(
            f"the kernel {path} is {kernel.shape[2]}x{kernel.shape[1]}, larger than the picture "
            f"({width}x{height}): crop it"
        )
    if not kernel.sum() > 0:
        raise BadInput(f"the kernel {path} is black everywhere: it must show the path of a point of light")
    return (kernel / kernel.sum())[0]


def to_image(values: Tensor, alpha: Tensor | None = None) -> Image.Image:
    """A tensor (1 | 3, H, W), clipped to [0, 1], as a picture of eight bits."""
    values = values.detach().cpu().to(torch.float32)
    if alpha is not None:
        values = torch.cat((values, alpha))
    array = (values.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else np.ascontiguousarray(array))


def write_picture(path: Path, values: Tensor, alpha: Tensor | None = None) -> None:
    """Write `to_image` as PNG."""
    to_image(values, alpha).save(path, format="PNG")


def fitted_alpha(alpha: Tensor | None, height: int, width: int) -> Tensor | None:
    """The transparency at the size of a restored picture."""
    if alpha is None or alpha.shape[1:] == (height, width):
        return alpha
    return interpolate(alpha[None], size=(height, width), mode="bicubic", align_corners=False)[0].clamp(0, 1)
