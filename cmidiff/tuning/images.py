"""Clean images to choose settings on: from a folder or a tar archive, in the order of their names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cmidiff.images import read_source, sources


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
        source: a folder, searched with its sub-folders, or a tar archive.
        count, offset: which ones.
        size: crop the square in the middle and shrink it to this side, in pixels; None: as they are, all of one size.

    Raises:
        ValueError: no such source, fewer images than asked for, one that cannot be read, or images of several sizes.
    """
    if count < 1 or offset < 0:
        raise ValueError(f"need count >= 1 and offset >= 0, received {count} and {offset}")
    chosen = sources(source, offset=offset, limit=count)
    tensors = [read_source(one, size) for one in chosen]
    names = tuple(one.file for one in chosen)
    _check_one_size(names, tensors)
    return Images(names, tuple(range(offset, offset + count)), torch.stack(tensors))


def _check_one_size(names: tuple[str, ...], tensors: list[Tensor]) -> None:
    for name, tensor in zip(names, tensors, strict=True):
        if tensor.shape != tensors[0].shape:
            height, width = tensors[0].shape[1:]
            raise ValueError(
                f"images are restored together and must have one size: {names[0]} is {width}x{height}, {name} is "
                f"{tensor.shape[2]}x{tensor.shape[1]}; give a size to crop and shrink them to"
            )
