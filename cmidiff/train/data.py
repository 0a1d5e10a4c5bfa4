"""Images for training: tar archives decoded once into cached uint8 arrays, and the batch of step n.

The batch of a step depends on (seed, step) alone, so a resumed run continues exactly where it stopped with nothing to
restore.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track
from torch import Tensor

from cmidiff.train.config import TrainConfig

Bytes = NDArray[np.uint8]
ENDINGS = (".jpg", ".jpeg", ".png")


class Dataset:
    """Whole images and crops of photographs, each (N, S, S, 3) uint8.

    Args:
        config: names the archives and the shares.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.images = images(config.images, config.size, config.cache)
        self.crops = (
            crops(config.photographs, config.size, config.crops_per_photograph, config.cache)
            if config.crop_share
            else None
        )
        self._orders: dict[int, tuple[int, NDArray[np.int64]]] = {}

    def batch(self, step: int) -> Tensor:
        """Images of one step: (B, 3, S, S), float32 in [-1, 1], flipped left to right half of the time."""
        count = self.config.batch
        flips = np.random.default_rng((self.config.seed, step)).random(count) < 0.5
        rows = [self._row(step * count + i) for i in range(count)]
        pixels = np.stack([row[:, ::-1] if flip else row for row, flip in zip(rows, flips, strict=True)])
        return to_tensor(pixels)

    def _row(self, position: int) -> Bytes:
        share = self.config.crop_share
        taken = int(position * share)
        if self.crops is not None and int((position + 1) * share) > taken:
            return self.crops[self._shuffled(taken, len(self.crops), 1)]
        return self.images[self._shuffled(position - taken, len(self.images), 0)]

    def _shuffled(self, position: int, count: int, stream: int) -> int:
        epoch, place = divmod(position, count)
        if stream not in self._orders or self._orders[stream][0] != epoch:
            self._orders[stream] = (epoch, np.random.default_rng((self.config.seed, stream, epoch)).permutation(count))
        return int(self._orders[stream][1][place])


def to_tensor(pixels: Bytes) -> Tensor:
    """(B, 3, H, W) float32 in [-1, 1] of (B, H, W, 3) uint8."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def images(archives: tuple[Path, ...], size: int, cache: Path) -> Bytes:
    """Every image, cropped at its centre to ``size``: (N, size, size, 3) uint8, memory-mapped from the cache."""

    def make() -> Bytes:
        return np.stack(
            [
                _centre(image, size)
                for archive in archives
                for image in track(_open(archive), f"decoding {archive.name}")
            ]
        )

    return _cached(cache, f"images-{size}-{_key(archives)}", make)


def crops(archives: tuple[Path, ...], size: int, each: int, cache: Path) -> Bytes:
    """Crops of photographs reduced by factors of 1 to 4: (N, size, size, 3) uint8, memory-mapped from the cache."""

    def make() -> Bytes:
        rng = np.random.default_rng(0)
        photographs = (image for archive in archives for image in track(_open(archive), f"cutting {archive.name}"))
        return np.stack([_crop(image, size, rng) for image in photographs for _ in range(each)])

    return _cached(cache, f"crops-{size}-{each}-{_key(archives)}", make)


def _crop(image: Image.Image, size: int, rng: np.random.Generator) -> Bytes:
    factor = min(4.0 ** rng.random(), min(image.size) / size)
    if factor < 1:
        raise ValueError(
            f"a photograph of {image.width} x {image.height} is smaller than the training size {size}; remove it"
        )
    small = image.resize(
        (max(size, round(image.width / factor)), max(size, round(image.height / factor))), Image.Resampling.LANCZOS
    )
    left, top = (int(rng.integers(side - size + 1)) for side in small.size)
    return np.asarray(small.crop((left, top, left + size, top + size)))


def _centre(image: Image.Image, size: int) -> Bytes:
    left, top = (image.width - size) // 2, (image.height - size) // 2
    if left < 0 or top < 0:
        raise ValueError(
            f"a training image of {image.width} x {image.height} is smaller than the training size {size}; remove it"
        )
    return np.asarray(image.crop((left, top, left + size, top + size)))


def _open(archive: Path) -> Iterator[Image.Image]:
    if not archive.is_file():
        raise FileNotFoundError(f"no archive of images at {archive}; correct the path in the training configuration")
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and member.name.lower().endswith(ENDINGS) and (file := tar.extractfile(member)):
                yield Image.open(io.BytesIO(file.read())).convert("RGB")


def _key(archives: tuple[Path, ...]) -> str:
    facts = [f"{a.name}:{a.stat().st_size if a.is_file() else 'absent'}" for a in archives]
    return hashlib.sha256("|".join(facts).encode()).hexdigest()[:12]


def _cached(cache: Path, name: str, make: Callable[[], Bytes]) -> Bytes:
    path = cache / f"{name}.npy"
    if not path.is_file():
        array = make()
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.npy")
        np.save(partial, array)
        partial.replace(path)
    return np.load(path, mmap_mode="r")
