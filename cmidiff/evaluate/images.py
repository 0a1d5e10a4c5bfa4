"""The images of a run: all of them are opened before it starts, and what it measures is kept as PNG in its folder.

The name of an image is its path below the folder (or inside the archive) without its ending.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cmidiff.evaluate.database import ImageRow, RunError

Pixels = NDArray[np.uint8]
ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")


@dataclass(frozen=True)
class Source:
    """One file of a source, not opened yet."""

    name: str
    file: str
    read: Callable[[], bytes]


def sources(images: Path, *, offset: int = 0, limit: int | None = None) -> list[Source]:
    """The image files of a folder, searched with its sub-folders, or of a tar archive; sorted by name.

    Raises:
        RunError: neither a folder nor an archive, no image in it, two images of one name, or a name that leaves it.
    """
    found = sorted(_found(images), key=lambda source: source.name)
    if not found:
        raise RunError(f"{images} holds no image ({', '.join(ENDINGS)}): give a folder or a tar archive of images")
    _check_names(found, images)
    chosen = found[offset : None if limit is None else offset + limit]
    if not chosen or (limit is not None and len(chosen) < limit):
        wanted = f"offset {offset}" + ("" if limit is None else f" and limit {limit}")
        raise RunError(f"{images} holds {len(found)} images, too few for {wanted}: ask for fewer")
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
        raise RunError(f"--images {images} {what}: give one that holds images")


def _is_image(file: str) -> bool:
    path = PurePosixPath(file)
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".")


def _name(file: str) -> str:
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts:
        raise RunError(f"the archive names an image {file!r}, outside of itself: rename it")
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
            raise RunError(
                f"two images in {images} have the name {source.name!r} ({other.file} and {source.file}): "
                "rename or remove one"
            )


def opened(source: Source, size: int | None, known: ImageRow | None = None) -> tuple[ImageRow, Pixels | None]:
    """An image (H, W, 3) and its row; a row with an error where it cannot be used.

    Args:
        size: see `Config`.
        known: its row of an earlier call, if its PNG is in the run: a file that has not changed is not decoded again.
    """
    digest = None
    try:
        data = source.read()
        digest = hashlib.sha256(data).hexdigest()
        if known is not None and known.digest == digest:
            return known, None
        pixels = _decoded(data, size)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "it is empty or no image" if isinstance(error, UnidentifiedImageError) else str(error)
        message = f"the image {source.file} cannot be used: {reason}"
        return ImageRow(source.name, source.file, digest, None, None, None, message), None
    height, width = pixels.shape[:2]
    return ImageRow(source.name, source.file, digest, width, height, truth_path(source.name), None), pixels


def _decoded(data: bytes, size: int | None) -> Pixels:
    with Image.open(io.BytesIO(data)) as opened_image:
        image = ImageOps.exif_transpose(opened_image).convert("RGB")
    if size is None:
        return np.asarray(image)
    side = min(image.size)
    if side < size:
        raise ValueError(f"it has {image.width}x{image.height} pixels, less than the size {size}")
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))


def truth_path(name: str) -> str:
    """Where an image lies in a run's folder."""
    return f"truth/{quote(name)}.png"


def read_truth(folder: Path, row: ImageRow) -> Pixels:
    """The pixels (H, W, 3) of an image of a run."""
    assert row.path is not None
    with Image.open(folder / row.path) as image:
        return np.asarray(image.convert("RGB"))
