"""Clean images to choose settings on: from a folder or a tar archive, in the order of their names."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")


@dataclass(frozen=True)
class Images:
    """A batch of clean images.

    Attributes:
        names: of the files, one each.
        index: place of each in the sorted names of its source; it is also the seed of all that is random for it.
        truth: shape (B, 3, H, W), float32 in [0, 1].
    """

    names: tuple[str, ...]
    index: tuple[int, ...]
    truth: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def part(self, first: int, last: int) -> Images:
        """Images ``first`` to ``last - 1``."""
        return Images(self.names[first:last], self.index[first:last], self.truth[first:last])


def read_images(source: Path, *, count: int, offset: int = 0, size: int | None = None) -> Images:
    """Images ``offset`` to ``offset + count - 1`` of a folder or a tar archive, sorted by name.

    Args:
        source: a folder, searched without its sub-folders, or a tar archive.
        count, offset: which ones.
        size: crop the square in the middle and shrink it to this side, in pixels; None: as they are, all of one size.

    Raises:
        ValueError: no such source, fewer images than asked for, one that cannot be read, or images of several sizes.
    """
    if count < 1 or offset < 0:
        raise ValueError(f"need count >= 1 and offset >= 0, received {count} and {offset}")
    if source.is_dir():
        names = sorted(p.name for p in source.iterdir() if _is_image(p.name))
        chosen = _chosen(source, names, count, offset)
        tensors = [_decoded(name, (source / name).read_bytes, size) for name in chosen]
    elif source.is_file() and tarfile.is_tarfile(source):
        with tarfile.open(source) as tar:
            members = {m.name: m for m in tar.getmembers() if m.isfile() and _is_image(m.name)}
            chosen = _chosen(source, sorted(members), count, offset)
            tensors = [_decoded(name, _reader(tar, members[name]), size) for name in chosen]
    else:
        raise ValueError(f"images must be a folder or a tar archive, and {source} is none: correct the path")
    _check_one_size(chosen, tensors)
    return Images(tuple(chosen), tuple(range(offset, offset + count)), torch.stack(tensors))


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".")


def _chosen(source: Path, names: list[str], count: int, offset: int) -> list[str]:
    if len(names) < offset + count:
        raise ValueError(
            f"{source} holds {len(names)} images, received count {count} from offset {offset}: ask for fewer"
        )
    return names[offset : offset + count]


def _reader(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        file = tar.extractfile(member)
        return b"" if file is None else file.read()

    return read


def _decoded(name: str, read: Callable[[], bytes], size: int | None) -> Tensor:
    try:
        image = Image.open(io.BytesIO(read())).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"the image {name} cannot be read ({error}): mend it or take it out") from error
    if size is not None:
        image = _squared(name, image, size)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)


def _squared(name: str, image: Image.Image, size: int) -> Image.Image:
    side = min(image.size)
    if not 0 < size <= side:
        raise ValueError(
            f"the image {name} is {image.width}x{image.height}, received size {size}: ask for at most that"
        )
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))


def _check_one_size(names: list[str], tensors: list[Tensor]) -> None:
    for name, tensor in zip(names, tensors, strict=True):
        if tensor.shape != tensors[0].shape:
            height, width = tensors[0].shape[1:]
            raise ValueError(
                f"images are restored together and must have one size: {names[0]} is {width}x{height}, {name} is "
                f"{tensor.shape[2]}x{tensor.shape[1]}; give a size to crop and shrink them to"
            )
