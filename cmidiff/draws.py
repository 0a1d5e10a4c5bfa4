"""Random numbers that depend on (seed, sample, stream, step, inner index) and on nothing else.

Each number is a function of these five and of its place in the tensor. No sample depends on the batch in which it is
computed or on the order of the work. Nor does it depend on whether another part of the method (CMI's probes, say) draws
anything. The function is Philox 4x32-10, which maps a key of two 32-bit words and a counter of four to four random
words. It is followed by the transform of Box and Muller. It uses integer operations on the device of the run. The words
are the same on every device; the normal numbers agree up to the rounding of its logarithm, sine and cosine.

Sources: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011,
https://doi.org/10.1145/2063384.2063405; Box, Muller, "A note on the generation of random normal deviates", 1958.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

MULTIPLIERS, INCREMENTS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)
ROUNDS, MASK = 10, 2**32 - 1
CHUNK = 2**15  # counters at a time on a CPU: what its caches hold

Words = tuple[Tensor | int, Tensor | int, Tensor | int, Tensor | int]


class Draws(Protocol):
    """A source of standard normal numbers for every step of a run."""

    def normal(self, stream: str, index: int, like: Tensor, inner: int = 0) -> Tensor:
        """Standard normal numbers with the shape (B, ...), dtype and device of ``like``; real numbers, in a complex
        type if that is its own.

        Args:
            stream: who asks: "start", "kernel", "guidance", "cmi", ...
            index: the step, 0 for the first (noisiest) one.
            like: shape, dtype and device.
            inner: which draw of the step, for a method that draws several times in one.
        """
        ...


@dataclass(frozen=True)
class SeededDraws:
    """One (seed, sample) for each row of the batch.

    The numbers are single-precision for all defaults of torch and types of the run.
    """

    rows: Sequence[tuple[int | str, int]]
    _keys: dict[torch.device, tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def normal(self, stream: str, index: int, like: Tensor, inner: int = 0) -> Tensor:
        count = like[0].numel()
        blocks = -(-count // 4)
        chunk = max(1, CHUNK // len(self.rows)) if like.device.type == "cpu" else blocks
        counters = torch.arange(blocks, device=like.device).split(chunk)
        z = [_normal(philox((c, index, inner, _hash(stream, 4)), self._key(like.device))) for c in counters]
        numbers = torch.cat(z, -1) if len(z) > 1 else z[0]  # (4, B, blocks)
        return numbers.transpose(0, 1).reshape(len(self.rows), -1)[:, :count].reshape(like.shape).to(like.dtype)

    def _key(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The two words of each row's key, (B, 1) each: filled on the device, once."""
        if device not in self._keys:
            hashed = [_hash(f"{seed}/{sample}", 8) for seed, sample in self.rows]
            low, high = ([torch.full((1,), k >> shift & MASK, device=device) for k in hashed] for shift in (0, 32))
            self._keys[device] = torch.stack(low), torch.stack(high)
        return self._keys[device]


def philox(counter: Words, key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four random words of 32 bits for each counter and key, as int64.

    Args:
        counter: four words, integers or int64 tensors that broadcast with the key; at least the first is a tensor.
        key: two words, int64.
    """
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]  # 64 bits, modulo 2^64 as signed numbers
        c0, c1, c2, c3 = (p1 >> 32 & MASK) ^ c1 ^ k0, p1 & MASK, (p0 >> 32 & MASK) ^ c3 ^ k1, p0 & MASK
        k0, k1 = k0 + INCREMENTS[0] & MASK, k1 + INCREMENTS[1] & MASK
    return c0, c1, c2, c3  # pyright: ignore[reportReturnType]


def _normal(words: tuple[Tensor, ...]) -> Tensor:
    """Four normal numbers for four words, shape (4, ...)."""
    found = []
    for a, b in (words[:2], words[2:]):
        radius = (a + 1).to(torch.float32).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
        angle = b.to(torch.float32).mul_(2 * math.pi * 2.0**-32)
        found += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(found)


def _hash(text: str, size: int) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=size).digest(), "big")
