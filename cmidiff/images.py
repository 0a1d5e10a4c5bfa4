"""The image files of a folder or a tar archive, in the order of their names.

The name of an image is its path below the folder (or inside the archive) without its ending.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Pixels = NDArray[np.uint8]
ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")


@dataclass(frozen=True)
class Source:
    """One image file, not opened yet.

    Attributes:
        name: of the image.
        file: path below the folder or inside the archive.
        read: gives its bytes.
    """

    name: str
    file: str
    read: Callable[[], bytes]


def sources(images: Path, *, offset: int = 0, limit: int | None = None) -> list[Source]:
    """The image files of a folder, searched with its sub-folders, or of a tar archive; sorted by name.

    Args:
        images: the folder or archive.
        offset: how many to leave out first.
        limit: how many to take then; None for all.

    Raises:
        ValueError: neither a folder nor an archive, no image in it, fewer than asked for, two images of one name, or a
            name that leaves the archive.
    """
    found = sorted(_found(images), key=lambda source: source.name)
    if not found:
        raise ValueError(f"{images} holds no image ({', '.join(ENDINGS)}): give a folder or a tar archive of images")
    _check_names(found, images)
    chosen = found[offset : None if limit is None else offset + limit]
    if not chosen or (limit is not None and len(chosen) < limit):
        raise ValueError(
            f"{images} holds {len(found)} images, not {limit or 1} after the first {offset}: ask for fewer"
        )
    return chosen


def _found(images: Path) -> Iterator[Source]:
    if images.is_dir():
        for path in images.rglob("*"):
            file = path.relative_to(images).as_posix()
            if path.is_file() and _is_image(file):
                yield Source(_name(file), file, path.read_bytes)
    elif images.is_file() and tarfile.is_tarfile(images):
        archive = tarfile.open(images)  # noqa: SIM115 - stays open for as long as its sources are read
        for member in archive:
            if member.isfile() and _is_image(member.name):
                yield Source(_name(member.name), member.name, _reader(archive, member))
    else:
        what = "is neither a folder nor a tar archive" if images.exists() else "does not exist"
        raise ValueError(f"{images} {what}: give one that holds images")


def _is_image(file: str) -> bool:
    path = PurePosixPath(file)
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".")


def _name(file: str) -> str:
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"the archive names an image {file!r}, outside of itself: rename it")
    return path.with_suffix("").as_posix()


def _reader(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        file = archive.extractfile(member)
        return b"" if file is None else file.read()

    return read


def _check_names(found: list[Source], images: Path) -> None:
    before: dict[str, Source] = {}
    for source in found:
        other = before.setdefault(source.name.casefold(), source)
        if other is not source:
            raise ValueError(
                f"two images in {images} have the name {source.name!r} ({other.file} and {source.file}): "
                "rename or remove one"
            )


def decoded(data: bytes, size: int | None) -> Pixels:
    """The pixels (H, W, 3) of an image file, upright.

    Args:
        data: its bytes.
        size: crop the square in the middle and shrink it to this side, in pixels; None: as it is.

    Raises:
        ValueError: no image, a damaged one, one of too many pixels, or one smaller than ``size``; the message continues
            "the image cannot be used:".
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError("it is empty or no image") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error
    if size is None:
        return np.asarray(image)
    side = min(image.size)
    if not 0 < size <= side:
        raise ValueError(f"it has {image.width}x{image.height} pixels, less than the size {size}")
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))
