"""Random numbers that depend on (seed, sample, stream, step) and on nothing else.

Each draw has a generator of its own, seeded by a hash of these four, so that no sample depends on the batch it was
computed in, on the order of the work, or on whether another part of the method (CMI's probes, say) drew anything:
streams never disturb one another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Draws(Protocol):
    """A source of standard normal numbers for every step of a run."""

    def normal(self, stream: str, index: int, like: Tensor, inner: int = 0) -> Tensor:
        """Standard normal numbers with the shape (B, ...), dtype and device of ``like``.

        Args:
            stream: who asks: "start", "kernel", "guidance", "cmi", ...
            index: the step, 0 for the first (noisiest) one.
            like: shape, dtype and device.
        """
        ...


@dataclass(frozen=True)
class SeededDraws:
    """One (seed, sample) for each row of the batch.

    The numbers are drawn in single precision on the CPU, whatever torch's defaults and the device of the run are.
    """

    rows: Sequence[tuple[int | str, int]]

    def normal(self, stream: str, index: int, like: Tensor, inner: int = 0) -> Tensor:
        number = index + 1_000_003 * inner
        rows = [
            torch.randn(like.shape[1:], generator=_generator(*row, stream, number), dtype=torch.float32, device="cpu")
            for row in self.rows
        ]
        return torch.stack(rows).to(like)


def _generator(seed: int | str, sample: int, stream: str, index: int) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}/{sample}/{stream}/{index}".encode(), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "big") >> 1)
