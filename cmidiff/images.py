"""Image files: the one reader and the one writer.

An image is read as it is seen: upright (EXIF), in sRGB (its ICC profile applied), transparency apart. Eight and sixteen
bits keep their precision; floating-point values need a stated range. What is written is PNG, upright and in sRGB.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PIL
from PIL import ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn.functional import interpolate

from cmidiff import colour, files

PNG, TIFF = b"\x89PNG\r\n\x1a\n", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # the tag of EXIF, and its values that exchange width and height
RANGE_HINT = "state the range of the values, as --range 0,255 or value_range=(0, 255)"
Range = tuple[float, float]


@dataclass(frozen=True)
class Image:
    """An image.

    Attributes:
        values: (C, H, W), float32 in [0, 1], C = 1 (gray) or 3 (sRGB). Under transparency, the nearest visible colour.
        alpha: (1, H, W) in [0, 1], or None where the file has no transparency.
        bits: depth of the file, 8 or 16: what `write_image` gives back.
        notes: what was converted or assumed, for the user to read.
    """

    values: Tensor
    alpha: Tensor | None = None
    bits: int = 8
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> str:
        return f"{self.values.shape[2]}x{self.values.shape[1]}"


class UnknownRange(ValueError):
    """A file does not say which values are black and white.

    Attributes:
        found: least and largest value in it.
    """

    def __init__(self, message: str, found: Range) -> None:
        super().__init__(message)
        self.found = found


# reading


def read_image(path: str | Path, *, value_range: Range | None = None) -> Image:
    """Read an image file.

    Args:
        path: PNG, JPEG, TIFF, WebP, BMP or what else Pillow reads.
        value_range: the values of the file that are black and white; needed for floating-point, signed and 32-bit
            files.

    Raises:
        UnknownRange: the range is needed and not stated; the message names the range that was found.
        ValueError: no such file, no image, several images (an animation), a damaged file, or values that are not
            finite or out of the stated range.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no such file: {path}" if not path.exists() else f"{path} is no file: give an image file")
    try:
        return decode_image(path.read_bytes(), value_range=value_range)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except UnknownRange as error:
        raise UnknownRange(f"{path} {error}", error.found) from error
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error


def decode_image(data: bytes, *, value_range: Range | None = None) -> Image:
    """`read_image` of the bytes of a file; the messages of its errors lack their subject."""
    if not data:
        raise ValueError("is empty (0 bytes): give an image file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raw = _read_deep_tiff(data) if data[:4] in TIFF else None
            raw = raw or _read_pillow(data)
    except UnidentifiedImageError as error:
        raise ValueError("cannot be read as an image: give a PNG, JPEG, TIFF or WebP file") from error
    except PIL.DecompressionBombError as error:
        raise ValueError(
            f"has more than {2 * (PIL.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} million pixels: shrink it"
        ) from error
    except (OSError, SyntaxError, RuntimeError, EOFError, struct.error, zlib.error, IndexError, KeyError) as error:
        raise ValueError(
            f"is a damaged image ({str(error).splitlines()[0] if str(error) else 'cut short'}): save it again"
        ) from error
    return _make_image(raw, value_range)


@dataclass(frozen=True)
class _Raw:
    """Pixels as they are stored, (H, W, C), C = 1 to 4: gray or RGB, then alpha if C is even.

    ``top`` is the value of white, or None where the file does not say it; ``profile`` the ICC profile.
    """

    pixels: NDArray[np.generic]
    top: float | None
    orientation: int = 1
    profile: bytes | None = None
    notes: tuple[str, ...] = ()


def _make_image(raw: _Raw, value_range: Range | None) -> Image:
    pixels, note = _turn(raw.pixels, raw.orientation), ""
    colours = 1 if pixels.shape[2] <= 2 else 3
    shown, alpha = _scale(pixels[..., :colours], raw.top, value_range), None
    if pixels.shape[2] > colours:
        alpha = (pixels[..., colours:].astype(np.float32) / np.float32(raw.top or 1)).clip(0, 1)
    if raw.profile is not None:
        shown, note = colour.to_srgb(shown, raw.profile)
    if alpha is not None:
        shown = _bleed(shown, alpha)
    notes = (*raw.notes, *filter(None, (note,)))
    bits = 8 if pixels.dtype == np.uint8 else 16
    return Image(_to_tensor(shown), None if alpha is None else _to_tensor(alpha), bits, notes)


def _to_tensor(values: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))


def _scale(pixels: NDArray[np.generic], top: float | None, value_range: Range | None) -> NDArray[np.float32]:
    """Stored values to [0, 1]."""
    if 0 in pixels.shape:
        raise ValueError("has no pixels")
    if value_range is None and top is not None:
        return pixels.astype(np.float32) / np.float32(top)
    if not np.isfinite(pixels).all():
        raise ValueError("holds values that are not finite (NaN or infinity): mend or mask them first")
    least, most = float(pixels.min()), float(pixels.max())
    found = f"holds values from {least:g} to {most:g}"
    if value_range is None:
        raise UnknownRange(f"{found} of type {pixels.dtype}: {RANGE_HINT}", (least, most))
    low, high = value_range
    if not (np.isfinite(value_range).all() and low < high):
        raise ValueError(f"needs a range (LOW, HIGH) of two numbers with LOW < HIGH, received {low:g}, {high:g}")
    if least < low or most > high:
        raise ValueError(f"{found}, outside of the stated range {low:g} to {high:g}: {RANGE_HINT}")
    return ((pixels.astype(np.float64) - low) / (high - low)).astype(np.float32)


def _turn(pixels: NDArray[np.generic], orientation: int) -> NDArray[np.generic]:
    """Upright, by the values of the EXIF tag."""
    pixels = pixels.swapaxes(0, 1) if orientation in TURNED else pixels
    return np.flip(pixels, {2: 1, 3: (0, 1), 4: 0, 6: 1, 7: (0, 1), 8: 0}.get(orientation, ()))


def _bleed(shown: NDArray[np.float32], alpha: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest visible colour in the place of colours that transparency hides: they hold anything."""
    clear = alpha[..., 0] <= 0
    if not clear.any() or clear.all():
        return shown
    nearest: Any = distance_transform_edt(clear, return_distances=False, return_indices=True)
    return shown[nearest[0], nearest[1]]


def _read_pillow(data: bytes) -> _Raw:
    with PIL.open(io.BytesIO(data)) as file:
        if file.format in ("EPS", "WMF"):  # programs that draw, not pixels
            raise UnidentifiedImageError
        if (frames := getattr(file, "n_frames", 1)) > 1 and file.format != "MPO":  # MPO: a photograph and its previews
            raise ValueError(f"holds {frames} images (an animation?): save one of them as PNG, and give that file")
        orientation, profile = file.getexif().get(ORIENTATION, 1), file.info.get("icc_profile")
        if data.startswith(PNG) and data[24] == 16:
            return _Raw(_read_deep_png(data), 65535, orientation, profile)
        image, notes = ImageOps.exif_transpose(file), ()
        assert image is not None, "it is not transposed in place"
        if image.mode.startswith(("I", "F")):
            top = 65535 if image.mode.startswith("I;16") or (file.format == "PPM" and image.mode == "I") else None
            return _Raw(np.asarray(image)[..., None], top, profile=profile)
        if image.mode == "CMYK":
            image, notes = _convert_ink(image, profile)
            profile = None
        transparent, gray = image.has_transparency_data, image.mode in ("1", "L", "LA", "La")
        image = image.convert(("LA" if gray else "RGBA") if transparent else ("L" if gray else "RGB"))
        array = np.asarray(image)
    return _Raw(array.reshape(*array.shape[:2], -1), 255, profile=profile, notes=notes)


def _read_deep_png(data: bytes) -> NDArray[np.generic]:
    """Sixteen bits per channel, of which Pillow would keep eight in colour."""
    from torchvision.io import ImageReadMode, decode_image

    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return decode_image(encoded, ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()


def _convert_ink(image: PIL.Image, profile: bytes | None) -> tuple[PIL.Image, tuple[str, ...]]:
    """CMYK to sRGB, by its profile if it has one."""
    if profile is not None:
        try:
            values = colour.by_tables(image, profile)
            return PIL.fromarray((values * 255).round().astype(np.uint8)), ("CMYK is converted to sRGB by its profile",)
        except (ImageCms.PyCMSError, OSError):
            pass
    return image.convert("RGB"), ("CMYK without a usable profile: its colours are approximate",)


def _read_deep_tiff(data: bytes) -> _Raw | None:
    """A TIFF file of more than eight bits, which Pillow reads in part only; None for another one."""
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            pages = [page for page in file.pages if isinstance(page, tifffile.TiffPage)]
            if pages[0].is_reduced or "DNGVersion" in pages[0].tags:
                raise ValueError("is a camera's raw file, or begins with a preview: develop it to PNG or TIFF first")
            if (frames := len(file.pages) - sum(page.is_reduced for page in pages)) > 1:
                raise ValueError(f"holds {frames} images: save one of them as PNG, and give that file")
            return _read_page(pages[0])
    except tifffile.TiffFileError as error:
        raise UnidentifiedImageError from error


def _read_page(page: Any) -> _Raw | None:
    if page.dtype is None or (page.dtype.itemsize == 1 and page.dtype.kind in "bu"):
        return None
    if page.photometric not in (0, 1, 2) or page.imagedepth > 1:  # gray, white the least or largest value, or RGB
        kind = f"photometric {int(page.photometric)}"
        raise ValueError(f"is a TIFF file of an unusual kind ({kind}): save it as RGB or gray")
    if page.imagelength * page.imagewidth > 2 * (PIL.MAX_IMAGE_PIXELS or math.inf):
        raise PIL.DecompressionBombError
    try:
        pixels = page.asarray()
    except ValueError as error:
        if page.samplesperpixel == 1:
            return None  # Pillow knows more kinds of compression, and reads all bits of gray
        raise ValueError(
            f"is a TIFF file with {page.compression.name} compression and more than 8 bits per colour: save it without "
            "compression or as PNG (or install the package imagecodecs)"
        ) from error
    if page.planarconfig == 2 and pixels.ndim == 3:  # one plane per channel
        pixels = pixels.transpose(1, 2, 0)
    pixels = pixels.reshape(page.imagelength, page.imagewidth, page.samplesperpixel)
    top = 2.0**page.bitspersample - 1 if pixels.dtype == np.uint16 else None
    if page.photometric == 0 and top is not None:
        pixels = (top - pixels).astype(np.uint16)
    channels = (3 if page.photometric == 2 else 1) + (page.extrasamples[:1] in ((1,), (2,)))
    if page.extrasamples[:1] == (1,) and top is not None:  # colours that are multiplied by alpha
        alpha = pixels[..., channels - 1 : channels]
        pixels = np.concatenate([(pixels[..., : channels - 1] * (top / np.maximum(alpha, 1))).clip(0, top), alpha], -1)
    tags = {name: page.tags[name].value for name in ("Orientation", "InterColorProfile") if name in page.tags}
    return _Raw(pixels[..., :channels], top, tags.get("Orientation", 1), tags.get("InterColorProfile"))


# writing


def write_image(path: Path, values: Tensor, alpha: Tensor | None = None, *, bits: int = 8, command: str = "") -> None:
    """Write `encode_image` as a whole or not at all; ``command`` as in `cmidiff.files.write`."""
    files.write(path, encode_image(values, alpha, bits=bits), command)


def encode_image(values: Tensor, alpha: Tensor | None = None, *, bits: int = 8) -> bytes:
    """The PNG of an image (1 | 3, H, W) in sRGB, clipped to [0, 1], with 8 or 16 bits per channel."""
    if bits == 8:
        return encode(to_pil(values, alpha))
    array = _to_integers(values, alpha, 65535).astype(">u2")
    height, width, channels = array.shape
    rows = array.reshape(height, -1).view(np.uint8).copy()
    rows[:, 2 * channels :] -= rows[:, : -2 * channels].copy()  # filter 1: difference to the pixel on the left
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    filtered = np.insert(rows, 0, 1, axis=1).tobytes()
    chunks = ((b"IHDR", head), (b"sRGB", b"\0"), (b"IDAT", zlib.compress(filtered)), (b"IEND", b""))
    return PNG + b"".join(_chunk(kind, content) for kind, content in chunks)


def encode(image: PIL.Image) -> bytes:
    """The PNG of an image of Pillow's, declared as sRGB."""
    buffer, chunks = io.BytesIO(), PngImagePlugin.PngInfo()
    chunks.add(b"sRGB", b"\0")
    image.save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def to_pil(values: Tensor, alpha: Tensor | None = None) -> PIL.Image:
    """An image (1 | 3, H, W), clipped to [0, 1], with eight bits."""
    array = _to_integers(values, alpha, 255).astype(np.uint8)
    return PIL.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def _to_integers(values: Tensor, alpha: Tensor | None, top: int) -> NDArray[np.float64]:
    """(H, W, C), whole numbers from 0 to ``top``."""
    together = values if alpha is None else torch.cat((values, alpha.to(values)))
    scaled = together.detach().cpu().double().nan_to_num().clamp(0, 1) * top
    return np.ascontiguousarray(scaled.round().permute(1, 2, 0).numpy())


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


# sizes and channels


def resize(image: Image, size: tuple[int, int]) -> Image:
    """The centre of an image in the shape of ``size = (width, height)``, brought to that size (antialiased)."""
    width, height = size
    rows, columns = image.values.shape[1:]
    scale = max(height / rows, width / columns)
    crop_h, crop_w = min(rows, max(1, round(height / scale))), min(columns, max(1, round(width / scale)))
    top, left = (rows - crop_h) // 2, (columns - crop_w) // 2

    def fit(x: Tensor) -> Tensor:
        return _interpolate(x[:, top : top + crop_h, left : left + crop_w], height, width)

    return replace(image, values=fit(image.values), alpha=None if image.alpha is None else fit(image.alpha))


def fit_alpha(alpha: Tensor | None, height: int, width: int) -> Tensor | None:
    """The transparency at the size of a restored image."""
    return alpha if alpha is None or alpha.shape[1:] == (height, width) else _interpolate(alpha, height, width)


def _interpolate(x: Tensor, height: int, width: int) -> Tensor:
    larger = interpolate(x[None], size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    return larger[0].clamp(0, 1)


def to_gray(values: Tensor) -> Tensor:
    """The mean of the channels, (1, H, W): what a single-channel measurement sees of a colour image."""
    return values.mean(0, keepdim=True)


def square(image: Image, size: int | None) -> Tensor:
    """The middle square of an image, shrunk to ``size`` pixels: (3, size, size); None: the whole, (3, H, W).

    Raises:
        ValueError: the image is smaller; the message lacks its subject.
    """
    if size is None:
        return image.values.expand(3, -1, -1)
    whole = to_pil(image.values).convert("RGB")
    side = min(whole.size)
    if not 0 < size <= side:
        raise ValueError(f"has {image.size} pixels, less than the size {size}")
    left, top = (whole.width - side) // 2, (whole.height - side) // 2
    middle = whole.crop((left, top, left + side, top + side))
    small = np.array(middle.resize((size, size), PIL.Resampling.LANCZOS))
    return torch.from_numpy(small).permute(2, 0, 1).float() / 255
