"""Images for training: tar archives decoded once into cached uint8 arrays, and the batch of step n.

The batch of a step depends on (seed, step) alone, so a resumed run continues exactly where it stopped with nothing to
restore. Crops of photographs are cut anew at every step: the position, the scale and the orientation are random.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track
from torch import Tensor

from cmidiff.sources import list_sources, read_source
from cmidiff.train.config import TrainConfig

Bytes = NDArray[np.uint8]
MAX_FACTOR = 4.0


class Dataset:
    """Whole images and crops of photographs.

    Args:
        config: names the archives, the sides and the shares.

    Raises:
        FileNotFoundError: if an archive does not exist.
        ValueError: if an archive cannot be read, holds no image, or holds one that is too small.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.images = images(config.images, config.size, config.cache) if config.images else None
        self.photographs = Photographs(config) if config.photographs else None

    def batch(self, step: int) -> Tensor:
        """Return the images of one step: (B, 3, S, S), float32 in [-1, 1].

        The side S is drawn from ``config.sides``. B is scaled so that every step has about the same number of pixels.
        """
        config = self.config
        rng = np.random.default_rng((config.seed, step))
        side = int(rng.choice(config.sides or (config.size,)))
        count = max(1, round(config.batch * config.size**2 / side**2))
        return to_tensor(np.stack([self._draw(side, rng) for _ in range(count)]))

    def _draw(self, side: int, rng: np.random.Generator) -> Bytes:
        share = self.config.crop_share if side <= self.config.size else 1.0
        if self.images is None or (self.photographs is not None and rng.random() < share):
            assert self.photographs is not None
            pixels = self.photographs.crop(side, rng)
        else:
            pixels = _cut(self.images[rng.integers(len(self.images))], side, rng)
        return pixels[:, ::-1] if rng.random() < 0.5 else pixels


class Photographs:
    """Decoded photographs of any size, in one memory-mapped array of bytes.

    Args:
        config: names the archives and the sides.
    """

    def __init__(self, config: TrainConfig) -> None:
        key = _key(config.photographs)
        self.shapes = _load_or_make(
            config.cache, f"shapes-{key}", lambda: np.array([p.shape[:2] for p in _read(config.photographs)], np.int32)
        )
        self.pixels = _load_or_make(
            config.cache, f"photographs-{key}", lambda: np.concatenate([p.ravel() for p in _read(config.photographs)])
        )
        areas = self.shapes.astype(np.int64).prod(1)
        self.starts = 3 * np.concatenate([[0], areas.cumsum()])
        self.chances = {side: self._chances(side, areas) for side in set(config.sides or (config.size,))}

    def _chances(self, side: int, areas: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the cumulative probability of each photograph, 0 for those smaller than ``side``."""
        weights = areas * (self.shapes.min(1) >= side)
        if not weights.any():
            raise ValueError(f"no photograph has both sides of at least {side} pixels; choose smaller training sides")
        return weights.cumsum() / weights.sum()

    def __getitem__(self, index: int) -> Bytes:
        height, width = (int(side) for side in self.shapes[index])
        return self.pixels[self.starts[index] : self.starts[index + 1]].reshape(height, width, 3)

    def crop(self, side: int, rng: np.random.Generator) -> Bytes:
        """Return a random square (side, side, 3): half of them at native scale, the others reduced by up to 4.

        Photographs of at least that size are drawn in proportion to their area. Half of the squares are turned by a
        random multiple of 90 degrees.
        """
        photograph = self[int(np.searchsorted(self.chances[side], rng.random(), side="right"))]
        reduced, exponent = rng.random() < 0.5, rng.random()
        factor = min(MAX_FACTOR**exponent, min(photograph.shape[:2]) / side) if reduced else 1.0
        square = _cut(photograph, max(side, int(side * factor)), rng)
        if len(square) > side:
            square = np.asarray(Image.fromarray(square).resize((side, side), Image.Resampling.LANCZOS))
        turns = int(rng.integers(4)) if rng.random() < 0.5 else 0
        return np.rot90(square, turns)


def to_tensor(pixels: Bytes) -> Tensor:
    """Return (B, 3, H, W) float32 in [-1, 1] of (B, H, W, 3) uint8."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def images(archives: tuple[Path, ...], size: int, cache: Path) -> Bytes:
    """Return every image, cropped at its centre to ``size``: (N, size, size, 3) uint8, memory-mapped from the cache."""
    return _load_or_make(
        cache, f"images-{size}-{_key(archives)}", lambda: np.stack([_crop_centre(i, size) for i in _read(archives)])
    )


def _cut(pixels: Bytes, side: int, rng: np.random.Generator) -> Bytes:
    top, left = (int(rng.integers(have - side + 1)) for have in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


def _crop_centre(pixels: Bytes, size: int) -> Bytes:
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    if top < 0 or left < 0:
        raise ValueError(
            f"a training image of {pixels.shape[1]} x {pixels.shape[0]} is smaller than the training size {size}; "
            "remove it"
        )
    return pixels[top : top + size, left : left + size]


def _read(archives: tuple[Path, ...]) -> Iterator[Bytes]:
    """The images of the archives, (H, W, 3) each."""
    for archive in archives:
        for source in track(list_sources(archive), f"decoding {archive.name}"):
            yield (read_source(source) * 255).round().byte().permute(1, 2, 0).numpy()


def _key(archives: tuple[Path, ...]) -> str:
    if missing := [archive for archive in archives if not archive.is_file()]:
        raise FileNotFoundError(f"no archive of images at {missing[0]}; correct the path in the training configuration")
    facts = [f"{archive.name}:{archive.stat().st_size}" for archive in archives]
    return hashlib.sha256("|".join(facts).encode()).hexdigest()[:12]


def _load_or_make(cache: Path, name: str, make: Callable[[], NDArray]) -> NDArray:
    path = cache / f"{name}.npy"
    if not path.is_file():
        array = make()
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.npy")
        np.save(partial, array)
        partial.replace(path)
    return np.load(path, mmap_mode="r")
