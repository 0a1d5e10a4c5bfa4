"""Colour profiles of image files (ICC.1): any profile to sRGB.

A profile of three primaries and tone curves (or of one gray curve) is applied in floating point, so that sixteen bits
keep their precision. The formulas are linear light ``l = curve(v)``, then ``v' = encode(M_sRGB^-1 M l)`` with the
columns of ``M`` the primaries under D50. All other profiles (tables, CMYK) go through LittleCMS with eight bits.
"""

from __future__ import annotations

import io
import struct
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PIL
from PIL import ImageCms

Array = NDArray[np.float32]
PRIMARIES, CURVES = (b"rXYZ", b"gXYZ", b"bXYZ"), (b"rTRC", b"gTRC", b"bTRC")
BAND = 256  # rows at once, to save memory
SAME = 1.0 / 255  # a conversion that changes no colour by more than this is left out


def to_srgb(values: Array, profile: bytes) -> tuple[Array, str]:
    """Convert an image (H, W, 1 | 3) in [0, 1] to sRGB by the ICC profile of its file.

    The second result is a note for the user; "" if nothing was to be done.
    """
    channels = values.shape[2]
    try:
        tags = _tags(profile)
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).strip()
        if profile[16:20] != (b"GRAY" if channels == 1 else b"RGB "):
            return values, "the colour profile of the file is of another kind of image and is ignored"
        if b"A2B0" in tags:
            levels = (values * 255).round().astype(np.uint8)
            image = PIL.fromarray(levels[..., 0] if channels == 1 else levels)
            return by_tables(image, profile), f"{name} is converted to sRGB with 8 bits"
        if np.abs(_convert(_grid(channels), tags) - _grid(channels)).max() <= SAME:
            return values, ""
        bands = range(0, len(values), BAND)
        return np.concatenate([_convert(values[k : k + BAND], tags) for k in bands]), f"{name} is converted to sRGB"
    except (ImageCms.PyCMSError, struct.error, KeyError, ValueError, IndexError, OSError):
        return values, "the colour profile of the file is damaged and is ignored"


def by_tables(image: PIL.Image, profile: bytes) -> Array:
    """Convert an image of eight bits to sRGB with LittleCMS; the result has one channel or three as it is gray or
    not."""
    mode = "L" if image.mode == "L" else "RGB"
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None, "a new image is asked for"
    array = np.asarray(converted.convert(mode), np.float32) / np.float32(255)
    return array.reshape(*array.shape[:2], -1)


def _tags(profile: bytes) -> dict[bytes, bytes]:
    (count,) = struct.unpack_from(">I", profile, 128)
    tags = {}
    for n in range(min(count, 100)):
        name, start, size = struct.unpack_from(">4sII", profile, 132 + 12 * n)
        tags[name] = profile[start : start + size]
    return tags


def _convert(values: Array, tags: dict[bytes, bytes]) -> Array:
    if values.shape[2] == 1:
        return _encode(_curve(values, tags[b"kTRC"]))
    linear = np.stack([_curve(values[..., c], tags[name]) for c, name in enumerate(CURVES)], -1)
    matrix = (np.linalg.inv(_matrix(_srgb())) @ _matrix(tags)).astype(np.float32)
    return _encode(linear @ matrix.T)


def _matrix(tags: dict[bytes, bytes]) -> NDArray[np.float64]:
    return np.array([struct.unpack_from(">3i", tags[name], 8) for name in PRIMARIES]).T / 65536


@cache
def _srgb() -> dict[bytes, bytes]:
    return _tags(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())


def _encode(linear: Array) -> Array:
    """Linear light to sRGB values, clipped to its gamut (IEC 61966-2-1)."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** np.float32(1 / 2.4) - 0.055).astype(
        np.float32
    )


def _curve(values: Array, tag: bytes) -> Array:
    """A tone curve: ``curv``, a table or an exponent, or ``para``, one of five formulas."""
    if tag[:4] == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        table = np.frombuffer(tag, ">u2", count, 12).astype(np.float32)
        if count == 0:
            return values
        if count == 1:
            return values ** (table[0] / 256)
        return np.interp(values, np.linspace(0, 1, count), table / 65535).astype(np.float32)
    if tag[:4] != b"para":
        raise ValueError("no tone curve")
    (kind,) = struct.unpack_from(">H", tag, 8)
    g, a, b, c, d, e, f = _parameters(kind, tag)
    bright = np.maximum(a * values + b, 0) ** g + e
    return np.where(values >= d, bright, c * values + f).astype(np.float32)


def _parameters(kind: int, tag: bytes) -> tuple[float, ...]:
    """(g, a, b, c, d, e, f) of ``(a v + b)^g + e`` where ``v >= d``, else ``c v + f``."""
    given = np.array(struct.unpack_from(f">{(1, 3, 4, 5, 7)[kind]}i", tag, 12)) / 65536
    g, a, b, c, d, e, f = (*given, *(0.0,) * (7 - len(given)))
    if kind == 0:
        return g, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0
    if kind in (1, 2):  # the straight part is constant, below the zero of the curve
        return g, a, b, 0.0, -b / a, c, c
    return g, a, b, c, d, e, f


def _grid(channels: int) -> Array:
    steps = np.linspace(0, 1, 17, dtype=np.float32)
    axes = np.meshgrid(*[steps] * channels, indexing="ij")
    return np.stack(axes, -1).reshape(1, -1, channels)
