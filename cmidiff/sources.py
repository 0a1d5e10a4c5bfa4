"""The images of a folder or of a tar archive, one file at a time."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from torch import Tensor

from cmidiff.images import decode_image, square

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")


@dataclass(frozen=True)
class Source:
    """One image file, not opened yet.

    Attributes:
        name: of the image: its path below the folder (or inside the archive) without its ending.
        file: path below the folder or inside the archive.
        read: gives its bytes.
    """

    name: str
    file: str
    read: Callable[[], bytes]


def read_source(source: Source, size: int | None = None) -> Tensor:
    """Read an image of a folder or an archive, (3, H, W) in [0, 1]; ``size`` as in `cmidiff.images.square`."""
    try:
        return square(decode_image(source.read()), size)
    except ValueError as error:
        raise ValueError(f"the image {source.file} cannot be used: it {error}") from error


def list_sources(images: Path, *, offset: int = 0, limit: int | None = None) -> list[Source]:
    """List the image files of a folder, searched with its sub-folders, or of a tar archive, sorted by name. Leave
    out the first ``offset``, then take ``limit`` or all."""
    found = sorted(_find(images), key=lambda source: source.name)
    if not found:
        raise ValueError(f"{images} holds no image ({', '.join(ENDINGS)}): give a folder or a tar archive of images")
    names: dict[str, Source] = {}
    for source in found:
        other = names.setdefault(source.name.casefold(), source)
        if other is not source:
            raise ValueError(
                f"two images in {images} have the name {source.name!r} ({other.file} and {source.file}): rename or "
                "remove one"
            )
    chosen = found[offset : None if limit is None else offset + limit]
    if not chosen or (limit is not None and len(chosen) < limit):
        raise ValueError(
            f"{images} holds {len(found)} images, not {limit or 1} after the first {offset}: ask for fewer"
        )
    return chosen


def _find(images: Path) -> Iterator[Source]:
    if images.is_dir():
        for path in images.rglob("*"):
            file = path.relative_to(images).as_posix()
            if path.is_file() and _is_image(file):
                yield Source(_name(file), file, path.read_bytes)
    elif images.is_file() and tarfile.is_tarfile(images):
        archive = tarfile.open(images)  # noqa: SIM115 - stays open for as long as its sources are read
        for member in archive:
            if member.isfile() and _is_image(member.name):
                yield Source(_name(member.name), member.name, _make_reader(archive, member))
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


def _make_reader(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        file = archive.extractfile(member)
        return b"" if file is None else file.read()

    return read
