"""What a run of the laboratory depends on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Settings:
    """Options of a run.

    Attributes:
        seed: of everything random.
        quick: a few of everything, to see that it works; the figures then say little.
        workers: processes for the known posteriors.
        images: a folder or tar file of images for the embedded prior; None for crops of the embedded photograph.
        scratch: a folder for the finished parts of a long section, so that it goes on where it was stopped; or None.
    """

    seed: int = 0
    quick: bool = False
    workers: int = 2
    images: Path | None = None
    scratch: Path | None = None

    def generator(self, *names: object) -> torch.Generator:
        """Random numbers of their own for everything that has a name."""
        return torch.Generator().manual_seed(make_seed(self.seed, *names))


def make_seed(*names: object) -> int:
    """A seed from names and numbers."""
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
